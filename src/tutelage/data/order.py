"""The order of rows: an endless shuffled stream that can be entered at any step."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tutelage.errors import InputError


@lru_cache(maxsize=4)
def _permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch]))).permutation(rows)


@dataclass(frozen=True)
class Order:
    """Which rows each optimiser step takes: one permutation of all rows an epoch, one after the other.

    Batches run across the end of an epoch, so every batch is full and every row comes exactly once an
    epoch. The rows of a step depend on nothing but the step: resuming needs no state.

    Args:
        rows: number of rows, at least 1.
        seed: decides the permutations, at least 0.
        shuffle: `False` takes the rows in their own order in every epoch.

    Raises:
        InputError: there are no rows, or the seed is negative.

    >>> Order(rows=5, seed=0, shuffle=False).batch(step=1, size=3)
    [3, 4, 0]
    """

    rows: int
    seed: int
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.rows < 1 or self.seed < 0:
            raise InputError(f"an order needs rows and a seed of at least 0 (got {self.rows} rows, seed {self.seed})")

    def batch(self, step: int, size: int) -> list[int]:
        """Row numbers of one optimiser step.

        Args:
            step: the step, from 0.
            size: rows a step, at least 1; the same at every step.

        Returns:
            `size` row numbers from 0 to `rows` - 1.
        """
        position, end = step * size, (step + 1) * size
        taken: list[int] = []
        while position < end:
            epoch, start = divmod(position, self.rows)
            stop = min(self.rows, start + end - position)
            taken.extend(self._epoch_rows(epoch, start, stop))
            position += stop - start
        return taken

    def epoch(self, step: int, size: int) -> float:
        """Epochs behind the first `step` steps.

        >>> Order(rows=10, seed=0).epoch(step=3, size=5)
        1.5
        """
        return step * size / self.rows

    def steps(self, epochs: float, size: int) -> int:
        """Steps that it takes until `epochs` epochs have passed (the last batch may go beyond).

        >>> Order(rows=10, seed=0).steps(epochs=2, size=8)
        3
        """
        rows = round(epochs * self.rows, 6)  # 0.1 of 30 is 3, not 3.0000000000000004
        return max(1, math.ceil(rows / size))

    def _epoch_rows(self, epoch: int, start: int, stop: int) -> list[int]:
        if not self.shuffle:
            return list(range(start, stop))
        return _permutation(self.rows, self.seed, epoch)[start:stop].tolist()
