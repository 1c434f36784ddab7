"""How servers are asked for the log-probabilities of a prompt: vLLM in its completions, SGLang at `/generate`."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, NotRequired

from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict  # pydantic does not take that of typing before Python 3.12

from tutelage.models.prompt_logprobs import COMPLETION, Completion, Entry, request, unusable

Told = tuple[float | None, int, str | None]
"""Log-probability, id, and the token's text, which is not asked for."""
Ask = Callable[[str, dict[str, object], TypeAdapter], Awaitable[Any]]
"""Sends a body to a path, and checks the answer's shape."""


class Meta(TypedDict):
    """What SGLang says of a request besides its text."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)  # pyright: ignore[reportGeneralTypeIssues]
    id: NotRequired[str | None]
    input_token_logprobs: NotRequired[list[Told] | None]
    input_top_logprobs: NotRequired[list[list[Told] | None] | None]


class Generated(TypedDict):
    """What SGLang's `/generate` answers."""

    meta_info: Meta


GENERATED = TypeAdapter(Generated)
"""The shape of an answer, as far as it is read."""


class Protocol(NamedTuple):
    """What differs between servers."""

    scores: Callable[[Ask, str, Sequence[int], int, int], Awaitable[Completion]]
    """Asks for a prompt's log-probabilities: how to send, the model's name, the ids, the first place that is read
    (from 1), and how many tokens a place."""
    spared: int
    """Positions that the server keeps to itself, of those that it says a model has."""


async def vllm_scores(ask: Ask, model: str, prompt: Sequence[int], first: int, top_k: int) -> Completion:
    """Ask vLLM, which tells of all places."""
    return await ask("/completions", request(model, prompt, top_k), COMPLETION)


async def sglang_scores(ask: Ask, model: str, prompt: Sequence[int], first: int, top_k: int) -> Completion:
    """Ask SGLang; what it says is put as vLLM would. One server has one model, so the name is not sent.

    Raises:
        InputError: it speaks of other tokens, or not of all.
    """
    start = first - 1  # of this one it tells no log-probability
    body = {
        "input_ids": list(prompt),
        "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        "return_logprob": True,
        "logprob_start_len": start,
        "top_logprobs_num": top_k,
    }
    meta: Meta = (await ask("/../generate", body, GENERATED))["meta_info"]
    answer: Completion = {"id": meta.get("id"), "choices": [{"prompt_logprobs": None}]}
    own, best = meta.get("input_token_logprobs"), meta.get("input_top_logprobs")
    if own and best:
        problem = _problem(prompt[start:], own, best)
        if problem:
            raise unusable(answer, "scores", problem)
        told = [
            _entries([*(among or ()), (logp, index, None)])
            for among, (logp, _, _), index in zip(best, own, prompt[start:], strict=True)
        ]
        answer["choices"][0]["prompt_logprobs"] = [*[None] * first, *told[1:]]
    return answer


def _problem(prompt: Sequence[int], own: Sequence[Told], best: Sequence[Sequence[Told] | None]) -> str | None:
    """What cannot be right about an answer on the ids of a prompt; of the first it says nothing."""
    if not len(prompt) == len(own) == len(best):
        return f"it has {len(own)} and {len(best)} positions, and {len(prompt)} were asked for"
    # The last id of the vocabulary is written as 0.
    if any(index not in (sent, 0) for sent, (_, index, _) in zip(prompt, own, strict=True)):
        return "it speaks of other tokens than those that were sent"
    # Numbers that are not finite are written as null, and which they were is not told.
    if any(logp is None for among in ([*own[1:]], *(one or () for one in best[1:])) for logp, _, _ in among):
        return "a token has no log-probability"
    return None


def _entries(told: Sequence[Told]) -> dict[int, Entry]:
    return {index: {"logprob": logp} for logp, index, _ in told if logp is not None}


PROTOCOLS = {"vllm": Protocol(vllm_scores, 0), "sglang": Protocol(sglang_scores, 6)}
"""By the names of `teacher.protocol`."""
