"""`tutelage evaluate`: measure runs and models on tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tutelage.config import Model, Teacher
from tutelage.errors import InputError
from tutelage.evaluation.assess import assess
from tutelage.evaluation.record import Record
from tutelage.evaluation.task import load_task, task_names
from tutelage.recipe import check_section, load_recipe


@dataclass(frozen=True)
class Measured:
    """What one word of the command line names: a run or a model, and where its records go."""

    name: str
    student: Model
    teacher: Model | None
    out: Path


def evaluate(
    subjects: Sequence[str],
    tasks: Sequence[str],
    *,
    task_keys: Sequence[str] = (),
    student_keys: Mapping[str, Any] | None = None,
    teacher_keys: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (),
    data_folder: str = "data",
    out: str | None = None,
) -> list[dict[str, Record]]:
    """Measure runs and models on tasks, and print what was found.

    Args:
        subjects: run folders, model folders or hub ids, each plain or as `name=folder`.
        tasks: names of tasks, or paths of YAML files.
        task_keys: overrides for all tasks: `--data.limit 50`.
        student_keys: keys of `Model` for what is measured, such as dtype.
        teacher_keys: the same for the teacher; `model` names it where the subject is no run, or to take another.
        seeds: take these in place of the tasks' own.
        data_folder: where data files are looked for.
        out: folder for the records of models; runs keep theirs.

    Raises:
        InputError: there is no such model or task, or something in them is wrong.
    """
    loaded = [load_task(name, _with_seeds(task_keys, seeds)) for name in tasks]
    found = [_measured(word, student_keys or {}, teacher_keys or {}, out) for word in subjects]
    results = []
    console = Console(highlight=False)
    for subject in found:
        records = assess(
            loaded,
            student=subject.student,
            teacher=subject.teacher,
            name=subject.name,
            data_folder=Path(data_folder),
            out=subject.out,
        )
        results.append(records)
        for task in loaded:
            console.print(_table(subject.name, records[task.name]))
            for note in records[task.name].notes:
                console.print(Text(f"note: {note}", style="dim"))
    return results


def list_tasks() -> None:
    """Print the tasks that come with the package."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name in task_names():
        table.add_row(name, load_task(name).description)
    Console(highlight=False).print(table)


def _with_seeds(keys: Sequence[str], seeds: Sequence[int]) -> list[str]:
    return [*keys, *(["--seeds", str(list(seeds))] if seeds else [])]


def _measured(word: str, student_keys: Mapping[str, Any], teacher_keys: Mapping[str, Any], out: str | None) -> Measured:
    name, equals, place = word.partition("=")
    path = Path(place if equals else word)
    named = name if equals else path.name
    stored, teacher = path / "config.yaml", None
    if stored.is_file():
        recipe = load_recipe(stored)
        if not (path / "model").is_dir():
            raise InputError(f"{path} is a run that has not finished; the command that began it goes on with it")
        student: dict[str, Any] = {"model": str(path / "model"), "device": recipe.student.device}
        if recipe.teacher is not None and recipe.teacher.url is None:
            teacher = {name: getattr(recipe.teacher, name) for name in _FIELDS}
    else:
        student = {"model": place if equals else word}
    if teacher_keys:
        teacher = {**(teacher or {}), **teacher_keys}
    return Measured(
        named,
        check_section(Model, {**student, **student_keys}, "student"),
        None if teacher is None else check_section(Teacher, teacher, "teacher"),
        path if stored.is_file() else Path(out or "runs/evaluations") / named,
    )


_FIELDS = ("model", "tokenizer", "revision", "dtype", "device", "trust_remote_code", "quantize")


def _table(name: str, record: Record) -> Table:
    table = Table(title=f"{name} · {record.task}", title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column, justify in (("", "left"), ("value", "right"), ("95 % interval", "right"), ("n", "right"), ("", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for metric, found in record.metrics.items():
        interval = f"{_number(found['low'])} – {_number(found['high'])}"
        table.add_row(metric, _number(found["value"]), interval, f"{found['n']:,}", found["unit"])
    return table


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"
