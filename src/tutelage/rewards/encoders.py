"""Loading the models that rewards are read off."""

from collections.abc import Iterator, Sequence
from typing import Any

from tutelage.errors import InputError


def encoder(name: str | None, kind: Any, *, device: str = "auto", what: str, key: str) -> tuple[Any, Any]:
    """Load a frozen model of one of transformers' Auto classes with its tokenizer.

    Args:
        name: hub id or folder.
        kind: the Auto class.
        device: where it runs; `auto` takes a GPU where there is one.
        what: what it is to be, for messages.
        key: where it is named, for messages.

    Raises:
        InputError: it cannot be loaded.
    """
    import torch
    from transformers import AutoTokenizer

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = kind.from_pretrained(name, use_safetensors=True).to(device).eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{key}.model: cannot load {name} as a {what}: {reason}") from None
    return model, tokenizer


def in_batches(size: int, *columns: Sequence[str]) -> Iterator[list[list[str]]]:
    """Cut columns of equal length into batches.

    >>> list(in_batches(2, ["a", "b", "c"], ["x", "y", "z"]))
    [[['a', 'b'], ['x', 'y']], [['c'], ['z']]]
    """
    for start in range(0, len(columns[0]), size):
        yield [list(column[start : start + size]) for column in columns]
