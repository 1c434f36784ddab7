"""One text under two tokenizers: the bytes of every token, and the smallest groups of tokens that cover the same bytes.

A position in a text is a number of bytes (UTF-8), for the tokens of byte-level tokenizers end inside characters. What
is compared is the text itself, so tokens that are no text (begin, end, turns of a chat) have no bytes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from tutelage.data.tokens import adds_space
from tutelage.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BLANK = "▁"  # SentencePiece's space
_NEWLINE = "\n"


class Span(NamedTuple):
    """Tokens of the student and tokens of the teacher that cover the same bytes: where each begins and stops."""

    student_start: int
    student_stop: int
    teacher_start: int
    teacher_stop: int

    @property
    def is_one_to_one(self) -> bool:
        """Whether there is one token on each side."""
        return self.student_stop - self.student_start == 1 == self.teacher_stop - self.teacher_start


def spans(student_ends: Sequence[int], teacher_ends: Sequence[int]) -> list[Span]:
    """Return the smallest groups of tokens that cover the same bytes of a text, in order.

    A group ends wherever both tokenizers have a boundary, and nowhere else.

    Args:
        student_ends: where each token of the student ends, bytes from the start of the text, never falling.
        teacher_ends: the same of the teacher. Of tokens that end at the same byte only the last is a boundary.

    Returns:
        The groups. They hold every token once where both sequences end at the same byte; tokens after the last
        common boundary are in none.

    >>> spans([2, 3, 6], [3, 5, 6])
    [Span(student_start=0, student_stop=2, teacher_start=0, teacher_stop=1), \
Span(student_start=2, student_stop=3, teacher_start=1, teacher_stop=3)]
    """
    student_stops = {end: place for place, end in enumerate(student_ends, 1)}
    teacher_stops = {end: place for place, end in enumerate(teacher_ends, 1)}
    stops = [(0, 0)]
    stops += [(stop, teacher_stops[end]) for end, stop in student_stops.items() if end in teacher_stops]
    return [
        Span(start, stop, teacher_start, teacher_stop)
        for (start, teacher_start), (stop, teacher_stop) in pairwise(stops)
    ]


@dataclass(frozen=True)
class TokenBytes:
    """The bytes that each id of a tokenizer stands for, and how the tokenizer reads a text.

    Use `of`. Byte-level tokenizers (GPT-2, Llama 3, Qwen), SentencePiece-like ones (Llama 2, Mistral, Gemma, T5) and
    tokenizers of whole words with spaces between them are known.
    """

    tokenizer: "PreTrainedTokenizerBase"
    pieces: Mapping[int, bytes]
    """Ids that are text, with their bytes."""
    spaced: bool
    """Whether tokens are words with a space between them."""
    starts_text: bool
    """Whether the texts begin by themselves (a decoder's, behind an encoder) instead of going on from a prompt."""
    context: str
    """What a text is read behind, so that no space is put before it."""

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", *, starts_text: bool = False) -> "TokenBytes":
        """Look up the bytes of all ids.

        Args:
            tokenizer: a fast tokenizer of transformers.
            starts_text: as the field.

        Raises:
            InputError: the tokenizer is not a fast one, or joins its tokens in a way that is not known here.
        """
        joined = _decoder(tokenizer)
        special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        added = {index: token.content.encode() for index, token in tokenizer.added_tokens_decoder.items()}
        convert = {"bytes": _of_byte_level, "pieces": _of_sentence_piece, "words": str.encode}[joined]
        vocabulary = tokenizer.get_vocab()
        pieces = {
            index: added[index] if index in added else convert(token)
            for token, index in vocabulary.items()
            if index not in special
        }
        behind = not starts_text and adds_space(tokenizer)
        return cls(tokenizer, pieces, joined == "words", starts_text, _NEWLINE if behind else "")

    def of_ids(self, ids: Sequence[int]) -> list[bytes]:
        """Return the bytes of each token of a response, empty for what is no text."""
        found = [self.pieces.get(index, b"") for index in ids]
        if self.spaced:
            first = next((place for place, piece in enumerate(found) if piece), 0)
            return [b" " + piece if piece and place > first else piece for place, piece in enumerate(found)]
        if self.starts_text and found and found[0].startswith(b" ") and len(found[0]) > 1:
            found[0] = found[0][1:]
        return found

    def read(self, text: str) -> tuple[list[int], list[int]]:
        """Tokenise a text that goes on where a prompt ends; what looks like a special token is read as text.

        Where a tokenizer changes the text before it reads it (Unicode normalisation, blanks that it drops), boundaries
        come from its own record of characters there.

        Args:
            text: the text; may be empty.

        Returns:
            The ids, and where each token ends, bytes from the start of the text.
        """
        if not text:
            return [], []
        head = len(self._encode(self.context)["input_ids"]) if self.context else 0
        encoded = self._encode(self.context + text)
        ids = list(encoded["input_ids"])[head:]
        ends = [end - len(self.context) for _, end in list(encoded["offset_mapping"])[head:]]
        return ids, self._ends(text, ids, ends)

    def _encode(self, text: str) -> Any:
        return self.tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            truncation=False,
            verbose=False,
        )

    def _ends(self, text: str, ids: Sequence[int], characters: Sequence[int]) -> list[int]:
        """Follow the tokens through the bytes of a text.

        Where one does not read as the text does, it lasts until a later one is found where the tokenizer says it ends.
        """
        data, ends, at, lost = text.encode(), [], 0, False
        bytes_at = list(accumulate((len(character.encode()) for character in text), initial=0))
        for index, character in zip(ids, characters, strict=True):
            piece = self.pieces.get(index, b"")
            length = None if lost else _length_in(data, at, piece)
            stop = bytes_at[max(character, 0)]
            if length is None and piece and data[at:stop].endswith(piece):
                ends, length = [min(end, stop - len(piece)) for end in ends], stop - at
            lost = length is None
            at = at if length is None else at + length
            ends.append(len(data) if length is None else at)
        return ends


def whole_text(pieces: Sequence[bytes]) -> tuple[int, str]:
    """Return how many leading tokens are whole text together, and that text.

    The others come after a token that is no text, or hold bytes that are no characters: nobody can read those.

    Args:
        pieces: the bytes of each token, empty for what is no text.

    >>> whole_text(["né".encode()[:2], "né".encode()[2:], b"x", b"", b"y"])
    (3, 'néx')
    """
    count = next((place for place, piece in enumerate(pieces) if not piece), len(pieces))
    data = b"".join(pieces[:count])
    ends = list(accumulate((len(piece) for piece in pieces[:count]), initial=0))
    while not _is_text(data[: ends[count]]):
        count -= 1
    return count, data[: ends[count]].decode()


def shared_pieces(student: TokenBytes, teacher: TokenBytes) -> dict[int, int]:
    """Return the teacher's id for each id of the student that stands for the same bytes.

    Where several ids of one side stand for the same bytes, as a letter and its byte-fallback token do, the one that
    the tokenizer writes is taken.
    """
    ours, theirs = _by_bytes(student), _by_bytes(teacher)
    return {index: theirs[piece] for piece, index in ours.items() if piece in theirs}


def _by_bytes(known: TokenBytes) -> dict[bytes, int]:
    """One id for each string; byte-fallback tokens give way to others."""
    names = {index: token for token, index in known.tokenizer.get_vocab().items()}
    order = sorted(known.pieces, key=lambda index: (not re.fullmatch(r"<0x[0-9A-F]{2}>", names[index]), -index))
    return {known.pieces[index]: index for index in order if known.pieces[index]}


def _is_text(data: bytes) -> bool:
    return data.decode(errors="ignore").encode() == data


def _length_in(data: bytes, at: int, piece: bytes) -> int | None:
    """How many bytes of a text a token covers, `None` where the text reads differently there."""
    if data.startswith(piece, at):
        return len(piece)
    if b" " not in piece or _BLANK.encode() not in data:
        return None
    either = re.escape(piece).replace(rb"\ ", b"(?: |" + _BLANK.encode() + b")")
    found = re.compile(either).match(data, at)
    return None if found is None else found.end() - at


def _decoder(tokenizer: "PreTrainedTokenizerBase") -> str:
    """How the tokens of a tokenizer are joined: `bytes`, `pieces` or `words`."""
    if not tokenizer.is_fast:
        raise InputError(
            f"tokenizer '{tokenizer.name_or_path}' is not a fast one (tokenizer.json), so it does not tell which part "
            "of a text a token is; convert it, or distil on text (sft)"
        )
    decoder = cast(Any, tokenizer).backend_tokenizer.decoder
    if decoder is None:
        return "words"
    state = json.loads(decoder.__getstate__())
    kinds = {part["type"] for part in state.get("decoders", [state])}
    if "ByteLevel" in kinds:
        return "bytes"
    if kinds & {"Metaspace", "ByteFallback"} or _BLANK in json.dumps(state, ensure_ascii=False):
        return "pieces"
    raise InputError(
        f"tokenizer '{tokenizer.name_or_path}' joins its tokens by {', '.join(sorted(kinds))}; byte-level and "
        "SentencePiece-like tokenizers can be aligned; distil on text (sft)"
    )


def _byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level tokenizers: printable bytes are themselves, the others come after 255, in order."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_of_character()


def _of_byte_level(token: str) -> bytes:
    return b"".join(bytes([_BYTES[c]]) if c in _BYTES else c.encode() for c in token)


def _of_sentence_piece(token: str) -> bytes:
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
    return bytes([int(byte.group(1), 16)]) if byte else token.replace(_BLANK, " ").encode()
