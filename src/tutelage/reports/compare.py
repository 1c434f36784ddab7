"""Tables of runs side by side: values with intervals, the best marked, and paired tests on the same items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from pathlib import Path
from typing import Any

from tutelage.errors import InputError
from tutelage.evaluation.record import FOLDER, Record, load_records, load_scores
from tutelage.evaluation.score import Score
from tutelage.reports.significance import Difference, holm, paired_difference
from tutelage.safe_yaml import parse_yaml, read_yaml


@dataclass(frozen=True)
class Column:
    """One metric of a table."""

    name: str
    unit: str
    better: str
    """`higher`, `lower` or `neither`."""


@dataclass(frozen=True)
class Cell:
    """One model's value of one metric."""

    value: float
    low: float
    high: float
    """95 % interval."""
    n: int
    """Items."""
    best: bool = False
    second: bool = False
    worse_than_baseline: bool = False
    difference: float | None = None
    """From the baseline, on the same items; with its 95 % interval and the p-value of the paired permutation test."""
    difference_low: float | None = None
    difference_high: float | None = None
    p_value: float | None = None
    p_corrected: float | None = None
    """The same by Holm's correction over all tests of the table."""


@dataclass(frozen=True)
class Pair:
    """A paired test of two models on one metric."""

    first: str
    second: str
    metric: str
    difference: Difference
    """First minus second."""
    p_corrected: float
    """By Holm's correction over all tests of the table."""


@dataclass(frozen=True)
class Table:
    """The models on one task."""

    task: str
    description: str
    rows: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: Mapping[str, Mapping[str, Cell]]
    """By row, then column; a number that a model lacks is not there."""
    pairs: tuple[Pair, ...]
    """The tests: each model against the baseline, or each pair."""
    baseline: str | None = None

    def test(self, first: str, second: str, metric: str) -> Pair | None:
        """The test of two models, whichever way round it was made."""
        return next((p for p in self.pairs if p.metric == metric and {p.first, p.second} == {first, second}), None)


@dataclass(frozen=True)
class Comparison:
    """Runs compared: one table a task."""

    tables: tuple[Table, ...]
    baseline: str | None
    """The run that others are tested against, and marked where they are worse."""
    folders: Mapping[str, str]
    """Where each run lies, by its name."""


@dataclass(frozen=True)
class _Measured:
    """A run with what is on record of it."""

    name: str
    folder: Path
    records: Mapping[str, Record]


def comparison(
    folders: Sequence[str | Path],
    *,
    tasks: Sequence[str] | None = None,
    baseline: str | Path | None = None,
    pairs: bool = False,
) -> Comparison:
    """Compare what is on record of several runs.

    Args:
        folders: of runs or models that were evaluated; `name=FOLDER` gives one another name than the folder's.
        tasks: which tasks; all that are on record by default.
        baseline: the folder or name of the run to test against; by default the only one whose config.yaml says
            method sft.
        pairs: test each pair instead of each run against the baseline.

    Raises:
        InputError: a folder holds no record, two runs have one name, or numbers do not belong together: their
            protocols or their items differ.
    """
    runs = [_measured(folder) for folder in folders]
    names = [run.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two runs are called {twice}; give them names: first={twice}")
    known = list(dict.fromkeys(task for run in runs for task in run.records))
    unknown = next((task for task in tasks or () if task not in known), None)
    if unknown is not None:
        raise InputError(f"no run was evaluated on task '{unknown}'; on record: {', '.join(known)}")
    reference = _baseline(runs, baseline)
    tables = tuple(_table(task, runs, reference, pairs) for task in tasks or known)
    return Comparison(tables, reference, {run.name: str(run.folder) for run in runs})


def paired_test(found: Comparison, task: str, first: str, second: str, metric: str) -> Difference:
    """Compare two runs of a comparison on one metric of one task; the p-value is not corrected."""
    folders = [Path(found.folders[name]) for name in (first, second)]
    scores = [load_scores(folder, load_records(folder)[task])[metric] for folder in folders]
    return _difference(task, metric, scores, (first, second))


def _measured(folder: str | Path) -> _Measured:
    name, equals, path = str(folder).partition("=")
    where = Path(path if equals and not Path(folder).exists() else folder)
    records = load_records(where)
    if not records:
        raise InputError(f"{where} holds no evaluation ({where / FOLDER} has no record); run tutelage evaluate on it")
    return _Measured(name if where != Path(folder) else where.resolve().name, where, records)


def _baseline(runs: Sequence[_Measured], given: str | Path | None) -> str | None:
    if given is not None:
        found = next((r.name for r in runs if str(given) in (r.name, str(r.folder)) or r.folder == Path(given)), None)
        if found is None:
            raise InputError(f"--baseline {given} is none of the runs: {', '.join(run.name for run in runs)}")
        return found
    fine_tuned = [run.name for run in runs if _method(run.folder) == "sft"]
    return fine_tuned[0] if len(fine_tuned) == 1 else None


def _method(folder: Path) -> str | None:
    path = folder / "config.yaml"
    method = parse_yaml(read_yaml(path), str(path)).get("method") if path.is_file() else None
    return method.get("name") if isinstance(method, Mapping) else None


def _table(task: str, runs: Sequence[_Measured], baseline: str | None, every_pair: bool) -> Table:
    measured = [run for run in runs if task in run.records]
    columns = _columns(task, measured)
    scores = {run.name: load_scores(run.folder, run.records[task]) for run in measured}
    tests = _tests(task, columns, scores, baseline, every_pair)
    table = Table(
        task,
        measured[0].records[task].description,
        tuple(run.name for run in measured),
        columns,
        {},
        tests,
        baseline if baseline in scores else None,
    )
    found = {run.name: run.records[task].metrics for run in measured}
    by_column = {column.name: _cells(table, column, found) for column in columns}
    cells = {row: {name: column[row] for name, column in by_column.items() if row in column} for row in table.rows}
    return Table(table.task, table.description, table.rows, columns, cells, tests, table.baseline)


def _columns(task: str, runs: Sequence[_Measured]) -> tuple[Column, ...]:
    """The metrics of a task, once all runs are seen to have measured them alike."""
    columns: dict[str, Column] = {}
    first: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for run in runs:
        record = run.records[task]
        for name, found in record.metrics.items():
            protocol = record.protocols[found["protocol"]]
            columns.setdefault(name, Column(name, found["unit"], found["better"]))
            other, wanted = first.setdefault(name, (run.name, protocol))
            changes = differing(wanted, protocol)
            if changes:
                raise InputError(
                    f"{task}: {name} of {other} and of {run.name} were measured by different protocols "
                    f"({'; '.join(changes)}); evaluate both in the same way"
                )
    return tuple(columns.values())


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Say which keys of two protocols differ, with both values.

    >>> differing({"seeds": [1], "decoding": {"top_k": 0}}, {"seeds": [1], "decoding": {"top_k": 5}})
    ['decoding.top_k: 0 and 5']
    """
    flat = [_flat(protocol) for protocol in (first, second)]
    missing = object()
    return [
        f"{key}: {flat[0].get(key, 'absent')} and {flat[1].get(key, 'absent')}"
        for key in {**flat[0], **flat[1]}
        if flat[0].get(key, missing) != flat[1].get(key, missing)
    ]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, Mapping) else {f"{prefix}{key}": inner}
    return flat


def _tests(
    task: str,
    columns: Sequence[Column],
    scores: Mapping[str, Mapping[str, Score]],
    baseline: str | None,
    every_pair: bool,
) -> tuple[Pair, ...]:
    if every_pair:
        wanted = [(second, first) for first, second in combinations(scores, 2)]
    elif baseline is not None and baseline in scores:
        wanted = [(name, baseline) for name in scores if name != baseline]
    else:
        wanted = []
    found: list[tuple[str, str, str, Difference]] = []
    for column in columns:
        for first, second in wanted:
            both = [scores[name].get(column.name) for name in (first, second)]
            if all(score is not None and score.rows for score in both):
                difference = _difference(task, column.name, both, (first, second))
                found += [(first, second, column.name, difference)] if isfinite(difference.value) else []
    corrected = holm([difference.p_value for *_, difference in found])
    return tuple(Pair(*entry, p) for entry, p in zip(found, corrected, strict=True))


def _difference(task: str, metric: str, both: Sequence[Any], names: tuple[str, str]) -> Difference:
    try:
        return paired_difference(*both)
    except InputError as error:
        raise InputError(f"{task}: {metric} of {names[0]} and of {names[1]}: {error}") from None


def _cells(table: Table, column: Column, found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Cell]:
    """The cells of one column, the best and the second best marked."""
    values = {row: metrics[column.name] for row, metrics in found.items() if column.name in metrics}
    best, second = ranked({row: entry["value"] for row, entry in values.items()}, column.better)
    cells = {}
    for row, entry in values.items():
        pair = table.test(row, table.baseline, column.name) if table.baseline and row != table.baseline else None
        cells[row] = Cell(
            *(entry[key] for key in ("value", "low", "high", "n")),
            best=row in best,
            second=row in second,
            worse_than_baseline=table.baseline in values
            and is_worse(entry["value"], values[table.baseline]["value"], column.better),
            **_against(pair, row),
        )
    return cells


def _against(pair: Pair | None, row: str) -> dict[str, float]:
    """The columns of a cell that a test against the baseline fills."""
    if pair is None:
        return {}
    difference = pair.difference
    ends = (difference.value, difference.low, difference.high)
    if pair.first != row:
        ends = (-difference.value, -difference.high, -difference.low)
    return {
        **dict(zip(("difference", "difference_low", "difference_high"), ends, strict=True)),
        "p_value": difference.p_value,
        "p_corrected": pair.p_corrected,
    }


def ranked(values: Mapping[str, float], better: str) -> tuple[set[str], set[str]]:
    """Which are best, and which second best; equal values share a place. None where neither way is better.

    >>> ranked({"a": 1.0, "b": 3.0, "c": 2.0}, "higher")
    ({'b'}, {'c'})
    """
    if better == "neither" or len(values) < 2:
        return set(), set()
    order = sorted({value for value in values.values() if value == value}, reverse=better == "higher")
    places = [{row for row, value in values.items() if value == wanted} for wanted in order[:2]]
    return (places[0] if places else set()), (places[1] if len(places) > 1 else set())


def is_worse(value: float, reference: float, better: str) -> bool:
    """Whether a value is worse than another."""
    return value < reference if better == "higher" else better == "lower" and value > reference
