"""Whether a model's confidence in its choices is what it should be."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Count
from tutelage.evaluation.intervals import proportion
from tutelage.evaluation.metrics.base import Metric
from tutelage.evaluation.metrics.choices import LeadingSpace, choice_scores
from tutelage.evaluation.score import Curve, Findings, Score


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Calibration(Metric):
    """Expected calibration error over an item's choices, with what belongs beside it.

    Formula: the probabilities of an item's choices (each the product over its tokens) are renormalised to r; the
    confidence is max r. With equal bins of the confidence, `ece` is Σ_b |Σ_{i in b} confidence_i − right_i| / n.
    `label_accuracy` is the share of right choices (%), `brier` the mean of Σ_c (r_c − 1[c right])², `label_nll` the
    mean of −log r of the right choice (nats). The curve `reliability` has accuracy over mean confidence, a point a
    bin that is not empty, with Wilson intervals.

    Use: zero-shot SST2 and BoolQ, as MiniLLM does. With k choices no confidence is below 1/k. ECE cannot be negative,
    so with few items it is too high, in each bootstrap sample once more: compare models on the same items, and look
    at `brier` and `label_nll`, which have no bins.

    Reference: Guo et al. 2017, Eq. 3; MiniLLM (arXiv 2306.08543), which does not tell its number of bins.
    """

    name: Literal["calibration"] = "calibration"
    bins: Count = 10
    """Bins of equal width, each with its lower edge, the last with its upper one too. ECE depends on their number."""
    leading_space: LeadingSpace = "auto"
    """As of `choices`."""

    uses: ClassVar = frozenset({"choices"})

    def measure(self, subject) -> Findings:
        """Score every choice of every item."""
        answers = [item.answer for item in subject.items if item.answer is not None]
        columns = calibration_of(choice_scores(subject, self.leading_space), answers)
        rows = np.stack([binned(c, r, self.bins) for c, r in zip(columns["confidence"], columns["right"], strict=True)])
        places = subject.places
        scores = {
            "ece": Score(dict(zip(places, rows.reshape(len(rows), -1).tolist(), strict=True)), "", "lower", "ece"),
            "label_accuracy": Score.of(
                {place: 100.0 * right for place, right in zip(places, columns["right"], strict=True)},
                unit="%",
                better="higher",
            ),
        }
        for name, key, unit in (("brier", "brier", ""), ("label_nll", "nll", "nats")):
            scores[name] = Score.of(dict(zip(places, columns[key], strict=True)), unit=unit, better="lower")
        return Findings(scores, {"reliability": _reliability(rows.sum(0))}, [f"ece has {self.bins} equal-width bins"])


def calibration_of(scores: Sequence[Sequence[float]], answers: Sequence[int]) -> dict[str, list[float]]:
    """Return each item's `confidence`, whether it is `right` (1 or 0), `brier` and `nll`.

    Args:
        scores: log-probability of each choice of each item, nats.
        answers: which one is right.

    >>> import math
    >>> found = calibration_of([[math.log(0.06), math.log(0.02)]], [1])
    >>> {name: round(values[0], 4) for name, values in found.items()}
    {'confidence': 0.75, 'right': 0.0, 'brier': 1.125, 'nll': 1.3863}
    """
    found: dict[str, list[float]] = {"confidence": [], "right": [], "brier": [], "nll": []}
    for values, answer in zip(scores, answers, strict=True):
        logp = np.asarray(values) - np.logaddexp.reduce(values)
        share = np.exp(logp)
        found["confidence"].append(float(share.max()))
        found["right"].append(float(share.argmax() == answer))
        found["brier"].append(float(np.square(share - np.eye(len(share))[answer]).sum()))
        found["nll"].append(float(-logp[answer]))
    return found


def binned(confidence: float, right: float, bins: int) -> np.ndarray:
    """Put one item into its bin: `[bins, 3]` with (1, confidence, right) there and zeros elsewhere.

    >>> binned(0.5, 1.0, 2).tolist()
    [[0.0, 0.0, 0.0], [1.0, 0.5, 1.0]]
    """
    table = np.zeros((bins, 3))
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    table[np.searchsorted(inner, confidence, side="right")] = 1.0, confidence, right
    return table


def _reliability(table: np.ndarray) -> Curve:
    counts, confidence, right = table[table[:, 0] > 0].T
    shares = [proportion(round(hits), round(n)) for hits, n in zip(right, counts, strict=True)]
    return Curve.of((confidence / counts).tolist(), shares, "confidence", "accuracy")
