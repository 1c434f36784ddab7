"""The picture behind forward and reverse KL: one Gaussian fitted to a mixture of two."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from tutelage.reports.render import number
from tutelage.studies.figures import Figure, Outcome, Series, TextTable

Density = NDArray[np.float64]
PLACES = np.linspace(-12.0, 12.0, 4801)


def run(settings: Mapping[str, Any]) -> list[Outcome]:
    """Fit a Gaussian to a mixture under each divergence; `tutelage study` calls it.

    Args:
        settings: `weights`, `means` and `deviations` of the mixture, and `betas` of the Jensen–Shannon divergences.
    """
    teacher = mixture(settings["weights"], settings["means"], settings["deviations"])
    kinds: dict[str, Callable[[Density, Density], float]] = {"KL(teacher ‖ student)": lambda q, p: kl(p, q)}
    kinds |= {f"JSD({beta})": lambda q, p, beta=beta: jsd(q, p, beta) for beta in settings["betas"]}
    kinds |= {"KL(student ‖ teacher)": kl}
    fits = {name: fitted(divergence, teacher) for name, divergence in kinds.items()}
    shown = slice(1600, 3201, 10)
    curves = {"teacher": teacher} | {name: gaussian(*fit) for name, fit in fits.items()}
    series = [Series(name, PLACES[shown].tolist(), curve[shown].tolist()) for name, curve in curves.items()]
    rows = [
        [
            name,
            number(mean),
            number(deviation),
            *(number(other(gaussian(mean, deviation), teacher)) for other in kinds.values()),
        ]
        for name, (mean, deviation) in fits.items()
    ]
    head = ["fitted under", "mean", "deviation", *kinds]
    values = {name: {"mean": mean, "deviation": deviation} for name, (mean, deviation) in fits.items()}
    return [
        Figure("densities", "One Gaussian fitted to a mixture of two", "x", "density", series),
        TextTable("fits", "The fits, and every divergence at each of them (nats)", head, rows, values=values),
    ]


def gaussian(mean: float, deviation: float) -> Density:
    """The density of a normal distribution at `PLACES`."""
    return np.exp(-0.5 * ((PLACES - mean) / deviation) ** 2) / (deviation * np.sqrt(2 * np.pi))


def mixture(weights: Sequence[float], means: Sequence[float], deviations: Sequence[float]) -> Density:
    """The density of a mixture of normal distributions at `PLACES`."""
    return sum((w * gaussian(m, d) for w, m, d in zip(weights, means, deviations, strict=True)), np.zeros_like(PLACES))


def kl(student: Density, teacher: Density) -> float:
    """KL(student ‖ teacher), by the trapezoidal rule.

    >>> round(kl(gaussian(1.0, 1.0), gaussian(0.0, 1.0)), 6)
    0.5
    """
    tiny = 1e-300
    gap = np.log(np.maximum(student, tiny)) - np.log(np.maximum(teacher, tiny))
    return float(np.trapezoid(student * gap, PLACES))


def jsd(student: Density, teacher: Density, beta: float) -> float:
    """β KL(teacher ‖ m) + (1 − β) KL(student ‖ m) with m = β teacher + (1 − β) student (GKD, Eq. 1)."""
    middle = beta * teacher + (1 - beta) * student
    return beta * kl(teacher, middle) + (1 - beta) * kl(student, middle)


def fitted(divergence: Callable[[Density, Density], float], teacher: Density) -> tuple[float, float]:
    """Mean and deviation of the Gaussian nearest to the teacher, the best of searches from several places."""

    def objective(point: NDArray[np.float64]) -> float:
        return divergence(gaussian(point[0], float(np.exp(point[1]))), teacher)

    begins = [(mean, np.log(deviation)) for mean in (-3.0, -1.0, 1.0, 3.0) for deviation in (0.7, 2.0)]
    bounds = [(-6.0, 6.0), (np.log(0.1), np.log(5.0))]
    searches = [minimize(objective, begin, method="L-BFGS-B", bounds=bounds) for begin in begins]
    best = min(searches, key=lambda search: search.fun)
    return float(best.x[0]), float(np.exp(best.x[1]))
