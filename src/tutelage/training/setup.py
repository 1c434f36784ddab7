"""From a recipe to what the loop needs: rows as ids, models in place, vocabularies checked."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.config import Model
from tutelage.data import Examples, Order, encode, fingerprint, plain_rows, read_rows
from tutelage.errors import InputError
from tutelage.models.language_model import LanguageModel
from tutelage.models.loading import load_model, load_tokenizer, stop_ids
from tutelage.models.teachers import LocalTeacher
from tutelage.models.vocabulary import shared_vocabulary
from tutelage.recipe import Recipe
from tutelage.rollouts.mixed import MixedSampler
from tutelage.rollouts.rollout import Rollout
from tutelage.rollouts.samplers import DataSampler, FreshTeacherSampler, Sources, StudentSampler, TeacherSampler
from tutelage.rollouts.store import TextStore
from tutelage.training.dropout import without_dropout


@dataclass(frozen=True)
class Texts:
    """The rows of a run as ids."""

    train: Examples
    validation: Examples | None
    fingerprint: str
    """Of the training rows as read."""
    plain: tuple[tuple[int, ...], ...] = ()
    """Rows of `data.text`."""


@dataclass(frozen=True)
class Setup:
    """Everything a run works with."""

    recipe: Recipe
    folder: Path
    tokenizer: PreTrainedTokenizerBase
    student: LanguageModel
    teacher: LocalTeacher | None
    vocabulary: int | None
    """Leading ids on which student and teacher are compared; `None` without a teacher."""
    texts: Texts
    order: Order
    steps: int

    def text_batch(self, step: int, rows: int) -> Rollout:
        """Rows of plain text for one step: the first token is the prompt, the rest the response."""
        order = Order(rows=len(self.texts.plain), seed=self.recipe.seed)
        chosen = [self.texts.plain[row] for row in order.batch(step, rows)]
        return Rollout.of([row[:1] for row in chosen], [row[1:] for row in chosen], writer="text")

    def sources(self) -> Sources:
        """The samplers that the method may choose from."""
        seed, vocabulary = self.recipe.seed, self.vocabulary

        def by_teacher(decoding) -> TeacherSampler:
            assert self.teacher is not None
            assert self.recipe.teacher is not None
            store = TextStore(
                self.folder / "teacher_text.jsonl",
                {
                    "teacher": self.recipe.teacher.model,
                    "decoding": vars(decoding) | {"batch_size": 0},
                    "seed": seed,
                },
            )
            return TeacherSampler(self.teacher.model, decoding, seed, store, vocabulary)

        def by_teacher_anew(decoding) -> FreshTeacherSampler:
            assert self.teacher is not None
            return FreshTeacherSampler(self.teacher.model, decoding, seed, vocabulary)

        def by_both(decoding, teacher_share: float, samples: int = 1) -> MixedSampler:
            assert self.teacher is not None
            teacher = self.teacher.model
            return MixedSampler(self.student, teacher, teacher_share, decoding, seed, vocabulary, samples)

        return Sources(
            data=lambda: _data_sampler(self.recipe, self.texts.train),
            student=lambda decoding, samples=1: StudentSampler(self.student, decoding, seed, vocabulary, samples),
            teacher=by_teacher,
            seed=seed,
            steps=self.steps,
            fresh_teacher=by_teacher_anew,
            mixed=by_both,
        )


def _data_sampler(recipe: Recipe, rows: Examples) -> DataSampler:
    """The sampler of the data's own responses.

    Raises:
        InputError: there are none, so a method that asks for it cannot run.
    """
    if not rows[0].response:  # rows of one source are of one kind
        raise InputError(
            f"{rows[0].where} has a prompt only, but {recipe.method.name} as set up here learns from the data's "
            "responses; add completions, or choose what writes its own text (on-policy-kd, gkd with student_fraction 1 "
            "or offline: teacher, seqkd)"
        )
    return DataSampler()


def check_text(recipe: Recipe, rows: Examples) -> None:
    """Say before anything is loaded that the rows lack the responses that the method asks for.

    Raises:
        InputError: they do.
    """

    def nobody(*_: object, **__: object) -> Any:
        return None

    recipe.method.sampler(
        Sources(
            data=lambda: _data_sampler(recipe, rows),
            student=nobody,
            teacher=nobody,
            seed=recipe.seed,
            steps=1,
            fresh_teacher=nobody,
            mixed=nobody,
        )
    )


def needs_teacher(recipe: Recipe) -> bool:
    """Whether a run has to load its teacher: for the method, for what it measures, or to start from it."""
    return recipe.teacher is not None and (
        recipe.method.needs_teacher
        or "agreement" in recipe.evaluation.metrics
        or "distances" in recipe.evaluation.metrics
        or recipe.student.from_teacher is not None
    )


def student_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The tokenizer of the run: the student's own, or the teacher's for a student without one."""
    own = recipe.student.tokenizer is not None or recipe.student.model is not None
    if own or recipe.teacher is None:
        return load_tokenizer(recipe.student, "student")
    return load_tokenizer(recipe.teacher, "teacher")


def read_texts(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, stops: tuple[int, ...], encoder_decoder: bool
) -> Texts:
    """Read and encode the recipe's rows."""
    data = recipe.data

    def encoded(rows) -> Examples:
        return encode(
            rows,
            tokenizer,
            template=data.template,
            max_prompt_tokens=data.max_prompt_tokens,
            max_tokens=data.max_tokens,
            stop_ids=frozenset(stops),
            encoder_decoder=encoder_decoder,
        )

    train = read_rows(data.train, columns=data.columns, roles=data.roles, limit=data.limit)
    validation = None
    if data.validation is not None:
        validation = encoded(
            read_rows(data.validation, columns=data.columns, roles=data.roles, limit=data.validation_limit)
        )
    if validation is not None and not all(example.response for example in validation):
        raise InputError(
            f"{data.validation} has prompts only, but every metric needs a reference; add completions to the "
            "validation rows, or leave data.validation out"
        )
    plain = () if data.text is None else plain_rows(data.text, tokenizer, data.text_tokens)
    return Texts(encoded(train), validation, fingerprint(train), plain)


def prepare(recipe: Recipe, report: Callable[[str], None], resume_from: Path | None = None) -> Setup:
    """Load everything a run works with.

    Args:
        recipe: the recipe.
        report: told in one line each what was loaded, dropped or noticed.
        resume_from: folder of a checkpoint whose student goes on.

    Raises:
        InputError: a model, a tokenizer or the data are not as they should be.
    """
    tokenizer = student_tokenizer(recipe)
    teacher_model = None
    if needs_teacher(recipe):
        assert recipe.teacher is not None
        teacher_model = load_model(recipe.teacher, "teacher", seed=recipe.seed)
    student_spec = recipe.student
    if resume_from is not None:
        student_spec = model_of_checkpoint(recipe, resume_from)
    student_model = load_model(student_spec, "student", seed=recipe.seed, tokenizer=tokenizer, teacher=teacher_model)
    student = LanguageModel(student_model, stop_ids(student_model, tokenizer))
    teacher, vocabulary = _teacher(recipe, teacher_model, student, tokenizer, report)
    texts = read_texts(recipe, tokenizer, student.stop_ids, student.is_encoder_decoder)
    report(f"student: {_size(student_model)}" + (f" · teacher: {_size(teacher_model)}" if teacher_model else ""))
    report(f"data: {describe_counts('training', texts.train)}")
    if texts.validation is not None:
        report(f"data: {describe_counts('validation', texts.validation)}")
    _ready_for_training(recipe, student_model)
    order = Order(rows=len(texts.train), seed=recipe.seed)
    steps = total_steps(recipe, len(texts.train))
    return Setup(recipe, Path(recipe.output), tokenizer, student, teacher, vocabulary, texts, order, steps)


def total_steps(recipe: Recipe, rows: int) -> int:
    """Optimiser steps of a run: as the recipe says, or those that its epochs over the rows take.

    A method that uses every collection of text for several inner epochs makes that many more steps an epoch.
    """
    if recipe.train.steps is not None:
        return recipe.train.steps
    an_epoch = Order(rows=rows, seed=recipe.seed).steps(recipe.train.epochs or 1, recipe.train.batch_size)
    return an_epoch * recipe.method.plan.inner_epochs


def describe_counts(name: str, examples: Examples) -> str:
    """Say how many rows were kept and dropped, and why."""
    dropped = "".join(f", {count:,} dropped ({reason})" for reason, count in examples.dropped.items())
    return f"{len(examples):,} of {examples.total:,} {name} rows{dropped}"


def _teacher(
    recipe: Recipe,
    model: PreTrainedModel | None,
    student: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    report: Callable[[str], None],
) -> tuple[LocalTeacher | None, int | None]:
    if model is None or recipe.teacher is None:
        return None, None
    own = load_tokenizer(recipe.teacher, "teacher")
    teacher = LocalTeacher(LanguageModel(model, stop_ids(model, own)), student.device)
    shared = shared_vocabulary(tokenizer, own, student.head.vocabulary, teacher.head.vocabulary)
    if shared.note:
        report(f"vocabulary: {shared.note}")
    return teacher, shared.size


def _ready_for_training(recipe: Recipe, model: PreTrainedModel) -> None:
    """Choose the student's mode: dropout as the recipe says, checkpointing of activations if asked for."""
    if not recipe.train.dropout:
        without_dropout(model)
    if recipe.train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train(recipe.train.dropout or recipe.train.gradient_checkpointing)


def _size(model: PreTrainedModel) -> str:
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    part = f", {trained / 1e6:,.2f} M trained" if 0 < trained < count else ""
    return f"{model.config.model_type} with {count / 1e6:,.2f} M parameters{part}"


def model_of_checkpoint(recipe: Recipe, folder: Path) -> Model:
    """The student's section of a recipe, pointed at a finished model or a checkpoint."""
    return replace(recipe.student, model=str(folder), from_config=None, from_teacher=None, revision=None)
