"""What the runs of a study found, and the tables and figures made of it."""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from tutelage.errors import InputError
from tutelage.evaluation.record import Record, load_records
from tutelage.reports.compare import Column, is_worse, ranked
from tutelage.reports.render import heading, number
from tutelage.reports.wording import in_words
from tutelage.studies.collecting import CurveOf, HeatmapOf, LineOf, Output, ScatterOf, TableOf
from tutelage.studies.figures import Figure, Heatmap, Outcome, Series, TextTable
from tutelage.studies.fits import LEAST, power_law
from tutelage.studies.plan import Label, Planned
from tutelage.studies.runner import state_of


@dataclass(frozen=True)
class Entry:
    """One run, and what is on record of it."""

    name: str
    kind: str
    settings: Mapping[str, Label]
    seed: int
    folder: Path
    status: str
    """`finished`, `diverged` or `missing`."""
    records: Mapping[str, Record]

    def found(self, metric: str) -> Mapping[str, Any] | None:
        """What a record says of `task.metric`; `None` where it does not."""
        task, _, name = metric.partition(".")
        return self.records[task].metrics.get(name) if task in self.records else None

    def value(self, metric: str) -> float | None:
        """The value of `task.metric`; or the models' `parameters`, `teacher_parameters`."""
        if metric in ("parameters", "teacher_parameters"):
            record = next(iter(self.records.values()), None)
            model = record and (record.model if metric == "parameters" else record.teacher)
            return model["parameters"] if model else None
        found = self.found(metric)
        return None if found is None or found["value"] != found["value"] else found["value"]


def gathered(runs: Iterable[Planned]) -> list[Entry]:
    """What is on record of planned runs."""
    return [
        Entry(run.name, run.kind, run.settings, run.seed, run.folder, _status(run), load_records(run.folder))
        for run in runs
        if run.tasks
    ]  # fmt: skip


def _status(run: Planned) -> str:
    state = state_of(run)
    return "missing" if state is None else state["status"]


def outcome(output: Output, entries: Sequence[Entry]) -> Outcome:
    """Make one of the tables and figures that a study names."""
    chosen = [entry for entry in entries if _is_among(entry, output.only)]
    if output.kind == "table":
        return _table(output, chosen)
    if output.kind == "heatmap":
        return _heatmap(output, chosen, entries)
    if output.kind == "line":
        return _line(output, chosen, entries)
    if output.kind == "scatter":
        return _scatter(output, chosen)
    return _curve(output, chosen, entries)


def _is_among(entry: Entry, only: Mapping[str, Sequence[Label]]) -> bool:
    return all(entry.settings.get(axis) in values for axis, values in only.items())


def _by(entries: Iterable[Entry], key: Callable[[Entry], Any]) -> dict[Any, list[Entry]]:
    groups: dict[Any, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(key(entry), []).append(entry)
    return groups


def _values(entries: Iterable[Entry], metric: str, relative: Mapping[int, float] | None = None) -> list[float]:
    """The value of each seed, minus that of the reference of the same seed."""
    found = [(entry.seed, entry.value(metric)) for entry in entries if entry.status != "diverged"]
    if relative is None:
        return [value for _, value in found if value is not None]
    return [value - relative[seed] for seed, value in found if value is not None and seed in relative]


def _reference(output: HeatmapOf | LineOf, entries: Sequence[Entry]) -> dict[int, float] | None:
    """The value of the run that others are shown relative to, by seed."""
    if output.relative_to is None:
        return None
    same = [entry for entry in entries if entry.name == output.relative_to]
    if not same:
        raise InputError(f"collect.{output.name}: relative_to: no run '{output.relative_to}' in this study")
    found = {entry.seed: entry.value(output.metric) for entry in same}
    return {seed: value for seed, value in found.items() if value is not None}


def spread(values: Sequence[float], unit: str = "") -> str:
    """Mean, with the smallest and the largest value.

    >>> spread([1.0, 2.0, 6.0]), spread([]), spread([5.0])
    ('3.00 (1.00–6.00)', '–', '5.00')
    """
    if not values:
        return "–"
    ends = f" ({number(min(values), unit)}–{number(max(values), unit)})" if len(values) > 1 else ""
    return number(mean(values), unit) + ends


def _table(output: TableOf, entries: Sequence[Entry]) -> TextTable:
    shown = [e for e in entries if e.kind == "run" or (output.starts and any(map(e.found, output.metrics)))]
    rows = _by(shown, lambda entry: entry.name)
    columns = [_column(metric, entries, output.metrics) for metric in output.metrics]
    means = [
        {row: mean(values) for row, group in rows.items() if (values := _values(group, metric))}
        for metric in output.metrics
    ]
    places = [ranked({row: value for row, value in found.items() if rows[row][0].kind != "model"}, column.better)
              for found, column in zip(means, columns, strict=True)]  # fmt: skip

    def cell(row: str, at: int) -> str:
        column, group = columns[at], rows[row]
        failed = sum(entry.status == "diverged" for entry in group)
        values = _values(group, output.metrics[at])
        if not values:
            return "failed" if failed else "–"
        text = spread(values, column.unit)
        figure, blank, rest = text.partition(" ")
        best, second = places[at]
        figure = f"**{figure}**" if row in best else f"<u>{figure}</u>" if row in second else figure
        reference = means[at].get(output.baseline or "")
        worse = reference is not None and row != output.baseline and is_worse(means[at][row], reference, column.better)
        return figure + blank + rest + (" †" if worse else "") + (f" ({failed} failed)" if failed else "")

    body = [[row, *(cell(row, at) for at in range(len(columns)))] for row in rows]
    values = {row: {metric: _values(group, metric) for metric in output.metrics} for row, group in rows.items()}
    remarks = [_over_seeds(entries) + " Bold: best; underlined: second best, given models aside."]
    remarks += [f"†: worse than {output.baseline}."] if output.baseline else []
    return TextTable(output.name, output.title, ["", *map(heading, columns)], body, remarks, values)


def _column(metric: str, entries: Sequence[Entry], among: Sequence[str] = ()) -> Column:
    """A metric in words, with its unit; the task is named where several of `among` have the same words."""
    found = next((found for entry in entries if (found := entry.found(metric))), {"unit": "", "better": "neither"})
    task, _, name = metric.rpartition(".")
    alike = [other for other in among if other.rpartition(".")[2] == name]
    return Column(f"{in_words(name)} ({task})" if len(alike) > 1 else in_words(name), found["unit"], found["better"])


def _over_seeds(entries: Sequence[Entry]) -> str:
    count = len({entry.seed for entry in entries})
    return f"Mean over {count} seeds, smallest and largest in brackets." if count > 1 else "One seed."


def _heatmap(output: HeatmapOf, chosen: Sequence[Entry], entries: Sequence[Entry]) -> Heatmap:
    runs = [entry for entry in chosen if output.x in entry.settings and output.y in entry.settings]
    across, down = (list(dict.fromkeys(e.settings[axis] for e in runs)) for axis in (output.x, output.y))
    groups = _by(runs, lambda entry: (entry.settings[output.y], entry.settings[output.x]))
    reference, column = _reference(output, entries), _column(output.metric, entries)
    found = [[_values(groups.get((y, x), []), output.metric, reference) for x in across] for y in down]
    gain = f", gain over {output.relative_to}" if output.relative_to else ""
    return Heatmap(
        output.name,
        output.title,
        output.x,
        output.y,
        [str(x) for x in across],
        [str(y) for y in down],
        [[mean(values) if values else None for values in row] for row in found],
        [[spread(values, column.unit) for values in row] for row in found],
        [f"{_titled(column)}{gain}. {_over_seeds(runs)}"],
    )


def _line(output: LineOf, chosen: Sequence[Entry], entries: Sequence[Entry]) -> Figure:
    reference, column = _reference(output, entries), _column(output.metric, entries)
    runs = [entry for entry in chosen if entry.kind == "run"]
    series, notes = [], [_over_seeds(runs)]
    for name, group in _by(runs, lambda entry: str(entry.settings.get(output.series or "", column.name))).items():
        places = _by(group, lambda entry: _place(output, entry))
        points = sorted(
            (x, v) for x, g in places.items() if x is not None and (v := _values(g, output.metric, reference))
        )
        measured = _series(name, [x for x, _ in points], [values for _, values in points])
        series.append(measured)
        if output.fit is not None:
            fitted, note = _fit(measured, output)
            series += fitted
            notes.append(note)
    gain = f", gain over {output.relative_to}" if output.relative_to else ""
    return Figure(output.name, output.title, output.x_title or output.x, _titled(column) + gain, series,
                  output.log_x, output.log_y, notes=notes)  # fmt: skip


def _place(output: LineOf, entry: Entry) -> float | None:
    if output.x in ("parameters", "teacher_parameters"):
        return entry.value(output.x)
    at = entry.settings.get(output.x)
    if isinstance(at, str):
        raise InputError(f"collect.{output.name}: '{at}' on axis '{output.x}' is no number; give its values labels")
    return at


def _series(name: str, x: Sequence[float], values: Sequence[Sequence[float]]) -> Series:
    several = any(len(found) > 1 for found in values)
    low, high = ([end(found) for found in values] if several else None for end in (min, max))
    return Series(name, x, [mean(found) for found in values], low, high)


def _fit(series: Series, output: LineOf) -> tuple[list[Series], str]:
    law = power_law(series.x, series.y)
    if law is None:
        return [], f"{series.name}: no power law fits (it takes {LEAST} points that fall)."
    first, last = min(series.x), max(series.x)
    steps = [first * (last / first) ** (step / 40) for step in range(41)]
    note = (
        f"{series.name}: L(x) = ({law.scale:.3g} / x)^α + L₀ with α = {law.exponent:.3f} ± {law.exponent_error:.3f}, "
        f"L₀ = {law.floor:.3g} ± {law.floor_error:.2g} (standard errors of the fit); root mean square residual "
        f"{law.residual:.2g}."
    )
    return [Series(f"{series.name}, fit", steps, [law.at(x) for x in steps], fitted=True)], note


def _scatter(output: ScatterOf, entries: Sequence[Entry]) -> Figure:
    tasks = output.tasks or ("",)
    names = [[f"{task}.{axis}" if task else axis for task in tasks] for axis in (output.x, output.y)]
    x_title, y_title = (_titled(_column(found[0], entries)) for found in names)
    series = []
    for name, group in _by(entries, lambda entry: str(entry.settings.get(output.series or "", entry.name))).items():
        x, y, labels = [], [], []
        for label, cell in _by(group, lambda entry: str(entry.settings.get(output.along or "", ""))).items():
            for word, *axes in zip(_own_words(tasks), *names, strict=True):
                across, up = (_values(cell, axis) for axis in axes)
                if across and up:
                    x.append(mean(across))
                    y.append(mean(up))
                    labels.append(word or label)
        if x:
            series.append(Series(name, x, y, labels=labels))
    return Figure(output.name, output.title, x_title, y_title, series, points=True, notes=[_over_seeds(entries)])


def _own_words(tasks: Sequence[str]) -> list[str]:
    """Names of tasks without the words that all of them begin with.

    >>> _own_words(["temperature-0-3", "temperature-1-0"]), _own_words(["courier"])
    (['0-3', '1-0'], ['courier'])
    """
    words = [task.split("-") for task in tasks]
    shared = next((at for at, column in enumerate(zip(*words, strict=False)) if len(set(column)) > 1), 0)
    return ["-".join(found[shared:]) for found in words]


def _curve(output: CurveOf, chosen: Sequence[Entry], entries: Sequence[Entry]) -> Figure:
    titles = ["", in_words((output.logged or "").rpartition(".")[2])]
    if output.logged is not None:
        titles[0] = "step"

    def points(group: Sequence[Entry]) -> dict[float, list[tuple[int, float, float]]]:
        """The points of some runs with their seeds, those together that are averaged."""
        found: dict[float, list[tuple[int, float, float]]] = {}
        for entry in group:
            curve = _logged(entry, output) if output.logged else _recorded(entry, output)
            titles[:] = curve.get("x_title", titles[0]), curve.get("y_title", titles[1])
            for x, y in zip(curve["x"], curve["y"], strict=True):
                if y is not None and y == y:
                    found.setdefault(bisect_right(output.edges, x) if output.edges else x, []).append(
                        (entry.seed, x, y)
                    )
        return found

    reference = points([entry for entry in entries if entry.name == output.relative_to])
    level = {
        (at, seed): mean(y for own, _, y in found if own == seed)
        for at, found in reference.items()
        for seed in {seed for seed, _, _ in found}
    }
    series = []
    runs = [entry for entry in chosen if output.starts or entry.kind == "run"]
    for name, group in _by(runs, lambda entry: str(entry.settings.get(output.series, entry.name))).items():
        found = points(group)
        if output.relative_to is not None:
            found = {
                at: [(seed, x, y - level[at, seed]) for seed, x, y in several if (at, seed) in level]
                for at, several in found.items()
            }
        together = [found[at] for at in sorted(found) if found[at]]
        if together:
            across = [mean(x for _, x, _ in several) for several in together]
            series.append(_series(name, across, [[y for _, _, y in several] for several in together]))
    gain = f" (minus that of {output.relative_to})" if output.relative_to else ""
    return Figure(
        output.name, output.title, titles[0], titles[1] + gain, series, output.log_x, notes=[_over_seeds(runs)]
    )


def _recorded(entry: Entry, output: CurveOf) -> Mapping[str, Any]:
    record = entry.records.get(output.task or "")
    return {"x": [], "y": []} if record is None else record.curves.get(output.curve or "", {"x": [], "y": []})


def _logged(entry: Entry, output: CurveOf) -> Mapping[str, Any]:
    """A column of metrics.jsonl over steps, each point the mean of a window of the steps before it."""
    path = entry.folder / "metrics.jsonl"
    if not path.is_file():
        return {"x": [], "y": []}
    section, _, name = (output.logged or "").rpartition(".")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [(line["step"], line.get(section, {}) if section else line) for line in lines]
    found = [(step, row[name]["value"] if section else row[name]) for step, row in rows if name in row]
    kept = [(step, float(value)) for step, value in found]
    ends = range(output.window, len(kept) + 1, output.window)
    return {
        "x": [kept[end - 1][0] for end in ends],
        "y": [mean(value for _, value in kept[end - output.window : end]) for end in ends],
    }


def _titled(column: Column) -> str:
    return f"{column.name}, {column.unit}" if column.unit else column.name
