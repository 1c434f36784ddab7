"""Text that is known before a run begins: who wrote it, and what the teacher will be asked about."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from tutelage.config import Decoding
from tutelage.data import Examples, Order
from tutelage.errors import InputError
from tutelage.models.language_model import LanguageModel
from tutelage.recipe import Recipe
from tutelage.rollouts.rollout import Rollout, joined
from tutelage.rollouts.samplers import DataSampler, TeacherSampler
from tutelage.rollouts.store import TextStore
from tutelage.training.texts import Texts
from tutelage.training.writers import asked_of


@dataclass(frozen=True)
class Writers:
    """Who writes the text of a run."""

    data: bool
    teacher: Decoding | None
    """How the teacher writes, where it writes text that is kept."""
    others: bool
    """Whether text is written during the run too."""


def writers_of(recipe: Recipe) -> Writers:
    """Ask the method who writes its text."""
    asked = asked_of(recipe)
    writers = {one.writer for one in asked}
    kept = next((one.decoding for one in asked if one.writer == "teacher"), None)
    return Writers("data" in writers, kept, not writers <= {"data", "teacher"})


def check_cache(recipe: Recipe) -> None:
    """Say before anything is loaded that there is nothing a cache could keep, or that its kind is not enough.

    Raises:
        InputError: the text of the run is all written while it goes on, or some of it is and the kind is `top-k`.
    """
    kind, writers = recipe.teacher_cache.kind, writers_of(recipe)
    method = f"method '{recipe.method.name}' as set up here"
    if kind is not None and not writers.data and writers.teacher is None:
        raise InputError(f"teacher_cache.kind is '{kind}', but all text of {method} is new: leave teacher_cache out")
    if kind == "top-k" and (writers.others or recipe.method.plan.text_rows):
        raise InputError(
            f"teacher_cache.kind is 'top-k', but {method} also compares on text that is written during the run; "
            "use teacher_cache.kind: hidden, which has the teacher score such text"
        )


def needs_weights(recipe: Recipe) -> bool:
    """Whether a run with a complete cache still has to run its teacher, on text that is not fixed."""
    measured = recipe.evaluation.metrics
    return (
        writers_of(recipe).others
        or recipe.method.plan.text_rows > 0
        or "distances" in measured
        or ("agreement" in measured and recipe.teacher_cache.kind == "top-k")
    )


def fixed_text(recipe: Recipe, texts: Texts, teacher: Callable[[], LanguageModel], vocabulary: int) -> Rollout:
    """Return all text that the teacher is asked about and that is known before the run.

    The teacher's own text is written, and kept, where it is not there yet.

    Args:
        recipe: names the method, and what is measured.
        texts: rows of the run.
        teacher: loads the teacher; called only if it has to write.
        vocabulary: leading ids that student and teacher share; no others are written.
    """
    writers = writers_of(recipe)
    parts = []
    if writers.data:
        parts.append(DataSampler().sample(texts.train.kept, 0))
    if writers.teacher is not None:
        parts.append(_written_by_teacher(recipe, texts.train, writers.teacher, teacher, vocabulary))
    if texts.validation is not None and "agreement" in recipe.evaluation.metrics and not needs_weights(recipe):
        parts.append(DataSampler().sample(texts.validation.kept, 0))
    return joined(parts)


def _written_by_teacher(
    recipe: Recipe, rows: Examples, decoding: Decoding, teacher: Callable[[], LanguageModel], vocabulary: int
) -> Rollout:
    """Have the teacher write in the batches in which the run would ask for its text, which is then the same text."""
    store = teacher_text(recipe, decoding)
    complete = all(store.get(example.prompt) is not None for example in rows)
    model = None if complete else teacher()
    sampler = TeacherSampler(model, decoding, recipe.seed, store, vocabulary)
    if model is not None:
        order, size = Order(len(rows), recipe.seed), recipe.method.plan.collection or recipe.train.batch_size
        with autocast(recipe, model.device):
            for number in range(order.steps(1, size)):
                sampler.sample([rows[row] for row in order.batch(number, size)], number)
    return sampler.sample(rows.kept, 0)


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager:
    """What a run computes in."""
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.train.precision == "bfloat16")


def teacher_text(recipe: Recipe, decoding: Decoding) -> TextStore:
    """Return the text that the teacher wrote for a run."""
    teacher = recipe.teacher
    assert teacher is not None
    name = teacher.model if teacher.quantize == "none" else f"{teacher.model}, {teacher.quantize}"
    return TextStore(
        Path(recipe.output) / "teacher_text.jsonl",
        {"teacher": name, "decoding": decoding.law | {"batch_size": 0}, "seed": recipe.seed},
    )
