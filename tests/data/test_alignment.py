"""Two tokenizations of one text: every byte once, in order, in the smallest groups; tokenizers real and made up."""

from functools import cache
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tutelage.data.alignment import Span, TokenBytes, shared_pieces, spans, whole_text
from tutelage.errors import InputError

PLACES = {
    "gpt2": Path("../shared/data/tokenizers/gpt2/gpt2-base"),
    "mistral": Path("../shared/data/tokenizers/mistral/mistral-7b-v0.1"),
    "smollm2": Path("/tmp/models/smollm2"),
}
"""Seen from the root of the project."""

CHARACTERS = st.one_of(
    st.characters(codec="utf-8"),
    st.sampled_from("aeo éß\n\t  ▁  \u0301\u0308\u200d\u200b中文字日本ﬁقعשλ१٣🙂👍🏽👩‍👧🇪🇺\ufeff\ufffd<>|"),
)
TEXTS = st.one_of(
    st.text(CHARACTERS, max_size=40),
    st.lists(
        st.sampled_from(["the", " cat", "  ", "\n\n", "</s>", "<|im_end|>", "<s>", " naïve", "▁▁ x", "e\u0301"]),
        max_size=12,
    ).map("".join),
)


def byte_level(merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Bytes, and some merges of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *("".join(pair) for pair in merges)]
    whole = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, merges))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<end>")


def with_byte_fallback() -> PreTrainedTokenizerFast:
    """Letters behind SentencePiece's space, and bytes for all else."""
    letters = ["▁", *"abcdeht", "he", "▁the", "▁t", "é"]
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    merges = [("h", "e"), ("▁", "t"), ("▁t", "he")]
    whole = Tokenizer(
        models.BPE({t: n for n, t in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    whole.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    whole.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="</s>")


@cache
def known(name: str) -> TokenBytes:
    if name == "bytes":
        return TokenBytes.of(byte_level([("h", "e"), ("Ġ", "t"), ("Ġt", "he"), ("Ã", "©"), ("ð", "Ł")]))
    if name == "other bytes":
        return TokenBytes.of(byte_level([("t", "h"), ("th", "e"), ("Ł", "Ļ"), ("Ġ", "Ġ"), ("e", "Ġ")]))
    if name == "pieces":
        return TokenBytes.of(with_byte_fallback())
    if not PLACES[name].exists():
        pytest.skip(f"the {name} tokenizer is not at {PLACES[name]}")
    return TokenBytes.of(AutoTokenizer.from_pretrained(PLACES[name]))


NAMES = ["bytes", "other bytes", "pieces", *PLACES]
PAIRS = [("bytes", "other bytes"), ("bytes", "pieces"), ("pieces", "other bytes"), ("smollm2", "mistral")]
PAIRS += [("gpt2", "mistral"), ("mistral", "smollm2"), ("smollm2", "gpt2")]


def reads(name: str, text: str) -> bool:
    """Whether a tokenizer has all bytes of a text: SmolLM2's lacks some, and leaves them out."""
    return name != "smollm2" or set(text.encode()) <= single_bytes(name)


@cache
def single_bytes(name: str) -> set[int]:
    return {piece[0] for piece in known(name).pieces.values() if len(piece) == 1}


def read_by_itself(name: str, text: str) -> str:
    """What a tokenizer says that its ids are: the text, but for SentencePiece's own space."""
    return text.replace("▁", " ") if name in ("pieces", "mistral") else text


@pytest.mark.parametrize("name", NAMES)
@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_tokens_cover_every_byte_once(name: str, text: str) -> None:
    tokenizer = known(name)
    assume(reads(name, text))
    ids, ends = tokenizer.read(text)
    assert ends == sorted(ends)
    assert (ends[-1] if ends else 0) == len(text.encode())
    pieces = tokenizer.of_ids(ids)
    assert b"".join(pieces) == read_by_itself(name, text).encode()
    starts = [0, *ends][: len(ends)]
    covered = [text.encode()[start:end] for start, end in zip(starts, ends, strict=True)]
    assert [c.replace("▁".encode(), b" ") for c in covered] == [p.replace("▁".encode(), b" ") for p in pieces]
    assert whole_text(pieces) == (len(ids), read_by_itself(name, text))


@pytest.mark.parametrize("name", NAMES)
@given(text=TEXTS)
@settings(max_examples=60, deadline=None)
def test_equal_tokenizers_give_singletons(name: str, text: str) -> None:
    ids, ends = known(name).read(text)
    assume(reads(name, text))
    assert spans(ends, ends) == [Span(n, n + 1, n, n + 1) for n in range(len(ids))]


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_spans_partition_both_and_are_the_smallest(student: str, teacher: str, text: str) -> None:
    assume(reads(student, text) and reads(teacher, text))
    (ids, ends), (teacher_ids, teacher_ends) = known(student).read(text), known(teacher).read(text)
    found = spans(ends, teacher_ends)
    assert [n for s in found for n in range(s.student_start, s.student_stop)] == list(range(len(ids)))
    assert [n for s in found for n in range(s.teacher_start, s.teacher_stop)] == list(range(len(teacher_ids)))
    for span in found:
        assert span.student_stop > span.student_start
        assert span.teacher_stop > span.teacher_start
        assert ends[span.student_stop - 1] == teacher_ends[span.teacher_stop - 1]
        inside = set(ends[span.student_start : span.student_stop - 1])
        assert not inside & set(teacher_ends[span.teacher_start : span.teacher_stop - 1])


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_the_student_writes_is_read_by_the_teacher_byte_for_byte(student: str, teacher: str, data) -> None:
    """Any ids at all: pieces of characters, tokens that no text gives, and special ones among them."""
    ours, theirs = known(student), known(teacher)
    ids = data.draw(st.lists(st.integers(0, len(ours.tokenizer) - 1), max_size=20))
    pieces = ours.of_ids(ids)
    count, text = whole_text(pieces)
    assert b"".join(pieces[:count]) == text.encode()
    if count < len(ids) and pieces[count]:  # what is left out is no text, however much of it is taken
        later = [b"".join(pieces[:more]) for more in range(count + 1, len(ids) + 1) if b"" not in pieces[:more]]
        assert not any(_decodes(part) for part in later)
    assume(reads(teacher, text))
    _, ends = theirs.read(text)
    assert (ends[-1] if ends else 0) == len(text.encode())


def _decodes(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_by_hand() -> None:
    ids, ends = known("bytes").read(" thé")  # ␣t | h | Ã©  against  ␣ | th | Ã | ©
    assert [known("bytes").tokenizer.convert_ids_to_tokens(i) for i in ids] == ["Ġt", "h", "Ã©"]
    _, teacher_ends = known("other bytes").read(" thé")
    assert (ends, teacher_ends) == ([2, 3, 5], [1, 3, 4, 5])
    assert spans(ends, teacher_ends) == [Span(0, 2, 0, 2), Span(2, 3, 2, 4)]
    assert [span.is_one_to_one for span in spans([1, 3], [1, 2, 3])] == [True, False]


def test_a_space_is_not_added_where_a_text_goes_on() -> None:
    tokenizer = known("pieces").tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer("the").input_ids) == ["▁the"]
    assert tokenizer.convert_ids_to_tokens(known("pieces").read("the")[0]) == ["t", "he"]
    assert tokenizer.convert_ids_to_tokens(known("pieces").read(" the")[0]) == ["▁the"]


def test_a_tokenizer_that_normalises_keeps_the_boundaries_of_the_text() -> None:
    composing = byte_level([("Ã", "©")])
    composing.backend_tokenizer.normalizer = normalizers.NFC()
    normalising = TokenBytes.of(composing)
    text = "ae\u0301b"  # 1 + 3 + 1 bytes, of which the tokenizer reads 1 + 2 + 1
    assert normalising.read(text)[1] == [1, 4, 5]
    found = spans(known("bytes").read(text)[1], normalising.read(text)[1])
    assert found == [Span(0, 1, 0, 1), Span(1, 4, 1, 2), Span(4, 5, 2, 3)]


def test_bytes_that_a_tokenizer_leaves_out_belong_to_what_follows() -> None:
    tokens = ["a", "b", "Ġ", "ab"]
    whole = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, [("a", "b")]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole.decoder = decoders.ByteLevel()
    few = TokenBytes.of(PreTrainedTokenizerFast(tokenizer_object=whole))
    assert few.read("ab xxb c")[1] == [2, 3, 8, 8]  # of ab, ␣, b, ␣, the last two of which cannot be told apart
    assert spans(known("bytes").read("ab xxb c")[1], few.read("ab xxb c")[1]) == [
        Span(0, 2, 0, 1),
        Span(2, 3, 1, 2),
        Span(3, 8, 2, 4),
    ]


def test_words_have_spaces_between_them() -> None:
    from tests.tiny import tokenizer

    words = TokenBytes.of(tokenizer())
    ids = tokenizer()("a b c").input_ids
    assert words.of_ids([*ids, 1]) == [b"a", b" b", b" c", b""]
    assert whole_text(words.of_ids([*ids, 1])) == (3, "a b c")
    assert words.read("a b c") == (ids, [1, 3, 5])


def test_shared_pieces_are_equal_strings() -> None:
    ours, theirs = known("bytes"), known("pieces")
    shared = shared_pieces(ours, theirs)
    assert all(ours.pieces[one] == theirs.pieces[other] for one, other in shared.items())
    names = {
        ours.tokenizer.convert_ids_to_tokens(a): theirs.tokenizer.convert_ids_to_tokens(b) for a, b in shared.items()
    }
    assert (names["Ġthe"], names["a"], names["!"], names["Ã©"]) == ("▁the", "a", "<0x21>", "é")
    assert len(set(shared.values())) == len(shared)


def test_special_tokens_are_no_text() -> None:
    ours = known("bytes")
    assert ours.tokenizer.eos_token_id not in ours.pieces
    assert ours.of_ids([ours.tokenizer.eos_token_id]) == [b""]
    assert ours.tokenizer.eos_token_id not in ours.read("x<end>")[0]  # read as the letters that it is
    assert ours.tokenizer.eos_token_id in ours.tokenizer("x<end>").input_ids


def test_tokenizers_that_cannot_be_aligned_are_refused() -> None:
    other = byte_level([])
    other.backend_tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(InputError, match="joins its tokens by WordPiece"):
        TokenBytes.of(other)
