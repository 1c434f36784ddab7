"""Arrays that serve one block after another."""

import torch
from torch import Tensor


class Scratch:
    """Gives out arrays `[positions, vocabulary]` for a block, and the same ones for the next.

    The memory stays in the cache, and the operating system is asked for it once; fresh memory for every step of
    every block takes about as long as the arithmetic.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._arrays: list[Tensor] = []
        self._positions = self._taken = 0

    def start(self, positions: int) -> None:
        """Take everything back, for a block of so many positions."""
        self._positions, self._taken = positions, 0

    def array(self) -> Tensor:
        """Return one more array, its content undefined."""
        if self._taken == len(self._arrays):
            self._arrays.append(torch.empty_like(self._like))
        self._taken += 1
        return self._arrays[self._taken - 1][: self._positions]
