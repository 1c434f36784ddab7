"""How far a measured mean can be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.randomness import generator

_RESAMPLES = 2000


@dataclass(frozen=True)
class Measurement:
    """A mean with its 95 % interval and the number of items behind it."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        """Return a plain mapping, for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def proportion(successes: int, n: int) -> Measurement:
    """Return a proportion with Wilson's 95 % score interval, which holds near 0 and 1 too.

    >>> proportion(8, 10)
    Measurement(value=0.8, low=0.490..., high=0.943..., n=10)
    """
    if n == 0:
        return Measurement(float("nan"), float("nan"), float("nan"), 0)
    z = 1.959963984540054
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return Measurement(share, max(0.0, centre - reach), min(1.0, centre + reach), n)


def bootstrap_mean(values: Sequence[float], weights: Sequence[float] | None = None, *, seed: int = 0) -> Measurement:
    """Return a (weighted) mean with its bootstrap 95 % interval, resampling the items.

    Args:
        values: one value an item.
        weights: one weight an item, such as its number of tokens; equal by default.
        seed: of the resampling.

    >>> bootstrap_mean([1.0, 1.0, 1.0])
    Measurement(value=1.0, low=1.0, high=1.0, n=3)
    """
    if not len(values):
        return Measurement(float("nan"), float("nan"), float("nan"), 0)
    items = np.asarray(values, dtype=np.float64)
    mass = np.ones_like(items) if weights is None else np.asarray(weights, dtype=np.float64)
    draws = generator(seed, "bootstrap").integers(0, len(items), size=(_RESAMPLES, len(items)))
    means = (items * mass)[draws].sum(1) / mass[draws].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Measurement(float((items * mass).sum() / mass.sum()), float(low), float(high), len(items))
