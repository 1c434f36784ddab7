"""Text that a server writes: what it is asked for, and its answer, read and refused where it cannot be right."""

from collections.abc import Sequence
from typing import Any, NotRequired

from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict  # pydantic does not take that of typing before Python 3.12

from tutelage.config import Decoding
from tutelage.models.prompt_logprobs import FLOOR, ROUNDING, unusable
from tutelage.rollouts.rollout import Ids

NEVER = -100
"""What is added to the logits of ids that must not be written, the least that servers take."""


class Logprobs(TypedDict):
    """What a server says of the tokens that it wrote."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)  # pyright: ignore[reportGeneralTypeIssues]
    token_logprobs: list[float]


class Choice(TypedDict):
    """One text."""

    token_ids: NotRequired[list[int] | None]
    logprobs: NotRequired[Logprobs | None]


class Written(TypedDict):
    """What a server answers."""

    id: NotRequired[str | None]
    choices: list[Choice]


WRITTEN = TypeAdapter(Written)
"""The shape of an answer, as far as it is read."""


def request(
    model: str, prompt: Ids, decoding: Decoding, *, stop_ids: Sequence[int], seed: int, barred: Sequence[int] = ()
) -> dict[str, Any]:
    """Return the request for one response, which draws as our own decoding does, but for its random numbers.

    Everything that a server would take from the model's `generation_config.json` is said here.

    Args:
        model: the name that it is served under.
        prompt: ids.
        decoding: strategy (not beam search), temperature, truncation, length.
        stop_ids: ids that end a response and are part of it; no others do.
        seed: of this response.
        barred: ids that are never written.
    """
    samples = decoding.strategy == "sample"
    return {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": decoding.max_new_tokens,
        "temperature": decoding.temperature if samples else 0.0,
        "top_k": decoding.top_k if samples else 0,
        "top_p": decoding.top_p if samples else 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed,
        "logit_bias": {str(index): NEVER for index in barred} or None,
        "stop_token_ids": list(stop_ids),
        "ignore_eos": True,
        "skip_special_tokens": False,
        "logprobs": 0,
        "return_token_ids": True,
    }


def read_response(
    written: Written, *, longest: int, stop_ids: Sequence[int], vocabulary: int
) -> tuple[Ids, tuple[float, ...]]:
    """Read a response: it ends with a stop id, or is as long as it may be.

    Args:
        written: a server's answer.
        longest: `max_new_tokens`.
        stop_ids: ids that end a response.
        vocabulary: ids from this one on are none that it may write.

    Returns:
        Its ids, and the log-probability of each under the distribution that it was drawn from.

    Raises:
        InputError: the answer is not one to such a request, or what it says cannot be.

    >>> read_response(
    ...     {"choices": [{"token_ids": [5, 1], "logprobs": {"token_logprobs": [-0.5, -0.25]}}]},
    ...     longest=9, stop_ids=[1], vocabulary=10,
    ... )
    ((5, 1), (-0.5, -0.25))
    """
    if len(written["choices"]) != 1:
        raise unusable(written, "text", f"it has {len(written['choices'])} responses, and one was asked for")
    choice = written["choices"][0]
    ids, scores = choice.get("token_ids"), choice.get("logprobs")
    if ids is None or scores is None:
        raise unusable(written, "text", f"it has no {'token_ids' if ids is None else 'logprobs'}")
    logps = scores["token_logprobs"]
    problem = _problem(ids, logps, longest, stop_ids, vocabulary)
    if problem:
        raise unusable(written, "text", problem)
    return tuple(ids), tuple(min(logp, 0.0) for logp in logps)


def _problem(
    ids: Sequence[int], logps: Sequence[float], longest: int, stop_ids: Sequence[int], vocabulary: int
) -> str | None:
    """What cannot be right about a response."""
    if len(ids) != len(logps):
        return f"it has {len(ids)} tokens and {len(logps)} log-probabilities"
    foreign = [index for index in ids if not 0 <= index < vocabulary]
    if foreign:
        return f"it has the id {foreign[0]}, and the student may write those below {vocabulary}"
    stops = [place for place, index in enumerate(ids) if index in stop_ids]
    if len(ids) > longest or (stops and stops[0] != len(ids) - 1) or (not stops and len(ids) != longest):
        end = f"the first stop id is at {stops[0]}" if stops else "no stop id"
        return f"it ends after {len(ids)} of at most {longest} tokens, {end}"
    if max(logps) > ROUNDING or min(logps) < FLOOR:
        return f"it has drawn a token with a log-probability of {max(logps) if max(logps) > 0 else min(logps):.4g}"
    return None
