"""Loading the models that rewards are read off."""

from collections.abc import Iterator, Sequence
from typing import Any

from tutelage.errors import InputError
from tutelage.rewards.reward import Reward


def encoder(reward: Reward, kind: Any) -> tuple[Any, Any]:
    """Load a frozen model of one of transformers' Auto classes with its tokenizer.

    Raises:
        InputError: it cannot be loaded.
    """
    import torch
    from transformers import AutoTokenizer

    device = reward.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = kind.from_pretrained(reward.model, use_safetensors=True).to(device).eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(reward.model)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"method.reward.model: cannot load {reward.model} as a {reward.kind}: {reason}") from None
    return model, tokenizer


def in_batches(size: int, *columns: Sequence[str]) -> Iterator[list[list[str]]]:
    """Cut columns of equal length into batches.

    >>> list(in_batches(2, ["a", "b", "c"], ["x", "y", "z"]))
    [[['a', 'b'], ['x', 'y']], [['c'], ['z']]]
    """
    for start in range(0, len(columns[0]), size):
        yield [list(column[start : start + size]) for column in columns]
