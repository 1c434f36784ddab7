"""Whether two models differ on the same items: paired bootstrap, paired permutation test, and Holm's correction."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import InputError
from tutelage.evaluation.score import Score, Sums, resampled
from tutelage.randomness import generator

PERMUTATIONS = 9999
"""Random exchanges of the permutation test; where there are fewer than these altogether, all are taken."""
_CELLS = 4_000_000
"""Numbers held at a time."""


@dataclass(frozen=True)
class Difference:
    """How much higher the first of two models is than the second, on the same items."""

    value: float
    """First minus second, in the unit of the metric."""
    low: float
    high: float
    """95 % interval of the paired bootstrap."""
    p_value: float
    """Two-sided, of the paired permutation test."""
    n: int
    """Items."""


def paired_difference(first: Score, second: Score, *, seed: int = 0) -> Difference:
    """Compare two models' scores on the same items.

    Both resample what the scores keep, each item's row, and let the score's reduction make the value of the sums. So
    they hold for means as for BLEU, perplexity or calibration errors.

    Formula: the interval is that of v(Σ_i n_i a_i) − v(Σ_i n_i b_i) with the same draw n of items for both. The
    p-value is the share of exchanges (a_i ↔ b_i, each item by a coin) with at least the observed |v(Σ a) − v(Σ b)|;
    for a plain mean that is the sign-flip test. Of random exchanges it is (1 + count) / (1 + exchanges).

    Args:
        first: of one model.
        second: of the other, by the same protocol.
        seed: of the draws.

    Raises:
        InputError: the items differ, or the score keeps none.

    Reference: Noreen 1989 for the exchanges; Koehn 2004, "Statistical significance tests for machine translation
    evaluation", for the paired bootstrap.

    >>> a, b = (Score.of(dict(enumerate_), unit="%", better="higher") for enumerate_ in
    ...         ([("x", 1.0), ("y", 2.0)], [("x", 0.0), ("y", 0.0)]))
    >>> paired_difference(a, b).value, paired_difference(a, b).p_value
    (1.5, 0.5)
    """
    a, b = _aligned(first, second)
    draws = first.value_of(_draws(len(a), seed) @ a) - first.value_of(_draws(len(a), seed) @ b)
    low, high = np.nanquantile(draws, [0.025, 0.975]) if np.isfinite(draws).any() else (np.nan, np.nan)
    value = float(first.value_of(a.sum(0)) - first.value_of(b.sum(0)))
    return Difference(value, float(low), float(high), _permutation_p(first, a, b, value, seed), len(a))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values of several tests, so that the chance of any false alarm among them stays below the level.

    Formula: sorted upwards, p_(k) becomes the largest of (m − j + 1) p_(j) over j ≤ k, and at most 1.

    Args:
        p_values: of m tests, in any order.

    Reference: Holm 1979, "A simple sequentially rejective multiple test procedure".

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        corrected[at] = largest
    return corrected


def _aligned(first: Score, second: Score) -> tuple[Sums, Sums]:
    """The rows of both, item by item."""
    if not first.rows or not second.rows:
        raise InputError("this number is no sum over items, so there is nothing to pair; compare the intervals")
    if first.rows.keys() != second.rows.keys():
        extra, missing = first.rows.keys() - second.rows.keys(), second.rows.keys() - first.rows.keys()
        example = sorted(extra | missing)[0]
        raise InputError(
            f"the items differ: {len(extra)} are in the first alone, {len(missing)} in the second alone (such as "
            f"{example}); evaluate both on the same items"
        )
    rows = [[scores[item] for item in first.rows] for scores in (first.rows, second.rows)]
    return np.asarray(rows[0], dtype=np.float64), np.asarray(rows[1], dtype=np.float64)


@lru_cache(maxsize=2)
def _draws(items: int, seed: int) -> Sums:
    return resampled(items, seed)


def _permutation_p(score: Score, a: Sums, b: Sums, observed: float, seed: int) -> float:
    """Two-sided p-value of exchanging the models' rows item by item."""
    if not np.isfinite(observed):
        return float("nan")
    whole, gap, least = a.sum(0) + b.sum(0), b - a, abs(observed) * (1 - 1e-9)
    exact = 2 ** len(a) <= PERMUTATIONS + 1 if len(a) < 64 else False
    reached = total = 0
    for swaps in _every_exchange(len(a)) if exact else _random_exchanges(len(a), seed):
        sums = a.sum(0) + swaps @ gap
        reached += int((np.abs(score.value_of(sums) - score.value_of(whole - sums)) >= least).sum())
        total += len(swaps)
    return reached / total if exact else (1 + reached) / (1 + total)


def _every_exchange(items: int) -> Iterator[NDArray[np.float64]]:
    yield (np.arange(2**items)[:, None] >> np.arange(items) & 1).astype(np.float64)


def _random_exchanges(items: int, seed: int) -> Iterator[NDArray[np.float64]]:
    draws, left = generator(seed, "permutation"), PERMUTATIONS
    while left:
        size = min(left, max(1, _CELLS // items))
        yield draws.integers(0, 2, size=(size, items)).astype(np.float64)
        left -= size
