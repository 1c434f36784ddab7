"""One page of several runs: their figures side by side, their curves in one plot, their answers to the same prompts."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tutelage.redaction import redacted, redacted_text
from tutelage.reports.compare import Cell as Figure
from tutelage.reports.compare import Table as Figures
from tutelage.reports.compare import comparison
from tutelage.reports.curves import evaluation_plots, task_plots, training_plots
from tutelage.reports.page import Answer, Cell, Page, Section, Shown, Table, write_page
from tutelage.reports.render import difference_text, heading, legend, marks, number
from tutelage.reports.run_files import RunFiles, read_run
from tutelage.reports.run_report import INTERVALS, TOKEN_VIEW, environment_table, measured
from tutelage.reports.wording import HEADLINES, HIGHER, unit, what_differs


def write_comparison(runs: Sequence[RunFiles], out: Path, extra: Sequence[Table] = (), sentence: str = "") -> Path:
    """Write a page that compares runs; return the file.

    Args:
        runs: two or more.
        out: where.
        extra: tables to begin with, where somebody measured more than the runs have on record.
        sentence: what happened, where somebody knows better than the runs' own figures.
    """
    write_page(out, page_of(runs, extra, sentence))
    return out


def read_runs(folders: Sequence[str]) -> list[RunFiles]:
    """Read the folders of runs; `name=FOLDER` gives one another name than its folder's.

    Raises:
        InputError: one is no run's folder.
    """
    runs = []
    for folder in folders:
        name, equals, path = folder.partition("=")
        named = bool(equals) and not Path(folder).exists()
        runs.append(read_run(path if named else folder, name if named else None))
    return runs


def page_of(runs: Sequence[RunFiles], extra: Sequence[Table] = (), sentence: str = "") -> Page:
    """The page of several runs."""
    names = ", ".join(run.name for run in runs)
    evaluated = [run for run in runs if run.tasks]
    found = comparison([f"{run.name}={run.folder}" for run in evaluated]).tables if evaluated else ()
    own = [_headline(runs)] if any(run.evaluations for run in runs) and not extra else []
    return Page(
        f"Comparison: {names}",
        f"Comparison of {names}",
        sentence or what_differs(runs),
        [*extra, *own, *(table for figures in found for table in _tables(figures))],
        list(_sections(runs)),
    )


def _headline(runs: Sequence[RunFiles]) -> Table:
    """The last evaluation of each run, and what all of them began with where that is one thing."""
    names = dict.fromkeys(name for run in runs for found in run.evaluations[-1:] for name in found["metrics"])
    columns = sorted(names, key=lambda name: HEADLINES.index(name) if name in HEADLINES else len(HEADLINES))
    best = {name: _best(runs, name) for name in columns}
    rows = []
    for run in runs:
        last: dict[str, Any] = dict(run.evaluations[-1]["metrics"]) if run.evaluations else {}
        cells = [
            measured(name, last[name], "best" if run.name in best[name] else "") if name in last else Cell("–")
            for name in columns
        ]
        rows.append([Cell(run.name), Cell(f"{run.done:,}"), *cells])
    heads = [f"{name}, {unit(name)}" if unit(name) else name for name in columns]
    note = f"After the last step, on each run's validation rows. {INTERVALS} Bold: best."
    return Table(("", "steps", *heads), rows, note=note)


def _best(runs: Sequence[RunFiles], name: str) -> set[str]:
    values = {
        run.name: float(run.evaluations[-1]["metrics"][name]["value"])
        for run in runs
        if run.evaluations and name in run.evaluations[-1]["metrics"]
    }
    if len(values) < 2:
        return set()
    wanted = (max if name in HIGHER else min)(values.values())
    return {run for run, value in values.items() if value == wanted}


def _tables(figures: Figures) -> Iterator[Table]:
    """What `tutelage evaluate` found on one task, and the tests on the same items."""
    rows = []
    for row in figures.rows:
        cells = [_cell(figures, figures.cells[row].get(column.name), column.unit) for column in figures.columns]
        rows.append([Cell(row), *cells])
    heads = [heading(column) for column in figures.columns]
    yield Table(("", *heads), rows, f"{figures.task}: {figures.description}", legend(figures))
    units = {column.name: column.unit for column in figures.columns}
    tests = [
        [Cell(f"{p.first} − {p.second}"), Cell(p.metric), Cell(difference_text(p, units[p.metric]))]
        for p in figures.pairs
    ]
    if tests:
        yield Table(("", "metric", "difference"), tests, f"{figures.task}: differences on the same items")


def _cell(figures: Figures, cell: Figure | None, units: str) -> Cell:
    if cell is None:
        return Cell("–")
    mark = "best" if cell.best else "second" if cell.second else ""
    reach = f"({number(cell.low, units)}–{number(cell.high, units)})" if cell.low == cell.low else ""
    return Cell(number(cell.value, units) + marks(figures, cell), reach, mark)


def _sections(runs: Sequence[RunFiles]) -> Iterator[Section]:
    plots = [*evaluation_plots(runs), *training_plots(runs)]
    if plots:
        yield Section("Curves", "Running means over a fiftieth of each run.", plots=plots)
    yield _samples(runs)
    tasks = dict.fromkeys(task for run in runs for task in run.tasks)
    found = [p for task in tasks for p in task_plots({r.name: r.tasks[task] for r in runs if task in r.tasks})]
    if found:
        yield Section("Evaluation", "Curves that `tutelage evaluate` measured.", plots=found)
    recipes = [(f"{run.name}: config.yaml", redacted_text(run.config)) for run in runs]
    yield Section("Configuration", "Where the recipes differ.", [_differences(runs)], texts=recipes)
    yield Section("Environment", tables=[environment_table(*runs)])


def _samples(runs: Sequence[RunFiles]) -> Section:
    """The prompts that the runs have in common, with everybody's answers."""
    answers: dict[str, list[Answer]] = {}
    for run in runs:
        samples = run.record.samples if run.record else ()
        for sample in samples:
            given = answers.setdefault(sample.prompt, [Answer("Reference", sample.reference)])
            if sample.teacher is not None and all(answer.title != "Teacher" for answer in given):
                given.insert(1, Answer("Teacher", sample.teacher))
        for sample in samples:
            answers[sample.prompt].append(Answer(run.name, sample.student, sample.tokens))
    shown = [Shown(prompt, given) for prompt, given in answers.items()]
    compared = any(answer.tokens for sample in shown for answer in sample.answers)
    if not shown:
        return Section("Samples", "None of the runs has kept answers.")
    return Section("Samples", TOKEN_VIEW if compared else "", samples=shown)


def _differences(runs: Sequence[RunFiles]) -> Table:
    """The keys of the recipes that are not the same in all of them; one without a value is as good as not there."""
    flat = [{key: found for key, found in _flat(redacted(dict(run.recipe))).items() if found != "None"} for run in runs]
    keys = dict.fromkeys(key for recipe in flat for key in recipe if key != "output")
    rows = [
        [Cell(key), *(Cell(recipe.get(key, "–")) for recipe in flat)]
        for key in keys
        if len({recipe.get(key) for recipe in flat}) > 1
    ]
    return Table(("key", *(run.name for run in runs)), rows, facts=True)


def _flat(recipe: Any, prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, inner in recipe.items():
        flat |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) and inner else {f"{prefix}{key}": str(inner)}
    return flat
