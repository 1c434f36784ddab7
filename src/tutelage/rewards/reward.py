"""What a recipe may say about a reward, and the function that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Count, Positive
from tutelage.errors import InputError

Scorer = Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]]
"""Takes prompts, responses and references, and returns one number for each response."""
Kind = Literal["rouge_l", "exact_answer", "classifier", "similarity", "judge", "function"]

_OWN: dict[str, tuple[str, ...]] = {
    "answer": ("exact_answer",),
    "model": ("classifier", "similarity", "judge"),
    "label": ("classifier",),
    "url": ("judge",),
    "function": ("function",),
}
"""The kinds that each key belongs to."""
_NEEDED = {"classifier": ("model",), "similarity": ("model",), "judge": ("model", "url"), "function": ("function",)}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Reward:
    """A number for each response, the higher the better."""

    kind: Kind = "rouge_l"
    """`rouge_l` (F-measure with the reference, 0 to 1), `exact_answer` (1 for the reference's answer, else 0),
    `classifier` (probability of a label for prompt and response, as of an entailment model), `similarity` (cosine of
    the embeddings of response and reference), `judge` (a served model's mark, 0 to 1), `function` (your own)."""
    function: str | None = None
    """function: `module:function`, which takes prompts, responses and references, and returns a number for each; in a
    run of several processes each calls it with its share of them."""
    answer: str | None = None
    """exact_answer: how the answer is read, as `evaluation.answer`; `null` is the whole text."""
    model: str | None = None
    """classifier, similarity: hub id or folder. judge: the name under which the endpoint serves the model."""
    label: str | None = None
    """classifier: the label's name, such as `entailment`. Left out, a model with a single output gives that output."""
    url: str | None = None
    """judge: an OpenAI-compatible endpoint, such as `http://localhost:8000/v1`."""
    key_variable: str = "TUTELAGE_JUDGE_KEY"
    """judge: the environment variable that holds the API key, where one is needed; the key is in no recipe."""
    parallel: Count = 8
    """judge: requests at the same time."""
    batch_size: Count = 16
    """classifier, similarity: texts in one forward pass."""
    max_tokens: Count = 512
    """classifier, similarity: longer texts are cut."""
    device: str = "auto"
    """classifier, similarity: where the model runs."""
    scale: Positive = 1.0
    """Multiplies the reward."""

    @model_validator(mode="after")
    def _fits_kind(self) -> Reward:
        foreign = [key for key, kinds in _OWN.items() if getattr(self, key) is not None and self.kind not in kinds]
        if foreign:
            raise ValueError(f"{foreign[0]} is for {' and '.join(_OWN[foreign[0]])}, not for kind '{self.kind}'")
        missing = [key for key in _NEEDED.get(self.kind, ()) if getattr(self, key) is None]
        if missing:
            raise ValueError(f"kind '{self.kind}' needs {' and '.join(missing)}")
        if self.function is not None and ":" not in self.function:
            raise ValueError(f"function must be 'module:function' (got '{self.function}')")
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether it compares with the data's response."""
        return self.kind in ("rouge_l", "exact_answer", "similarity")

    def scorer(self) -> Scorer:
        """Return the function; a model is loaded once.

        Raises:
            InputError: the function, the model or its label is not there.

        >>> Reward(kind="rouge_l").scorer()(["p"], ["the cat"], ["the cat"])
        [1.0]
        """
        return _scorer(self)


@lru_cache(maxsize=8)
def _scorer(reward: Reward) -> Scorer:
    if reward.kind == "function":
        assert reward.function is not None
        return _function(reward.function)
    return import_module(f"tutelage.rewards.{reward.kind}").scorer(reward)


def _function(name: str) -> Scorer:
    module, _, function = name.partition(":")
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"method.reward.function: cannot find {name} ({error})") from None
