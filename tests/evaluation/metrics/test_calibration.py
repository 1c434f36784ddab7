"""Calibration against hand-computed values, a definition by loops, and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from tests.evaluation.metrics.subjects import ITEMS, subject

from tutelage.evaluation.metrics.calibration import Calibration, binned, calibration_of
from tutelage.evaluation.metrics.choices import choice_scores
from tutelage.evaluation.score import Score


def _score(confidence, right, bins: int) -> Score:
    rows = {str(at): binned(c, r, bins).ravel() for at, (c, r) in enumerate(zip(confidence, right, strict=True))}
    return Score(rows, "", "lower", reduction="ece")


def _defined_ece(confidence, right, bins: int) -> float:
    total = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = [i for i, c in enumerate(confidence) if low <= c < high or (b == bins - 1 and c == 1.0)]
        if inside:
            gap = sum(right[i] for i in inside) / len(inside) - sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(gap)
    return total


def test_ece_by_hand() -> None:
    # One bin holds 0.72 and 0.78, of which one is right: |0.75 − 0.5|; one holds 0.95, right: 0.05.
    found = _score([0.72, 0.78, 0.95], [1.0, 0.0, 1.0], 10).measurement().value
    assert found == pytest.approx(2 / 3 * 0.25 + 1 / 3 * 0.05)


@pytest.mark.parametrize("bins", [1, 7, 10, 15])
def test_ece_is_its_definition(bins: int) -> None:
    draws = np.random.default_rng(0)
    confidence, right = draws.uniform(0.3, 1, 200).tolist(), (draws.uniform(size=200) < 0.6).astype(float).tolist()
    confidence[:2] = 1.0, 0.5  # edges
    found = _score(confidence, right, bins).measurement()
    assert found.value == pytest.approx(_defined_ece(confidence, right, bins), abs=1e-12)
    assert found.low < found.high
    assert found.n == 200


@pytest.mark.parametrize("bins", [5, 10, 15])
def test_ece_is_that_of_torchmetrics(bins: int) -> None:
    classification = pytest.importorskip("torchmetrics.functional.classification", reason="torchmetrics is missing")
    shares = torch.randn(300, 3, dtype=torch.float64).softmax(-1)
    answers = torch.randint(0, 3, (300,))
    columns = calibration_of(shares.log().tolist(), answers.tolist())
    theirs = classification.multiclass_calibration_error(shares, answers, 3, n_bins=bins, norm="l1")
    assert _score(columns["confidence"], columns["right"], bins).measurement().value == pytest.approx(
        theirs.item(), abs=1e-6
    )


def test_per_item_numbers_by_hand() -> None:
    found = calibration_of([[math.log(0.1), math.log(0.3)], [-700.0, -700.0, -700.0]], [1, 2])
    assert found["confidence"] == pytest.approx([0.75, 1 / 3])
    assert found["right"] == [1.0, 0.0]  # of equal choices the first
    assert found["brier"] == pytest.approx([2 * 0.25**2, (2 / 3) ** 2 + 2 / 9])
    assert found["nll"] == pytest.approx([-math.log(0.75), math.log(3)])


def test_on_a_model() -> None:
    metric = Calibration(bins=4)
    looked_at = subject(metric)
    found = metric.measure(looked_at)
    shares = [np.exp(scores) / np.exp(scores).sum() for scores in choice_scores(looked_at)]
    confidence = [share.max() for share in shares]
    right = [float(share.argmax() == item.answer) for share, item in zip(shares, ITEMS, strict=True)]
    values = {name: score.measurement().value for name, score in found.scores.items()}
    assert values["ece"] == pytest.approx(_defined_ece(confidence, right, 4))
    assert values["label_accuracy"] == pytest.approx(100 * np.mean(right))
    nll = [-np.log(share[item.answer]) for share, item in zip(shares, ITEMS, strict=True)]
    assert values["label_nll"] == pytest.approx(np.mean(nll))
    brier = [
        sum((p - (c == item.answer)) ** 2 for c, p in enumerate(share))
        for share, item in zip(shares, ITEMS, strict=True)
    ]
    assert values["brier"] == pytest.approx(np.mean(brier))
    curve = found.curves["reliability"]
    assert curve.n is not None
    assert sum(curve.n) == 5
    gaps = [n * abs(x - y) for x, y, n in zip(curve.x, curve.y, curve.n, strict=True)]
    assert sum(gaps) / 5 == pytest.approx(values["ece"])
    assert found.notes == ["ece has 4 equal-width bins"]


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_one_item(kind: str) -> None:
    found = Calibration().measure(subject(Calibration(), kind, items=ITEMS[:1])).scores["ece"].measurement()
    assert 0 <= found.value <= 1
    assert found.low == found.high == found.value


def test_bins_have_their_lower_edge() -> None:
    assert [binned(edge, 1.0, 4)[:, 0].argmax() for edge in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0, 1, 2, 3, 3]
