"""Measuring a model on tasks, and writing down what was found and by which protocol."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tutelage.config import Model
from tutelage.data import Examples, Row, encode
from tutelage.errors import InputError
from tutelage.evaluation.items import Item, fingerprint, read_items
from tutelage.evaluation.record import Record, load_records, protocol_id, save_record
from tutelage.evaluation.responses import answered, responses_path
from tutelage.evaluation.score import Score
from tutelage.evaluation.subject import Subject
from tutelage.evaluation.task import Task
from tutelage.models.identity import tokenizer_identity, weights_identity
from tutelage.models.pair import Pair, load_pair
from tutelage.models.pairing import positions

MICRO_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class _Models:
    """What is measured, and what it is compared with."""

    pair: Pair
    of_student: Mapping[str, Any]
    of_teacher: Mapping[str, Any] | None


def assess(
    tasks: Sequence[Task],
    *,
    student: Model,
    teacher: Model | None = None,
    name: str,
    data_folder: Path = Path("data"),
    out: Path,
    report: Callable[[str], None] = print,
) -> dict[str, Record]:
    """Measure a model on tasks; what is recorded already by the same protocols is not measured again.

    Args:
        tasks: what to measure.
        student: the model.
        teacher: needed by metrics that compare with one.
        name: of the model, for tables.
        data_folder: where data files are looked for that are not found as they are written.
        out: folder that gets `evaluations/`: a run's, or one for the model.
        report: told in one line each what is done.

    Returns:
        The record of each task, by its name.

    Raises:
        InputError: a task's data, the models or what a metric needs are not as they should be.
    """
    _check_tasks(tasks, teacher)
    read = {task.name: read_items(task.data, data_folder) for task in tasks}
    identity = _identity(student, "student")
    with_teacher = teacher if any(_uses(task, "teacher") for task in tasks) else None
    teacher_identity = None if with_teacher is None else _identity(with_teacher, "teacher")
    recorded = load_records(out)
    models: _Models | None = None
    records = {}
    for task in tasks:
        wanted = protocols_of(task, read[task.name], teacher_identity)
        before = recorded.get(task.name)
        if before is not None and _is_same(before, wanted, identity):
            report(f"{task.name}: measured already ({out / 'evaluations' / f'{task.name}.json'})")
            records[task.name] = before
            continue
        models = models or _load(student, with_teacher, name, identity, teacher_identity, report)
        records[task.name] = _measured(task, read[task.name], models, wanted, out, report)
    return records


def protocols_of(task: Task, items: Sequence[Item], teacher_identity: str | None) -> dict[str, dict[str, Any]]:
    """What each metric of a task depends on but the model that is measured, by the metric's name."""
    data = {name: value for name, value in asdict(task.data).items() if name not in ("source", "limit", "max_dropped")}
    data |= {"items": fingerprint(items), "count": len(items)}
    compared = {"teacher": teacher_identity, "max_new_tokens": task.decoding.max_new_tokens}
    text = {"decoding": task.decoding.law, "seeds": list(task.seeds), "stop": list(task.stop)}
    return {
        metric.name: {
            "data": data,
            "metric": metric.protocol(),
            **(text if "text" in metric.uses else {}),
            **(compared if "teacher" in metric.uses else {}),
            **({"packages": {package: version(package) for package in metric.packages}} if metric.packages else {}),
        }
        for metric in task.metrics
    }


def _is_same(record: Record, wanted: Mapping[str, Mapping[str, Any]], identity: str | None) -> bool:
    has = record.model.get("identity") == identity and identity is not None
    return has and {protocol_id(protocol) for protocol in wanted.values()} <= set(record.protocols)


def _check_tasks(tasks: Sequence[Task], teacher: Model | None) -> None:
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise InputError(f"two tasks of one name ({', '.join(names)}); records are kept by name")
    for task in tasks:
        kinds = [metric.name for metric in task.metrics]
        if len(set(kinds)) < len(kinds):
            raise InputError(f"task {task.name} has a metric twice ({', '.join(kinds)})")
        for metric in task.metrics:
            metric.check(task)
        needy = [metric.name for metric in task.metrics if "teacher" in metric.uses]
        if needy and teacher is None:
            raise InputError(f"task {task.name}: {needy[0]} compares with a teacher; name one with --teacher")
        needy = [metric.name for metric in task.metrics if "choices" in metric.uses]
        if needy and task.data.choices is None:
            raise InputError(f"task {task.name}: {needy[0]} needs choices: add data.choices and data.answer")


def _uses(task: Task, what: str) -> bool:
    return any(what in metric.uses for metric in task.metrics)


def _identity(model: Model, role: str) -> str | None:
    return None if model.model is None else weights_identity(model, role)


def _load(
    student: Model,
    teacher: Model | None,
    name: str,
    identity: str | None,
    teacher_identity: str | None,
    report: Callable[[str], None],
) -> _Models:
    pair = load_pair(student, teacher)
    of_student = _described(name, student, identity, pair.student.model)
    report(f"{name}: {pair.student.network.config.model_type} with {of_student['parameters'] / 1e6:,.2f} M parameters")
    of_teacher = None
    if teacher is not None:
        assert pair.teacher is not None
        of_teacher = _described(Path(str(teacher.model)).name, teacher, teacher_identity, pair.teacher.model.model)
    return _Models(pair, of_student, of_teacher)


def _described(name: str, spec: Model, identity: str | None, network: torch.nn.Module) -> dict[str, Any]:
    count = sum(parameter.numel() for parameter in network.parameters())
    return {"name": name, "path": str(spec.model), "identity": identity, "parameters": count}


def _measured(
    task: Task,
    items: Sequence[Item],
    models: _Models,
    protocols: Mapping[str, Mapping[str, Any]],
    out: Path,
    report: Callable[[str], None],
) -> Record:
    begin = time.perf_counter()
    examples = _encoded(task, items, models.pair)
    kept = [items[int(example.where)] for example in examples]
    with _progress(task.name) as advance:
        rollouts, texts, pair = [], [], models.pair
        if _uses(task, "text"):
            key = {"model": models.of_student["identity"], "items": fingerprint(items), "template": task.data.template}
            rollouts, texts = answered(
                responses_path(out, task.name), task, pair.student, pair.tokenizer, kept, examples.kept,
                key=key, advance=advance,
            )  # fmt: skip
        subject = Subject(task, pair.student, pair.tokenizer, kept, examples.kept, rollouts, texts,
                          pair.teacher, pair.vocabulary, MICRO_BATCH_TOKENS, advance)  # fmt: skip
        scores, metrics, curves, notes = _by_metric(task, subject, protocols)
    record = Record(
        task=task.name,
        description=task.description,
        model=models.of_student,
        teacher=models.of_teacher,
        metrics=metrics,
        protocols={protocol_id(protocol): protocol for protocol in protocols.values()},
        curves=curves,
        notes=notes,
        dropped=examples.dropped,
        environment=_environment(models.pair),
        seconds=time.perf_counter() - begin,
    )
    path = save_record(out, record, scores)
    report(f"{task.name}: {path}")
    return record


def _by_metric(task: Task, subject: Subject, protocols: Mapping[str, Mapping[str, Any]]):
    """Have every metric measure; numbers come under their own names, which no two metrics share."""
    scores: dict[str, Score] = {}
    metrics: dict[str, dict[str, Any]] = {}
    curves: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for metric in task.metrics:
        found = metric.measure(subject)
        protocol = protocol_id(protocols[metric.name])
        twice = set(found.scores) & set(scores)
        assert not twice, f"two metrics both call a number {twice}"
        scores |= found.scores
        metrics |= {name: {**score.as_dict(), "protocol": protocol} for name, score in found.scores.items()}
        curves |= {name: curve.as_dict() for name, curve in found.curves.items()}
        notes += found.notes
    return scores, metrics, curves, notes


def _encoded(task: Task, items: Sequence[Item], pair: Pair) -> Examples:
    """The items as ids. A row's place is its position, to find the item of what was kept."""
    rows = [
        Row(str(at), prompt=item.prompt, completion=item.references[0] if item.references else None)
        for at, item in enumerate(items)
    ]
    new_tokens = task.decoding.max_new_tokens
    return encode(
        rows,
        pair.tokenizer,
        template=task.data.template,
        max_prompt_tokens=task.data.max_prompt_tokens,
        max_tokens=task.data.max_prompt_tokens + _LONGEST_REFERENCE,
        stop_ids=frozenset(pair.student.stop_ids),
        encoder_decoder=pair.student.is_encoder_decoder,
        positions=positions(pair.student.model, pair.teacher and pair.teacher.model.model),
        new_tokens=new_tokens,
        max_dropped=task.data.max_dropped,
    )


_LONGEST_REFERENCE = 1 << 20
"""References are never too long by themselves: a text metric does not read them as ids."""


def _environment(pair: Pair) -> dict[str, Any]:
    packages = {name: version(name) for name in ("tutelage", "torch", "transformers", "tokenizers")}
    return packages | {
        "python": platform.python_version(),
        "device": str(pair.student.device),
        "dtype": str(pair.student.head.weight.dtype).removeprefix("torch."),
        "tokenizer": tokenizer_identity(pair.tokenizer),
    }


@contextmanager
def _progress(title: str):
    """A bar for what is being done; what is told to it begins anew with each new description."""
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                   transient=True)  # fmt: skip
    with bar:
        shown = bar.add_task(title, total=None)
        doing = ""

        def advance(what: str, more: int, total: int) -> None:
            nonlocal doing
            if what != doing:
                doing = what
                bar.reset(shown, total=total, description=f"{title}: {what}")
            bar.advance(shown, more)

        yield advance
