"""Whether a server is the teacher that is meant: what it serves, what it tells, and how it cuts text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired

from pydantic import TypeAdapter
from transformers import PreTrainedTokenizerBase
from typing_extensions import TypedDict  # pydantic does not take that of typing before Python 3.12

from tutelage.config import Teacher
from tutelage.errors import InputError
from tutelage.models.pairing import fewest
from tutelage.models.prompt_logprobs import COMPLETION, Completion, read_scores, request
from tutelage.models.server_protocols import PROTOCOLS
from tutelage.models.serving import Refused, Server, all_of
from tutelage.models.vocabulary import PROBE, TEXT_ONLY, shown

TEXT = (
    "Water boils at a lower temperature in the mountains, because the air presses less on it there. A thermometer "
    "shows 92.5 degrees at 2,200 metres; def f(x): return [i ** 2 for i in range(x)] is Python; a b c d are letters."
)
"""What a teacher is known by: its log-probabilities of this text."""
LONGEST = 96
"""Most tokens of the text that are sent."""
NEAR = 0.1
"""Largest mean difference, nats a token, between two looks at one model: other batches and machines round otherwise."""
SEEDS = PROBE[::6]
"""Texts that both tokenizers have to cut alike."""


class Served(TypedDict):
    """A model of a server."""

    id: str
    max_model_len: NotRequired[int | None]


class Models(TypedDict):
    """The models of a server."""

    data: list[Served]


class Tokenized(TypedDict):
    """A text as ids."""

    tokens: list[int]


MODELS, _TOKENIZED = TypeAdapter(Models), TypeAdapter(Tokenized)


@dataclass(frozen=True)
class Fingerprint:
    """What tells a served model from others.

    Attributes:
        max_length: most tokens that it reads and writes together, `None` where the server does not say.
        logps: its log-probabilities of a fixed text, nats, rounded to three digits.
    """

    max_length: int | None
    logps: Sequence[float]

    def is_near(self, other: "Fingerprint") -> bool:
        """Whether the log-probabilities are the same but for the rounding of a server.

        >>> Fingerprint(None, [-1.0, -2.0]).is_near(Fingerprint(64, [-1.02, -2.0]))
        True
        >>> Fingerprint(None, [-1.0, -2.0]).is_near(Fingerprint(None, [-1.0, -2.4]))
        False
        """
        gaps = [abs(one - two) for one, two in zip(self.logps, other.logps, strict=False)]
        return len(self.logps) == len(other.logps) and sum(gaps) <= NEAR * len(gaps)


def agreed_on(found: Sequence[Fingerprint]) -> Fingerprint:
    """Return what all servers agree in, with the shortest of their lengths.

    Raises:
        InputError: they serve different models.
    """
    if not all(one.is_near(found[0]) for one in found):
        raise InputError(
            "the servers of teacher.url give one text different log-probabilities: they do not serve the same model"
        )
    return Fingerprint(fewest(*(one.max_length for one in found)), found[0].logps)


class Probes:
    """Looks at the servers of one model.

    Args:
        spec: the name that it is served under, and the protocol.
        tokenizer: its tokenizer, as it is here.
        top_k: tokens wanted at a position.
        known: ids that the tokenizer knows.
    """

    def __init__(self, spec: Teacher, tokenizer: PreTrainedTokenizerBase, top_k: int, known: int) -> None:
        assert spec.model is not None
        self._model, self._protocol = spec.model, spec.protocol
        self._tokenizer, self._top_k, self._known = tokenizer, top_k, known
        self._ids = self._encoded(TEXT)[:LONGEST]
        self.first: Fingerprint | None = None
        """What was found first; later looks are compared with it."""

    async def look_at(self, server: Server) -> Fingerprint:
        """Look at a server for the first time.

        Raises:
            InputError: it is not what is needed.
        """
        served = {one["id"]: one.get("max_model_len") for one in (await server.ask("/models", None, MODELS))["data"]}
        if self._model not in served:
            raise InputError(
                f"the server at {server.url} does not serve '{self._model}', but {', '.join(served) or 'nothing'}; "
                "give the name that it serves the teacher under as teacher.model"
            )
        await self._compare_tokenizers(server)
        length, spared = served[self._model], PROTOCOLS[self._protocol].spared
        return Fingerprint(length and length - spared, await self._logps(server, self._top_k))

    async def check(self, server: Server) -> None:
        """Look at a server again.

        Raises:
            InputError: it is not what it was.
        """
        now = Fingerprint(None, await self._logps(server, 1))
        if self.first is not None and not now.is_near(self.first):
            raise InputError(
                f"the server at {server.url} gives other log-probabilities than the teacher that this run began with; "
                "serve that one again, and the same command goes on from the last checkpoint"
            )

    async def _logps(self, server: Server, top_k: int) -> list[float]:
        try:
            completion = await PROTOCOLS[self._protocol].scores(server.ask, self._model, self._ids, 1, top_k)
        except Refused as error:
            raise InputError(
                f"{error}; a teacher has to give log-probabilities of prompts of token ids, {top_k} at a position: "
                f"start it with --max-logprobs {top_k} (vLLM), or lower teacher.top_k; teacher.protocol is "
                f"{self._protocol}"
            ) from None
        self._check_count(server, completion, top_k)
        places = range(1, len(self._ids))
        sizes = {"top_k": top_k, "known": self._known, "vocabulary": self._known}
        return [round(value, 3) for value in read_scores(completion, self._ids, places, **sizes)[2].tolist()]

    def _check_count(self, server: Server, completion: Completion, top_k: int) -> None:
        listed = [one for choice in completion["choices"] for one in choice.get("prompt_logprobs") or () if one]
        if not listed:
            raise InputError(
                f"the server at {server.url} gives no log-probabilities of prompts in the way of teacher.protocol "
                f"({self._protocol}), which a served teacher needs; serve it with vLLM, or with SGLang and "
                "teacher.protocol: sglang, or have it in this process"
            )
        fewest = min(map(len, listed))
        if fewest < top_k:
            raise InputError(
                f"the server at {server.url} tells no more than {fewest} tokens at a position, and teacher.top_k is "
                f"{top_k}; start it with --max-logprobs {top_k} (vLLM), or lower teacher.top_k"
            )

    async def _compare_tokenizers(self, server: Server) -> None:
        """Text by text, with the server's `/tokenize`; where there is none, by the prompts that it makes of texts."""
        texts = [text for text in SEEDS if len(self._encoded(text)) > 1]
        for text, theirs in zip(texts, await all_of([self._cut_by(server, text) for text in texts]), strict=True):
            own = self._encoded(text)
            if theirs != own:
                raise InputError(
                    f"the server at {server.url} has another tokenizer than teacher.tokenizer: {text!r} becomes "
                    f"{shown(theirs)} there and {shown(own)} here; name the served model's own tokenizer, or "
                    f"{TEXT_ONLY}"
                )

    async def _cut_by(self, server: Server, text: str) -> list[int]:
        body = {"model": self._model, "prompt": text, "add_special_tokens": False}
        try:
            return (await server.ask("/../tokenize", body, _TOKENIZED))["tokens"]
        except Refused:
            if self._protocol == "sglang":
                raise
            return await self._as_prompt(server, text, self._encoded(text))

    async def _as_prompt(self, server: Server, text: str, own: Sequence[int]) -> list[int]:
        """The ids that a server makes of a prompt: our own where it tells of these, −1 where it does not."""
        body = {**request(self._model, (), 1), "prompt": text, "add_special_tokens": False}
        completion = await server.ask("/completions", body, COMPLETION)
        listed = [one for choice in completion["choices"] for one in choice.get("prompt_logprobs") or ()]
        if listed and len(listed) != len(own):
            return [-1] * len(listed)
        self._check_count(server, completion, 1)
        return [index if at == 0 or index in (listed[at] or ()) else -1 for at, index in enumerate(own)]

    def _encoded(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)
