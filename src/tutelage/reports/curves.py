"""What a report draws, as Plotly takes it: traces and axes, with the page's own names for colours."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.evaluation.record import Record
from tutelage.reports.run_files import RunFiles
from tutelage.reports.wording import unit
from tutelage.training.progress import PERCENT

MOST_POINTS = 2000
"""Points of a curve that a page holds."""
COLOURS = 6
"""Colours that the page has for curves; more curves begin again, dashed."""
_SMOOTH_FROM = 60  # steps from which on a curve is drawn smooth, with its own values faint behind it
_BINS = 120  # of the plot of where the time goes
_LEAST_DIGITS = 5

_TROUBLE = (
    "Signs of trouble",
    ["repetition", "prompt_overlap", "empty", "teacher_mass_outside"],
    "share",
    {"showlegend": True},
    "Near zero is well. Share of repeated pieces, of the response copied from the prompt, of empty responses, and of "
    "the teacher's probability on tokens that the student does not have.",
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Plot:
    """One plot."""

    title: str
    traces: Sequence[Mapping[str, Any]]
    x_title: str = "step"
    y_title: str = ""
    layout: Mapping[str, Any] = field(default_factory=dict)
    """What Plotly is told besides."""
    note: str = ""
    """A sentence below it."""


def thinned(x: Floats, y: Floats, most: int = MOST_POINTS) -> tuple[Floats, Floats]:
    """Leave out points of a long curve so that it looks the same: each bin keeps its lowest and its highest.

    >>> x = np.arange(10_000.0)
    >>> [len(part) <= 100 for part in thinned(x, np.sin(x), 100)], thinned(x, 0 * x + (x == 777), 100)[1].max()
    ([True, True], np.float64(1.0))
    """
    if len(x) <= most:
        return x, y
    kept = {0, len(x) - 1}
    for places in np.array_split(np.arange(len(x)), (most - 2) // 2):
        values = y[places]
        if np.isfinite(values).any():
            kept |= {int(places[np.nanargmin(values)]), int(places[np.nanargmax(values)])}
    order = sorted(kept)
    return x[order], y[order]


def smoothed(y: Floats) -> Floats:
    """A running mean over a fiftieth of a curve, values that are not finite left out; not a number where all are."""
    half = max(2, len(y) // 100)
    finite = np.isfinite(y)
    sums, counts = (
        np.concatenate([[0.0], np.cumsum(part)]) for part in (np.where(finite, y, 0.0), finite.astype(float))
    )
    first = np.maximum(np.arange(len(y)) - half, 0)
    last = np.minimum(np.arange(len(y)) + half + 1, len(y))
    seen = counts[last] - counts[first]
    return np.divide(sums[last] - sums[first], seen, out=np.full(len(y), np.nan), where=seen > 0)


def training_plots(runs: Sequence[RunFiles]) -> list[Plot]:
    """Loss, divergence, lengths, gradient norm, health and learning rate over the steps of one run or several."""
    wanted: list[tuple[str, Sequence[str], str, dict[str, Any], str]] = [
        ("Loss", ["loss"], "loss", {}, ""),
        ("Divergence from the teacher", ["divergence"], "nats a token", {}, "On the text of the step."),
        ("Length of responses", ["response_length"], "tokens", {}, ""),
        ("Gradient norm", _like(runs, "gradient_norm"), "before clipping", {"yaxis": {"type": "log"}}, ""),
        ("Reward", ["reward"], "", {}, ""),
        ("Learning rate", ["learning_rate"], "", {}, ""),
        _TROUBLE if len(runs) == 1 else ("Repetition", ["repetition"], "share of pieces", {}, ""),
        ("Responses that end by themselves", ["ended"], "share", {"yaxis": {"range": [0, 1.05]}}, ""),
    ]
    plots = [_of_steps(runs, *entry) for entry in wanted]
    return [plot for plot in plots if plot.traces]


def evaluation_plots(runs: Sequence[RunFiles]) -> list[Plot]:
    """Each metric of the evaluations over the steps, with its 95 % interval; where a run has more than two."""
    if max(len(run.evaluations) for run in runs) < 3:
        return []
    names = dict.fromkeys(name for run in runs for found in run.evaluations for name in found["metrics"])
    plots = []
    for name in names:
        scale = 100.0 if name in PERCENT else 1.0
        traces: list[dict[str, Any]] = []
        for place, run in enumerate(runs):
            points = [(e["step"], e["metrics"][name]) for e in run.evaluations if name in e["metrics"]]
            columns = {key: [scale * float(m[key]) for _, m in points] for key in ("value", "low", "high")}
            steps = [step for step, _ in points]
            traces += _banded(run.name, place, steps, columns["value"], columns["low"], columns["high"])
        plots.append(Plot(name, traces, "step", "%" if scale > 1 else unit(name), note="Bands: 95 % intervals."))
    return plots


def time_plot(run: RunFiles) -> Plot | None:
    """Where the seconds of a step go, phase by phase."""
    phases = dict.fromkeys(phase for step in run.steps for phase in step["seconds"])
    if not phases:
        return None
    parts = np.array_split(np.arange(len(run.steps)), min(_BINS, len(run.steps)))
    traces, totals = [], {}
    for place, phase in enumerate(phases):
        seconds = np.array([step["seconds"].get(phase, 0.0) for step in run.steps])
        totals[phase] = seconds.sum()
        traces.append(
            {
                **_line(phase, place, [float(run.steps[part[-1]]["step"]) for part in parts],
                        [float(seconds[part].mean()) for part in parts]),
                "stackgroup": "time",
            }
        )  # fmt: skip
    whole = sum(totals.values()) or 1.0
    shares = ", ".join(f"{phase} {100 * seconds / whole:.0f} %" for phase, seconds in totals.items())
    return Plot("Where the time goes", traces, "step", "seconds a step", note=f"{shares} of {whole:,.0f} seconds.")


def task_plots(records: Mapping[str, Record]) -> list[Plot]:
    """The curves that `tutelage evaluate` found, one plot each with all models that have it.

    Args:
        records: of one task, by the name of the run.
    """
    names = dict.fromkeys(name for record in records.values() for name in record.curves)
    plots = []
    for name in names:
        traces: list[dict[str, Any]] = []
        titles = ("", "")
        for place, (run, record) in enumerate(records.items()):
            if name in record.curves:
                curve = record.curves[name]
                titles = (curve["x_title"], curve["y_title"])
                traces += _banded(run, place, curve["x"], curve["y"], curve.get("low"), curve.get("high"), True)
        layout = {"shapes": [_DIAGONAL]} if "reliability" in name or "calibration" in name else {}
        plots.append(Plot(name.replace("_", " "), traces, *titles, layout=layout))
    return plots


_DIAGONAL = {"type": "line", "x0": 0, "y0": 0, "x1": 1, "y1": 1, "line": {"dash": "dot", "color": "var(--muted)"}}


def _like(runs: Iterable[RunFiles], prefix: str) -> list[str]:
    return list(dict.fromkeys(name for run in runs for step in run.steps for name in step if name.startswith(prefix)))


def _of_steps(
    runs: Sequence[RunFiles], title: str, names: Sequence[str], y_title: str, layout: dict[str, Any], note: str
) -> Plot:
    """Columns of the metrics over the steps; of several runs the smooth curves only."""
    traces: list[dict[str, Any]] = []
    for place, (run, name) in enumerate((run, name) for run in runs for name in names):
        found = [(step["step"], step[name]) for step in run.steps if name in step]
        if not found or not any(y for _, y in found):
            continue
        x, y = np.array(found).T
        label = run.name if len(names) == 1 else name if len(runs) == 1 else f"{run.name} {name}"
        smooth = len(x) >= _SMOOTH_FROM
        if smooth and len(runs) == 1:
            raw = _line(label, place, *_columns(*thinned(x, y)))
            traces.append({**raw, "opacity": 0.3, "showlegend": False, "hoverinfo": "skip",
                           "line": {**raw["line"], "width": 1}})  # fmt: skip
        traces.append(_line(label, place, *_columns(*thinned(x, smoothed(y) if smooth else y))))
    return Plot(title, traces, "step", y_title, layout, note)


def _columns(x: Floats, y: Floats) -> tuple[list[float], list[float | None]]:
    return x.tolist(), _rounded(y.tolist())


def _rounded(values: Iterable[float]) -> list[float | None]:
    """For JSON: as many digits as a screen shows; nothing where a value is not finite."""
    return [float(f"{value:.{_LEAST_DIGITS}g}") if isfinite(value) else None for value in values]


def _colour(place: int) -> str:
    return f"var(--series-{place % COLOURS + 1})"


def _line(name: str, place: int, x: Sequence[float], y: Sequence[float | None]) -> dict[str, Any]:
    dash = ("solid", "dash", "dot")[place // COLOURS % 3]
    line = {"color": _colour(place), "width": 2, "dash": dash}
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [at if isfinite(at) else None for at in x],
        "y": list(y),
        "line": line,
    }


def _banded(
    name: str,
    place: int,
    x: Sequence[float],
    y: Sequence[float],
    low: Sequence[float] | None,
    high: Sequence[float] | None,
    markers: bool = False,
) -> list[dict[str, Any]]:
    """A curve with its interval as a band behind it."""
    line = _line(name, place, x, _rounded(map(float, y)))
    line["mode"] = "lines+markers" if markers or len(x) < 20 else "lines"
    if low is None or high is None or len(x) < 2:
        return [line]
    edge = {**_line(name, place, x, _rounded(map(float, high))), "showlegend": False, "hoverinfo": "skip"}
    edge["line"] = {"width": 0, "color": _colour(place)}
    band = {
        **edge,
        "y": _rounded(map(float, low)),
        "fill": "tonexty",
        "fillcolor": _colour(place),
        "fill_opacity": 0.15,
    }
    return [edge, band, line]
