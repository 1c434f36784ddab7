"""What a server says of the tokens of a prompt: read, and refused where it cannot be right."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NotRequired

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor
from typing_extensions import TypedDict  # pydantic does not take that of typing before Python 3.12

from tutelage.errors import InputError

FLOOR = -9000.0
"""A log-probability below this one stands for minus infinity, which vLLM writes as −9999."""
PADDING = 1024
"""Heads are padded to round sizes: a server may know so many ids beyond the tokenizer's."""
ROUNDING = 1e-3
"""How far rounding may carry a log-probability beyond 0, or their masses beyond 1."""


class Entry(TypedDict):
    """A token at a position."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)  # pyright: ignore[reportGeneralTypeIssues]
    logprob: float


class Choice(TypedDict):
    """The one answer to a prompt."""

    prompt_logprobs: NotRequired[list[dict[int, Entry] | None] | None]


class Completion(TypedDict):
    """What a server answers."""

    id: NotRequired[str | None]
    choices: list[Choice]


COMPLETION = TypeAdapter(Completion)
"""The shape of an answer, as far as it is read."""

Columns = tuple[Int[Tensor, "positions k"], Float[Tensor, "positions k"], Float[Tensor, " positions"]]


def request(model: str, prompt: Sequence[int], top_k: int) -> dict[str, object]:
    """Return the request for the log-probabilities of a prompt; servers want to write at least one token."""
    return {"model": model, "prompt": list(prompt), "max_tokens": 1, "temperature": 0, "prompt_logprobs": top_k}


def read_scores(
    completion: Completion, prompt: Sequence[int], places: Sequence[int], *, top_k: int, known: int, vocabulary: int
) -> Columns:
    """Read the most probable tokens at some places of a prompt.

    The distribution is that over the first `vocabulary` ids: the mass of the others is taken out where it is among
    the most probable tokens, and the rest scaled up.

    Args:
        completion: a server's answer.
        prompt: the ids that were sent.
        places: where to read, from 1; what is read predicts the token at that place.
        top_k: how many tokens were asked for.
        known: ids that the teacher's tokenizer knows.
        vocabulary: leading ids that are compared.

    Returns:
        Ids, −1 for those that are not compared or have no probability; their log-probabilities, −∞ where the id is
        −1; log-probabilities of the prompt's own tokens.

    Raises:
        InputError: the answer is not one to this request, or what it says cannot be.
    """
    listed = completion["choices"][0].get("prompt_logprobs") if completion["choices"] else None
    if listed is None:
        raise unusable(completion, "scores", "it has no prompt_logprobs")
    if len(listed) != len(prompt):
        raise unusable(completion, "scores", f"it has {len(listed)} positions, the prompt {len(prompt)}")
    entries = [listed[place] or {} for place in places]
    fewest = min((len(entry) for entry in entries), default=top_k)
    if fewest < top_k:
        raise unusable(completion, "scores", f"it has {fewest} tokens at a position, and {top_k} were asked for")
    ids, logp = _columns(entries)
    targets = np.array([prompt[place] for place in places])
    own = ids == targets[:, None]
    problem = _problem(ids, logp, own, known)
    if problem:
        raise unusable(completion, "scores", problem)
    target_logp = np.take_along_axis(logp, own.argmax(1)[:, None], 1)[:, 0]
    best = np.argsort(-logp, 1, kind="stable")[:, :top_k]
    ids, logp = np.take_along_axis(ids, best, 1), np.take_along_axis(logp, best, 1)
    outside = np.where(ids >= vocabulary, np.exp(logp), 0.0).sum(1).clip(0, 1 - ROUNDING)
    inside = np.log1p(-outside)
    left_out = (ids >= vocabulary) | (logp < FLOOR)
    logp = np.where(left_out, -np.inf, logp - inside[:, None])
    return (
        torch.from_numpy(np.where(left_out, -1, ids)),
        torch.from_numpy(logp).float(),
        torch.from_numpy(target_logp - inside).float(),
    )


def _columns(entries: Sequence[dict[int, Entry]]) -> tuple[NDArray, NDArray]:
    """Ids and log-probabilities under one another, filled up with −1 and −∞."""
    counts = np.array([len(entry) for entry in entries], dtype=np.int64)
    filled = np.arange(counts.max(initial=0)) < counts[:, None]
    ids, logp = np.full(filled.shape, -1), np.full(filled.shape, -np.inf)
    ids[filled] = np.fromiter(chain.from_iterable(entries), np.int64)
    logp[filled] = np.fromiter((one["logprob"] for entry in entries for one in entry.values()), np.float64)
    return ids, logp


def _problem(ids: NDArray, logp: NDArray, own: NDArray, known: int) -> str | None:
    """What cannot be right about the tokens of an answer."""
    if not own.any(1).all():
        return "a token of the prompt is not among those at its position"
    if ids.max(initial=0) >= known + PADDING or (ids[np.isfinite(logp)] < 0).any():
        return f"it has the id {ids.max() if ids.max() >= known else ids.min()}, and the tokenizer {known} ids"
    if logp.max(initial=-np.inf) > ROUNDING:
        return f"it has a log-probability of {logp.max():.4g}"
    mass = np.exp(logp).sum(1).max(initial=0.0)
    if mass > 1 + ROUNDING:
        return f"the probabilities at a position add up to {mass:.4g}"
    return None


def unusable(answer: Mapping[str, Any], what: str, problem: str) -> InputError:
    """The error for an answer that cannot be right.

    Args:
        answer: a server's.
        what: it tells, such as `scores`.
        problem: what is wrong about it.
    """
    return InputError(
        f"the server answers with {what} that cannot be right: {problem} (request {answer.get('id')}); "
        "nothing of it was used"
    )
