"""Rendered text to ids: prompts, and responses that end in exactly one stop token."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from tutelage.data.chat import Rendered
from tutelage.data.tokens import Ids, added_around, encode_continuations, encode_texts, literal_pattern
from tutelage.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Response:
    """The ids of a response, and which of them are in the loss."""

    ids: Ids
    mask: list[bool]
    stop_inside: bool
    """Whether a trained piece holds a stop token before its end."""


@dataclass(frozen=True)
class Coder:
    """A tokenizer, with the tokens that end a response and what they look like as text."""

    tokenizer: "PreTrainedTokenizerBase"
    stops: frozenset[int]
    pattern: re.Pattern[str] | None
    encoder_decoder: bool

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", stop_ids: frozenset[int], encoder_decoder: bool) -> "Coder":
        if tokenizer.eos_token_id is None:
            raise InputError(f"tokenizer '{tokenizer.name_or_path}' has no end token; set its eos_token")
        stops = stop_ids | {_end_id(tokenizer)}
        return cls(tokenizer, stops, literal_pattern(tokenizer, stops), encoder_decoder)

    def up_to_stop(self, text: str, keep_stop: bool) -> str:
        """The text before its first stop token, with that token or without."""
        stop = self.pattern.search(text) if self.pattern else None
        if stop is None:
            return text
        return text[: stop.end() if keep_stop else stop.start()]

    def stops_early(self, text: str) -> bool:
        """Whether text other than stop tokens and white space follows the first stop token."""
        rest = text[len(self.up_to_stop(text, keep_stop=True)) :]
        return bool(self.pattern and self.pattern.sub("", rest).strip())

    def prompts(self, texts: Sequence[Rendered], chat: bool) -> list[Ids]:
        """The ids of all prompts, with what the tokenizer adds where no template has written it."""
        if not texts:
            return []
        before, after = added_around(self.tokenizer, texts[0].prompt)
        head: Ids = [] if chat else before
        tail: Ids = after if self.encoder_decoder else []
        return [
            (head if ids[: len(head)] != head else []) + ids + (tail if ids[-len(tail) :] != tail else [])
            for ids in encode_texts(self.tokenizer, [text.prompt for text in texts])
        ]

    def responses(self, texts: Sequence[Rendered]) -> list[Response]:
        """The ids and masks of all responses."""
        pieces = [piece for text in texts for piece, _ in text.pieces]
        previous = [before for text in texts for before in [text.prompt, *(piece for piece, _ in text.pieces)][:-1]]
        if self.encoder_decoder:
            ids = iter(encode_texts(self.tokenizer, pieces))
        else:
            ids = iter(encode_continuations(self.tokenizer, pieces, previous))
        return [self._response(text, list(islice(ids, len(text.pieces)))) for text in texts]

    def _response(self, text: Rendered, pieces: Sequence[Ids]) -> Response:
        flags = [trained for _, trained in text.pieces]
        ids = [i for piece in pieces for i in piece]
        mask = [trained for piece, trained in zip(pieces, flags, strict=True) for _ in piece]
        inside = any(
            trained and not self.stops.isdisjoint(piece[:-1]) for piece, trained in zip(pieces, flags, strict=True)
        )
        if pieces and not (ids and ids[-1] in self.stops):
            ids, mask = [*ids, _end_id(self.tokenizer)], [*mask, True]
        return Response(ids, mask, inside)


def _end_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    return int(tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]  (typed as str | list too)
