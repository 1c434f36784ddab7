"""Everything that can be known of a run before it begins, found out step by step; what is wrong is told at once."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.errors import InputError
from tutelage.models.head import output_head
from tutelage.models.loading import load_tokenizer, stop_ids
from tutelage.models.pairing import fewest, positions
from tutelage.models.skeleton import load_skeleton
from tutelage.models.vocabulary import SharedVocabulary, shared_vocabulary
from tutelage.recipe import Recipe
from tutelage.training.disk import check_room
from tutelage.training.served import is_served, served_positions, served_teacher, shared_with
from tutelage.training.served_sampling import check_servable, student_servers
from tutelage.training.setup import check_text, first_checks, model_notes, needs_teacher, student_tokenizer
from tutelage.training.texts import Reader, Texts, read, read_texts

Arguments = ParamSpec("Arguments")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Findings:
    """What a run of a recipe would work with. The models are skeletons: sizes and settings without weights."""

    tokenizer: PreTrainedTokenizerBase
    student: PreTrainedModel
    teacher: PreTrainedModel | None
    stops: tuple[int, ...]
    shared: SharedVocabulary | None
    """The ids on which the models are compared; `None` without a teacher, or with one of another tokenizer."""
    texts: Texts
    notes: tuple[str, ...]


def look(recipe: Recipe) -> Findings:
    """Look at all of a recipe, without reading any weights.

    Raises:
        InputError: something is wrong with it; the message has a line or more for every mistake that does not
            follow from another.
    """
    steps = _Steps()
    steps.take(check_writable, Path(recipe.output))
    for check in first_checks(recipe):
        steps.take(check)
    rows = steps.take(read, recipe)
    tokenizer = steps.take(student_tokenizer, recipe)
    servers = None if tokenizer is None else steps.take(student_servers, recipe, tokenizer, _silent)
    teacher, own = None, None
    with_teacher = needs_teacher(recipe)
    served = steps.take(served_teacher, recipe, _silent) if with_teacher else None
    if recipe.teacher is not None and with_teacher and not is_served(recipe):
        teacher = steps.take(load_skeleton, recipe.teacher, "teacher")
        own = steps.take(load_tokenizer, recipe.teacher, "teacher")
    student = None
    if tokenizer is not None and (teacher is not None or recipe.student.from_teacher is None):
        student = steps.take(load_skeleton, recipe.student, "student", tokenizer=tokenizer, teacher=teacher)
    if student is not None and tokenizer is not None:
        steps.take(check_room, recipe, tokenizer)
        steps.take(check_servable, recipe, student)
    stops = None if student is None or tokenizer is None else steps.take(stop_ids, student, tokenizer)
    texts, shared = None, None
    if rows is not None and student is not None and tokenizer is not None and stops is not None:
        room = fewest(positions(student, teacher), served_positions(served), servers and servers.max_length)
        reader = Reader(tokenizer, stops, bool(student.config.is_encoder_decoder), room)
        texts = steps.take(read_texts, recipe, reader, rows)
    if texts is not None:
        steps.take(check_text, recipe, texts.train)
    shares = not recipe.method.plan.bridges_tokenizers
    if shares and student is not None and tokenizer is not None and teacher is not None and own is not None:
        heads = output_head(student).vocabulary, output_head(teacher).vocabulary
        shared = steps.take(shared_vocabulary, tokenizer, own, *heads)
    if student is not None and tokenizer is not None and served is not None:
        shared = steps.take(shared_with, served, student, tokenizer)
    steps.finish()
    assert tokenizer is not None
    assert student is not None
    assert stops is not None
    assert texts is not None
    notes = (*model_notes(recipe, student, teacher, tokenizer), *texts.notes)
    return Findings(tokenizer, student, teacher, stops, shared, texts, notes)


def check_writable(folder: Path) -> None:
    """Write a file where a run's folder would be, and take it away again.

    Raises:
        InputError: it cannot be written.
    """
    existing = next(part for part in (folder.absolute(), *folder.absolute().parents) if part.exists())
    if not existing.is_dir():
        raise InputError(f"output: {existing} is a file; name a folder")
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise InputError(
            f"output: cannot write into {existing} ({error.strerror}); name a folder that you may write into"
        ) from None


def _silent(line: str) -> None:
    """What is found is shown all at once."""


class _Steps:
    """Takes one step after the other, and collects what they complain of."""

    def __init__(self) -> None:
        self._problems: list[str] = []

    def take(
        self, step: Callable[Arguments, Found], *arguments: Arguments.args, **options: Arguments.kwargs
    ) -> Found | None:
        """Return what the step returns, `None` where it found a mistake."""
        try:
            return step(*arguments, **options)
        except InputError as error:
            self._problems.append(str(error))
            return None

    def finish(self) -> None:
        """Raise what was found as one error."""
        problems = list(dict.fromkeys(self._problems))  # a folder that is missing is missing for two steps
        if problems:
            raise InputError("\n".join(problems))
