"""`report.json`: what a run knows when it ends and its other files do not hold, for its report."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel

from tutelage.data import Examples
from tutelage.models.bridge import BridgedTeacher
from tutelage.models.served_teacher import ServedTeacher
from tutelage.reports.samples import Look, Sample, look_at
from tutelage.sealing import write_whole

if TYPE_CHECKING:
    from tutelage.training.setup import Setup

FILE = "report.json"
_DIGITS = 6


@dataclass(frozen=True)
class Counts:
    """What became of the rows of a source."""

    kept: int
    total: int
    dropped: Mapping[str, int]
    """By reason."""


@dataclass(frozen=True)
class RunRecord:
    """The models, the rows and the samples of a finished run."""

    student_parameters: int
    teacher_parameters: int | None
    """`None` where the teacher was not loaded."""
    rows: Mapping[str, Counts]
    """`training` and `validation`."""
    samples: tuple[Sample, ...]
    note: str
    """Why the samples lack something; empty where they are whole."""


def record_of(setup: "Setup") -> RunRecord:
    """Look back at a run while its models are in memory: both answer a few validation rows.

    Args:
        setup: the run with the trained student.
    """
    recipe, loaded = setup.recipe, setup.teacher
    teacher = None if isinstance(loaded, BridgedTeacher) else loaded  # one that reads the student's ids
    writer = None if teacher is None else teacher.model
    rows = {"training": _counts(setup.texts.train)}
    samples: list[Sample] = []
    validation, config = setup.texts.validation, recipe.evaluation
    if validation is not None:
        rows["validation"] = _counts(validation)
        look = Look(config.decoding, config.samples, recipe.train.micro_batch_tokens, recipe.seed, setup.vocabulary)
        samples = look_at(setup.student, teacher, writer, validation.kept, setup.tokenizer, look)
    return RunRecord(
        parameters(setup.student.model),
        None if loaded is None or loaded.model is None else parameters(loaded.model.model),
        rows,
        tuple(samples),
        _missing(setup, bool(samples)),
    )


def write_record(folder: Path, record: RunRecord) -> None:
    """Leave a record in a run's folder."""
    text = json.dumps(_plain(asdict(record)), ensure_ascii=False)
    write_whole(folder / FILE, lambda path: path.write_text(text, encoding="utf-8", errors="replace"))


def read_record(folder: Path) -> RunRecord | None:
    """The record in a run's folder; `None` where it is missing or damaged: a report does without."""
    try:
        return TypeAdapter(RunRecord).validate_json((folder / FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def parameters(model: PreTrainedModel) -> int:
    """The number of a model's weights."""
    return model.num_parameters()


def _counts(examples: Examples) -> Counts:
    return Counts(len(examples), examples.total, examples.dropped)


def _missing(setup: "Setup", answered: bool) -> str:
    """Why samples lack something."""
    if setup.texts.validation is None:
        return "There are no samples: the run has no validation rows (data.validation)."
    if not answered:
        return (
            "There are no samples: none was asked for (evaluation.samples), or no validation row leaves room for one."
        )
    if setup.teacher is None:
        return (
            "The run had no teacher in memory, so there is neither its answer nor a token view; `tutelage report RUN "
            "--teacher MODEL` adds them."
        )
    if isinstance(setup.teacher, BridgedTeacher):
        return "The teacher has a tokenizer of its own, so there is neither its answer nor a token view."
    if isinstance(setup.teacher, ServedTeacher):
        return "The teacher was served, so there is neither its answer nor a token view."
    if setup.teacher.model is None:
        return "The teacher was read from its cache, without its weights: there is neither its answer nor a token view."
    return ""


def _plain(value: Any) -> Any:
    """For JSON: floats of a few digits, texts in place of those that are not finite."""
    match value:
        case float():
            return float(f"{value:.{_DIGITS}g}") if abs(value) < float("inf") else str(value)
        case Mapping():
            return {key: _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case _:
            return value
