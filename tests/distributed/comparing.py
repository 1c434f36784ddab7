"""Comparing runs."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

QUIET = {"report": lambda line: None}
NUMBERS = ("loss", "gradient_norm", "response_length", "tokens", "ended", "student_text")


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The final weights, in however many files they are: a whole model's, or an adapter's."""
    found: dict[str, torch.Tensor] = {}
    for path in (folder / "model").glob("*model*.safetensors"):
        found |= load_file(path)
    assert found
    return found


def assert_close(one: Path, two: Path) -> None:
    """Metrics of every step, and the final weights, up to the order of sums in float32 and what Adam makes of it."""
    for first, second in zip(lines(one), lines(two), strict=True):
        for name in NUMBERS:
            if name in first:
                assert second[name] == pytest.approx(first[name], rel=2e-3, abs=1e-5), (first["step"], name)
    whole, shared = weights(one), weights(two)
    assert whole.keys() == shared.keys()
    for name in whole:
        torch.testing.assert_close(shared[name], whole[name], rtol=0, atol=2e-3)
