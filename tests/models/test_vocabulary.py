"""Whether two tokenizers mean the same by their ids."""

import string
import time

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from tutelage.errors import InputError
from tutelage.models.vocabulary import PROBE, SharedVocabulary, shared_vocabulary

MERGES = [("t", "h"), ("th", "e"), ("h", "e"), ("Ġ", "t"), ("Ġ", "the"), ("e", "Ġ")]


def words(tokens, **special):
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{"eos_token": "</s>", **special})


def byte_pairs(merges=MERGES, split=True):
    tokens = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in sorted(MERGES)), "</s>"]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


TOKENS = [*string.ascii_lowercase, *string.ascii_uppercase, *string.digits, "?", "</s>"]  # 64 of them


def test_equal_tokenizers_share_everything():
    one = words(TOKENS)
    assert shared_vocabulary(one, one, 64, 64) == SharedVocabulary(64, "")
    assert shared_vocabulary(one, words(TOKENS), 64, 64) == SharedVocabulary(64, "")
    assert shared_vocabulary(byte_pairs(), byte_pairs(), 263, 263) == SharedVocabulary(263, "")


@pytest.mark.parametrize("same_object", [True, False])
def test_padded_heads_are_cut_to_the_narrower(same_object):
    student = words(TOKENS)
    teacher = student if same_object else words(TOKENS)
    found = shared_vocabulary(student, teacher, 64, 72)
    assert found.size == 64
    assert found.note == ("vocabulary 64 (student) and 72 (teacher): same 64 tokens; logits sliced to the first 64 ids")
    assert shared_vocabulary(student, teacher, 80, 72).size == 72


def test_head_narrower_than_the_tokenizer():
    found = shared_vocabulary(words([*TOKENS, "<image>"]), words(TOKENS), 64, 64)
    assert found == SharedVocabulary(64, "")


def test_same_size_and_another_map_is_refused():
    turned = [*TOKENS[1:60], TOKENS[0], *TOKENS[60:]]
    with pytest.raises(InputError) as raised:
        shared_vocabulary(words(TOKENS), words(turned), 64, 64)
    assert str(raised.value) == (
        "tokenizers differ: 60 of 64 shared ids stand for other strings (first: id 0 is 'a' for the student, "
        "'b' for the teacher; id 1 is 'b' for the student, 'c' for the teacher; id 2 is 'c' for the student, "
        "'d' for the teacher); distil with method cross-tokenizer, or have the teacher write text with `tutelage "
        "generate`, and train on it with sft"
    )


def test_two_exchanged_ids_are_found():
    swapped = [*TOKENS[:30], TOKENS[31], TOKENS[30], *TOKENS[32:]]
    with pytest.raises(InputError, match=r"2 of 64 shared ids .*id 30 is 'E' for the student, 'F' for the teacher"):
        shared_vocabulary(words(TOKENS), words(swapped), 64, 64)


def test_ids_that_differ_beyond_the_shared_rows_do_not_matter():
    student, teacher = words([*TOKENS, "<x>"]), words([*TOKENS, "<y>"])
    assert shared_vocabulary(student, teacher, 64, 65).size == 64
    with pytest.raises(InputError, match=r"1 of 65 shared ids .*'<x>' for the student, '<y>' for the teacher"):
        shared_vocabulary(student, teacher, 65, 65)


def test_tokens_of_one_side_only_are_named():
    student, teacher = words(TOKENS), words(TOKENS)
    student.add_tokens(["<tool>", "</tool>", "<think>", "</think>"])
    assert shared_vocabulary(student, teacher, 72, 72).note == (
        "4 tokens of the student only: '<tool>' (id 64), '</tool>' (id 65), '<think>' (id 66), …"
    )
    assert "4 tokens of the teacher only" in shared_vocabulary(teacher, student, 72, 72).note


def test_another_end_of_sequence_is_noted():
    found = shared_vocabulary(words(TOKENS), words(TOKENS, eos_token="?"), 64, 64)
    assert found == SharedVocabulary(64, "end of sequence is </s> for the student, ? for the teacher")


def test_same_map_and_other_merges_is_refused():
    with pytest.raises(
        InputError, match=r"same ids stand for the same strings, but '.*' becomes \[.*tutelage generate"
    ):
        shared_vocabulary(byte_pairs(), byte_pairs([MERGES[2], *MERGES[:2], *MERGES[3:]]), 263, 263)


def test_same_map_and_another_pre_tokenisation_is_refused():
    with pytest.raises(InputError, match="tokenizers differ: the same ids"):
        shared_vocabulary(byte_pairs(), byte_pairs(split=False), 263, 263)


def test_added_tokens_that_take_the_space_before_them_are_refused():
    """The same map, and the same for every text of the probe: only a text with the token in it tells them apart."""
    student, teacher = byte_pairs(), byte_pairs()
    student.add_tokens([AddedToken("<tool>")])
    teacher.add_tokens([AddedToken("<tool>", lstrip=True)])
    with pytest.raises(InputError, match=r"same ids stand for the same strings, but 'a <tool> b<tool>c' becomes"):
        shared_vocabulary(student, teacher, 264, 264)


def test_nothing_in_common_is_refused():
    with pytest.raises(InputError, match="no id in common"):
        shared_vocabulary(words(TOKENS), words(TOKENS), 0, 64)


def test_probe_is_varied_and_without_repetition():
    assert len(PROBE) == len(set(PROBE)) >= 200
    text = "".join(PROBE)
    assert all(wanted in text for wanted in ("  ", "\t", "\n\n", "\r\n", "12345", "é", "e\u0301", "🙂"))


@pytest.mark.slow
def test_large_vocabularies_take_a_moment():
    tokens = [*(f"token{index}" for index in range(262_000)), "?", "</s>"]
    student, teacher = words(tokens), words(tokens)
    start = time.perf_counter()
    assert shared_vocabulary(student, teacher, 262_144, 262_208).size == 262_144
    assert time.perf_counter() - start < 10
