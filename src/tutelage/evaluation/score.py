"""What a metric finds: a number over items that can be resampled and compared item by item, and curves to draw."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.evaluation.intervals import Measurement, proportion
from tutelage.randomness import generator

Better = Literal["higher", "lower", "neither"]
Sums = NDArray[np.float64]
Reduction = Callable[[Sums], Sums]

RESAMPLES = 2000


def _mean(sums: Sums) -> Sums:
    return sums[..., 0] / sums[..., 1]


def _perplexity(sums: Sums) -> Sums:
    return np.exp(sums[..., 0] / sums[..., 1])


def _of_each_seed(sums: Sums) -> Sums:
    """A corpus metric's sums by seed, `[…, seeds, statistics]`: the first two columns count items and items × seeds."""
    counted = sums[..., :2].reshape(-1, 2).max(0)
    return sums[..., 2:].reshape(*sums.shape[:-1], round(counted[1] / counted[0]), -1)


def _bleu(sums: Sums) -> Sums:
    """sacrebleu's corpus BLEU with its `exp` smoothing, from lengths, matches and totals by order; mean over seeds."""
    each = _of_each_seed(sums)
    length, reference = each[..., 0], each[..., 1]
    matches, totals = np.split(each[..., 2:], 2, axis=-1)
    missed = np.cumsum(matches == 0, axis=-1)
    precisions = np.where(matches == 0, 0.5**missed, matches) / totals
    penalty = np.exp(np.minimum(0.0, 1.0 - reference / length))
    whole = penalty * np.exp(np.log(precisions).mean(-1))
    something = matches.any(-1) & totals.all(-1)
    return 100.0 * np.where(something, whole, 0.0).mean(-1)


def _chrf(sums: Sums) -> Sums:
    """sacrebleu's corpus chrF2 from counts in response, reference and both by order; mean over seeds."""
    counts = _of_each_seed(sums)
    response, reference, both = (counts[..., column::3] for column in range(3))
    seen = (response > 0) & (reference > 0)
    orders = np.maximum(seen.sum(-1), 1)
    precision, recall = (np.where(seen, both / total, 0.0).sum(-1) / orders for total in (response, reference))
    return 100.0 * np.where(precision > 0, 5 * precision * recall / (4 * precision + recall), 0.0).mean(-1)


def _ece(sums: Sums) -> Sums:
    """Expected calibration error from each bin's (count, confidence, right)."""
    count, confidence, right = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    return np.abs(confidence - right).sum(-1) / count.sum(-1)


def _excess(sums: Sums) -> Sums:
    """By how much the first total exceeds the second, %."""
    return 100.0 * (sums[..., 0] - sums[..., 1]) / sums[..., 1]


def _block_efficiency(sums: Sums) -> Sums:
    """Tokens a call at the mean acceptance, from Σ acceptance, positions, and positions × drafted tokens."""
    rate = sums[..., 0] / sums[..., 1]
    drafted = sums[..., 2] / sums[..., 1]
    return np.where(rate < 1.0, (1.0 - rate ** (drafted + 1.0)) / (1.0 - rate), drafted + 1.0)


REDUCTIONS: dict[str, Reduction] = {
    "mean": _mean,
    "perplexity": _perplexity,
    "bleu": _bleu,
    "chrf": _chrf,
    "ece": _ece,
    "excess": _excess,
    "block_efficiency": _block_efficiency,
}
"""How the sums of the items' rows become the value, by name: `[…, columns]` to `[…]`, for many resamples at once.

`mean` is the first column over the second (a total and its weight). A metric with another shape adds its own here.
"""


@dataclass(frozen=True)
class Score:
    """One number of one model on one task.

    It keeps a row of figures for each item, whose sums give the value. So its interval comes from resampling
    items, and two models' scores on the same items can be compared item by item.
    """

    rows: Mapping[str, Sequence[float]]
    """For each item (its place in the data) the figures that are summed; by default a value and its weight."""
    unit: str
    """`%`, `nats a token`, `tokens`, …; empty for a bare number."""
    better: Better
    """Which way is better; `neither` for what only describes, such as length."""
    reduction: str = "mean"
    """A name in `REDUCTIONS`."""
    by_seed: Sequence[float] = ()
    """The value at each seed of the decoding, where there are several."""
    known: Measurement | None = None
    """The value, where it is no function of sums over items (distinct n-grams of a corpus); `rows` is empty then."""

    @classmethod
    def of(
        cls,
        values: Mapping[str, float],
        *,
        unit: str,
        better: Better,
        weights: Mapping[str, float] | None = None,
        by_seed: Sequence[float] = (),
    ) -> "Score":
        """A (weighted) mean of one value an item.

        >>> Score.of({"a": 1.0, "b": 0.0}, unit="%", better="higher").measurement().value
        0.5
        """
        mass = weights or dict.fromkeys(values, 1.0)
        return cls({item: (value * mass[item], mass[item]) for item, value in values.items()}, unit, better,
                   by_seed=by_seed)  # fmt: skip

    @classmethod
    def over_seeds(cls, seeds: Sequence[Mapping[str, float]], *, unit: str, better: Better) -> "Score":
        """The mean over items of each item's mean over seeds, with the value of each seed beside it.

        >>> score = Score.over_seeds([{"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 1.0}], unit="%", better="higher")
        >>> score.measurement().value, score.by_seed
        (0.75, [0.5, 1.0])
        """
        items = {place: sum(values[place] for values in seeds) / len(seeds) for place in seeds[0]}
        by_seed = [sum(values.values()) / len(values) for values in seeds]
        return cls.of(items, unit=unit, better=better, by_seed=by_seed)

    def value_of(self, sums: Sums) -> Sums:
        """The value for sums over items, `[…, columns]` to `[…]`."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return REDUCTIONS[self.reduction](sums)

    def measurement(self, seed: int = 0) -> Measurement:
        """The value with its 95 % interval, by resampling items; a plain share of items has Wilson's instead.

        Of ten answers that are all wrong no resample has a right one, and yet the share is not known to be 0.
        """
        if self.known is not None:
            return self.known
        if not self.rows:
            return Measurement(float("nan"), float("nan"), float("nan"), 0)
        rows = np.asarray(list(self.rows.values()), dtype=np.float64)
        if self.reduction == "mean" and self.unit == "%" and set(map(tuple, rows)) <= {(0.0, 1.0), (100.0, 1.0)}:
            share = proportion(int(rows[:, 0].sum() / 100), len(rows))
            return Measurement(100 * share.value, 100 * share.low, 100 * share.high, share.n)
        draws = self.value_of(resampled(len(rows), seed) @ rows)
        low, high = np.nanquantile(draws, [0.025, 0.975]) if np.isfinite(draws).any() else (np.nan, np.nan)
        return Measurement(float(self.value_of(rows.sum(0))), float(low), float(high), len(rows))

    def as_dict(self) -> dict[str, Any]:
        """For JSON, the measurement among it and the items left out."""
        found = {**self.measurement().as_dict(), "unit": self.unit, "better": self.better, "reduction": self.reduction}
        return found | ({"by_seed": list(self.by_seed)} if len(self.by_seed) > 1 else {})


def resampled(items: int, seed: int = 0) -> Sums:
    """How often each item is in each bootstrap sample, `[RESAMPLES, items]`."""
    draws = generator(seed, "bootstrap").integers(0, items, size=(RESAMPLES, items))
    counts = np.zeros((RESAMPLES, items))
    np.add.at(counts, (np.arange(RESAMPLES)[:, None], draws), 1.0)
    return counts


@dataclass(frozen=True)
class Curve:
    """Something to draw: y over x, with an interval where there is one."""

    x: Sequence[float]
    y: Sequence[float]
    x_title: str
    y_title: str
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    n: Sequence[int] | None = None
    """Items behind each point."""

    @classmethod
    def of(cls, x: Sequence[float], points: Sequence[Measurement], x_title: str, y_title: str) -> "Curve":
        """Draw measurements, each over its x."""
        y, low, high, n = ([getattr(point, name) for point in points] for name in ("value", "low", "high", "n"))
        return cls(x, y, x_title, y_title, low, high, n)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = {"x": list(self.x), "y": list(self.y)}
        found |= {"x_title": self.x_title, "y_title": self.y_title}
        return found | {name: list(column) for name in ("low", "high", "n") if (column := getattr(self, name))}


@dataclass(frozen=True)
class Findings:
    """What one metric found: scores and curves by name."""

    scores: Mapping[str, Score] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    notes: Sequence[str] = ()
    """What a reader of the numbers has to know, a line each."""
