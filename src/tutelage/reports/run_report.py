"""`report.html` of one run: what happened, the curves, the samples, the figures behind them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.evaluation.record import Record
from tutelage.redaction import redacted, redacted_text
from tutelage.reports.curves import Plot, evaluation_plots, task_plots, time_plot, training_plots
from tutelage.reports.page import Answer, Cell, Page, Section, Shown, Table, write_page
from tutelage.reports.render import number
from tutelage.reports.run_files import RunFiles, read_run
from tutelage.reports.run_record import RunRecord, record_of, write_record
from tutelage.reports.samples import Sample
from tutelage.reports.wording import HIGHER, change, interval, unit, value, what_happened
from tutelage.world import world

if TYPE_CHECKING:
    from tutelage.training.setup import Setup

FILE = "report.html"
INTERVALS = "In brackets: 95 % intervals over the rows."
TOKEN_VIEW = (
    "Each token of the student is coloured, and underlined the more strongly, by how far the student is from the "
    "teacher there. Point at one, tap it, or go along with the arrow keys, to see what both would have written."
)


def report_run(setup: "Setup") -> Path:
    """Look back at a run that has just ended and write its report; return the file.

    Args:
        setup: the run with the trained student; its folder is whole.
    """
    record = record_of(setup)
    return world().main_does(lambda: _written(setup.folder, record))


def _written(folder: Path, record: RunRecord) -> Path:
    write_record(folder, record)
    return write_report(folder)


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a run from what its folder holds; return the file.

    Args:
        folder: the run's; it may still be going on.
        out: where; by default `report.html` in it.

    Raises:
        InputError: it is no run's folder, or one of its files is damaged.
    """
    out = out or folder / FILE
    write_page(out, page_of(read_run(folder)))
    return out


def page_of(run: RunFiles) -> Page:
    """The report of a run."""
    return Page(
        f"{run.name}: {run.method}",
        f"Run {run.name}, method {run.method}",
        what_happened(run),
        [table for table in (_headline(run), *_task_tables(run.tasks)) if table.rows],
        list(_sections(run)),
    )


def _headline(run: RunFiles) -> Table:
    """The metrics of the evaluations, before and after."""
    if not run.evaluations:
        return Table((), ())
    first, last = run.evaluations[0], run.evaluations[-1]
    rows = []
    for name, after in last["metrics"].items():
        before = first["metrics"].get(name)
        cells = [Cell(name, unit(name))]
        if len(run.evaluations) > 1:
            cells += [measured(name, before) if before else Cell("–"), measured(name, after, "best"),
                      _change(name, before, after)]  # fmt: skip
        else:
            cells.append(measured(name, after))
        rows.append([*cells, Cell(f"{after['n']:,}")])
    span = [f"before (step {first['step']:,})", f"after (step {last['step']:,})", "change"]
    columns = ["metric", *(span if len(run.evaluations) > 1 else span[:1]), "rows"]
    return Table(columns, rows, note=f"On the validation rows. {INTERVALS}")


def measured(name: str, found: Mapping[str, Any], mark: str = "") -> Cell:
    """A metric's value with its interval."""
    reach = interval(name, found)
    return Cell(value(name, float(found["value"])), f"({reach})" if reach else "", mark)


def _change(name: str, before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> Cell:
    if before is None:
        return Cell("–")
    difference = float(after["value"]) - float(before["value"])
    apart = float(after["low"]) > float(before["high"]) or float(after["high"]) < float(before["low"])
    mark = ("good" if (difference > 0) == (name in HIGHER) else "bad") if apart and difference else ""
    return Cell(change(name, difference), "" if apart else "(intervals overlap)", mark)


def _task_tables(tasks: Mapping[str, Record]) -> Iterator[Table]:
    """What `tutelage evaluate` found, one table a task."""
    for task, record in tasks.items():
        rows = [
            [
                Cell(name, found["unit"]),
                Cell(number(found["value"], found["unit"]),
                     f"({number(found['low'], found['unit'])}–{number(found['high'], found['unit'])})"
                     if found["low"] == found["low"] else "", "best"),
                Cell({"higher": "higher", "lower": "lower"}.get(found["better"], "–")),
                Cell(f"{found['n']:,}"),
            ]
            for name, found in record.metrics.items()
        ]  # fmt: skip
        note = " ".join([*record.notes, "In brackets: 95 % bootstrap intervals over the items."])
        yield Table(("metric", "value", "better", "items"), rows, f"{task}: {record.description}", note)


def _sections(run: RunFiles) -> Iterator[Section]:
    plots: list[Plot] = [*evaluation_plots([run]), *training_plots([run])]
    time = time_plot(run)
    if plots or time:
        note = "Faint: every step. Strong: a running mean over a fiftieth of the run."
        yield Section("Curves", note + _alarms(run), plots=[*plots, *([time] if time else [])])
    yield samples_section(run)
    found = [plot for task, record in run.tasks.items() for plot in _named(task, task_plots({task: record}), run)]
    if found:
        yield Section("Evaluation", "Curves that `tutelage evaluate` measured.", plots=found)
    yield Section("Data", tables=[_rows_table(run)] if run.record else [], intro=_sources(run))
    recipe = ("config.yaml: the whole recipe; it runs again as it is", redacted_text(run.config))
    yield Section("Configuration and environment", tables=[environment_table(run)], texts=[recipe])


def _named(task: str, plots: list[Plot], run: RunFiles) -> list[Plot]:
    if len(run.tasks) == 1:
        return plots
    return [Plot(f"{task}: {p.title}", p.traces, p.x_title, p.y_title, p.layout, p.note) for p in plots]


def _alarms(run: RunFiles) -> str:
    """The alarms of the run, with the steps at which they went."""
    at: dict[str, list[int]] = {}
    for step in run.steps:
        for alarm in step.get("alarms", ()):
            at.setdefault(alarm, []).append(int(step["step"]))
    if not at:
        return ""
    said = "; ".join(f"{name} at {len(steps):,} steps, first at {steps[0]:,}" for name, steps in at.items())
    return f" Alarms went: {said} (docs/health.md says what they mean)."


def samples_section(run: RunFiles) -> Section:
    """Prompts with the answers of reference, teacher and student, before and after."""
    record, before = run.record, run.answers_at(0)
    if record is not None and record.samples:
        samples = [_shown(sample, before.get(sample.prompt)) for sample in record.samples]
        whole = any(sample.tokens for sample in record.samples)
        return Section("Samples", f"{TOKEN_VIEW if whole else ''} {record.note}".strip(), samples=samples)
    last = run.evaluations[-1]["step"] if run.evaluations else 0
    reason = record.note if record else "The run has not kept its models' answers token by token."
    shown = []
    for line in (line for line in run.samples if line["step"] == last):
        answers = [Answer("Reference", line["reference"])]
        if last and line["prompt"] in before:
            answers.append(Answer("Student before", before[line["prompt"]]))
        shown.append(Shown(line["prompt"], [*answers, Answer(f"Student at step {last:,}", line["response"])]))
    return Section("Samples", reason, samples=shown)


def _shown(sample: Sample, before: str | None) -> Shown:
    answers = [Answer("Reference", sample.reference)]
    answers += [Answer("Teacher", sample.teacher)] if sample.teacher is not None else []
    answers += [Answer("Student before", before)] if before is not None else []
    return Shown(sample.prompt, [*answers, Answer("Student after", sample.student, sample.tokens)])


def _rows_table(run: RunFiles) -> Table:
    assert run.record is not None
    rows = [
        [
            Cell(name),
            Cell(f"{counts.total:,}"),
            Cell(f"{counts.kept:,}"),
            Cell(f"{sum(counts.dropped.values()):,}"),
            Cell("; ".join(f"{count:,} {reason}" for reason, count in counts.dropped.items()) or "–"),
        ]
        for name, counts in run.record.rows.items()
    ]
    return Table(("rows", "read", "kept", "dropped", "dropped because"), rows, facts=True)


def _sources(run: RunFiles) -> str:
    data = run.section("data")
    named = [f"{what}: {Path(str(data[what])).name}" for what in ("train", "validation", "text") if data.get(what)]
    return redacted_text("; ".join(named))


def environment_table(*runs: RunFiles) -> Table:
    """What runs ran on, and the hashes of what they depend on."""
    flat = [_flat(redacted(run.environment)) for run in runs]
    keys = dict.fromkeys(key for columns in flat for key in columns)
    rows = [[Cell(key), *(Cell(columns.get(key, "–")) for columns in flat)] for key in keys]
    note = "data, tokenizer, chat_template and teacher are hashes of their content: equal hashes, equal content."
    return Table(("", *(run.name for run in runs)), rows, note=note, facts=True)


def _flat(environment: Mapping[str, Any]) -> dict[str, str]:
    packages = environment.get("packages")
    plain = {key: str(found) for key, found in environment.items() if key != "packages"}
    return plain | ({name: str(found) for name, found in packages.items()} if isinstance(packages, Mapping) else {})
