"""The scaling law that lines are fitted with."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import curve_fit

LEAST = 4
"""Points: one more than the law has parameters."""


@dataclass(frozen=True)
class PowerLaw:
    """L(x) = (x_c / x)^α + L_0, each parameter with its standard error."""

    scale: float
    """x_c."""
    exponent: float
    """α."""
    exponent_error: float
    floor: float
    """L_0: what is left of the loss at endless x."""
    floor_error: float
    residual: float
    """Root mean square of what the law does not explain, in the unit of L."""

    def at(self, x: float) -> float:
        """The law at a place."""
        return float((self.scale / x) ** self.exponent + self.floor)


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    """Fit L(x) = (x_c / x)^α + L_0 by least squares, with L_0 ≥ 0.

    Args:
        x: sizes, such as numbers of weights or rows.
        y: a loss at each, falling with x.

    Returns:
        The law; `None` where there are fewer than 4 points, or no law fits them (they do not fall).

    Reference: Kaplan et al. 2020 (arXiv 2001.08361), Eq. 1.1, with a floor as in Henighan et al. 2020
    (arXiv 2010.14701), Eq. 1.1.

    >>> law = power_law([1, 2, 4, 8, 16], [(10 / n) ** 0.5 + 0.3 for n in [1, 2, 4, 8, 16]])
    >>> round(law.scale, 3), round(law.exponent, 3), round(law.floor, 3)
    (10.0, 0.5, 0.3)
    """
    sizes, losses = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(sizes) < LEAST or not np.isfinite(losses).all() or np.polyfit(np.log(sizes), losses, 1)[0] >= 0:
        return None
    centre = np.log(sizes).mean()

    # The height of the power at the middle size is better determined than x_c, which lies far outside.
    def law(log_sizes: NDArray, height: float, exponent: float, floor: float) -> NDArray:
        return height * np.exp(-exponent * (log_sizes - centre)) + floor

    lowest = float(losses.min())
    begin = (float(losses.max()) - 0.5 * lowest, 0.5, 0.5 * lowest)
    try:
        found, spread = curve_fit(
            law, np.log(sizes), losses, begin, bounds=([0, 1e-3, 0], [np.inf, 10, max(lowest, 1e-12)]), max_nfev=20_000
        )
    except RuntimeError:  # it does not settle
        return None
    height, exponent, floor = map(float, found)
    errors = np.sqrt(np.diag(spread))
    residual = float(np.sqrt(np.mean((law(np.log(sizes), *found) - losses) ** 2)))
    scale = float(np.exp(centre + np.log(height) / exponent)) if height > 0 else 0.0
    return PowerLaw(scale, exponent, float(errors[1]), floor, float(errors[2]), residual)
