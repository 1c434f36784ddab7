"""From a recipe to what the loop needs: rows as ids, models in place, vocabularies checked."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.config import Decoding, Model
from tutelage.data import Examples, Order
from tutelage.errors import InputError
from tutelage.evaluation.generated import answer_reader
from tutelage.models import adapters
from tutelage.models.cached_teacher import CachedTeacher, TopKTeacher
from tutelage.models.language_model import LanguageModel
from tutelage.models.loading import device_of, load_model, load_tokenizer, stop_ids
from tutelage.models.pairing import fewest, pair_notes, positions, same_weights_note, stop_note
from tutelage.models.scattering import is_read_once, load_cut
from tutelage.models.served_teacher import ServedTeacher
from tutelage.models.sharding import is_sharded, shard
from tutelage.models.skeleton import load_skeleton
from tutelage.models.teachers import LocalTeacher
from tutelage.models.vocabulary import shared_vocabulary
from tutelage.recipe import Recipe
from tutelage.rollouts.mixed import MixedSampler
from tutelage.rollouts.rollout import Rollout
from tutelage.rollouts.samplers import (
    DataSampler,
    FreshTeacherSampler,
    Sampler,
    Sources,
    StudentSampler,
    TeacherSampler,
)
from tutelage.rollouts.served import ServedStudentSampler
from tutelage.rollouts.student_servers import StudentServers
from tutelage.training.bridging import bridge_line, bridged_teacher, check_bridge
from tutelage.training.disk import check_room
from tutelage.training.dropout import without_dropout
from tutelage.training.fixed_text import check_cache, teacher_text
from tutelage.training.quantised import check_quantised
from tutelage.training.served import check_served, is_served, served_positions, served_teacher, shared_with
from tutelage.training.served_sampling import check_sampling, check_servable, student_servers
from tutelage.training.teacher_cache import cached_teacher
from tutelage.training.texts import Read, Reader, Texts, describe_counts, read, read_texts
from tutelage.training.tracking import check_installed
from tutelage.training.writers import asked_of
from tutelage.world import world


@dataclass(frozen=True)
class Setup:
    """Everything a run works with."""

    recipe: Recipe
    folder: Path
    tokenizer: PreTrainedTokenizerBase
    student: LanguageModel
    teacher: LocalTeacher | CachedTeacher | TopKTeacher | ServedTeacher | None
    vocabulary: int | None
    """Leading ids on which student and teacher are compared; `None` without a teacher."""
    texts: Texts
    order: Order
    steps: int
    servers: StudentServers | None = None
    """Those that write the student's text, where this process does not."""

    def text_batch(self, step: int, rows: int) -> Rollout:
        """Rows of plain text for one step: the first token is the prompt, the rest the response."""
        order = Order(rows=len(self.texts.plain), seed=self.recipe.seed)
        chosen = [self.texts.plain[row] for row in order.batch(step, rows)]
        return Rollout.of([row[:1] for row in chosen], [row[1:] for row in chosen], writer="text")

    def sources(self, largest_batch: int | None = None) -> Sources:
        """The samplers that the method may choose from, where memory is short with smaller batches than asked for."""
        seed, vocabulary = self.recipe.seed, self.vocabulary

        def fitting(decoding: Decoding) -> Decoding:
            size = min(decoding.batch_size, largest_batch or decoding.batch_size)
            return replace(decoding, batch_size=size)

        def by_teacher(decoding) -> TeacherSampler:
            assert self.teacher is not None
            store = teacher_text(self.recipe, decoding)
            return TeacherSampler(self.teacher.model, fitting(decoding), seed, store, vocabulary)

        def by_teacher_anew(decoding) -> FreshTeacherSampler:
            assert self.teacher is not None
            assert self.teacher.model is not None
            return FreshTeacherSampler(self.teacher.model, fitting(decoding), seed, vocabulary)

        def by_both(decoding, teacher_share: float, samples: int = 1) -> Sampler:
            if self.servers is not None:  # the teacher's share is 0, as was checked
                return by_student(decoding, samples)
            assert self.teacher is not None
            teacher = self.teacher.model
            assert teacher is not None
            return MixedSampler(self.student, teacher, teacher_share, fitting(decoding), seed, vocabulary, samples)

        def by_student(decoding, samples: int = 1) -> Sampler:
            if self.servers is not None:
                tokens = self.recipe.train.micro_batch_tokens
                return ServedStudentSampler(self.student, self.servers, decoding, seed, vocabulary, samples, tokens)
            return StudentSampler(self.student, fitting(decoding), seed, vocabulary, samples)

        return Sources(
            data=lambda: _data_sampler(self.recipe, self.texts.train),
            student=by_student,
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
    if any(asked.writer == "data" for asked in asked_of(recipe)):
        _data_sampler(recipe, rows)


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


def prepare(recipe: Recipe, report: Callable[[str], None], resume_from: Path | None = None) -> Setup:
    """Load everything a run works with.

    Args:
        recipe: the recipe.
        report: told in one line each what was loaded, dropped or noticed.
        resume_from: folder of a checkpoint whose student goes on.

    Raises:
        InputError: a model, a tokenizer or the data are not as they should be.
    """
    for check in first_checks(recipe):
        check()
    rows = read(recipe)
    tokenizer = student_tokenizer(recipe)
    check_room(recipe, tokenizer)
    served = served_teacher(recipe, report)
    servers = student_servers(recipe, tokenizer, report)
    teacher_model = _teacher_model(recipe)
    student_spec = recipe.student
    if resume_from is not None:
        student_spec = model_of_checkpoint(recipe, resume_from)
    student = load_student(recipe, student_spec, tokenizer, teacher_model)
    student_model = student.model
    check_servable(recipe, student_model)
    room = fewest(positions(student_model, teacher_model), served_positions(served), servers and servers.max_length)
    reader = Reader(tokenizer, student.stop_ids, student.is_encoder_decoder, room)
    texts = read_texts(recipe, reader, rows)
    report(f"student: {_size(student_model)}" + (f" · teacher: {_size(teacher_model)}" if teacher_model else ""))
    report(f"data: {describe_counts('training', texts.train)}")
    if texts.validation is not None:
        report(f"data: {describe_counts('validation', texts.validation)}")
    for note in [*model_notes(recipe, student_model, teacher_model, tokenizer), *texts.notes]:
        report(f"note: {note}")
    check_text(recipe, texts.train)
    teacher, vocabulary = _teacher(recipe, served or teacher_model, student, tokenizer, rows, texts, report)
    _ready_for_training(recipe, student_model)
    order = Order(rows=len(texts.train), seed=recipe.seed)
    steps = total_steps(recipe, len(texts.train))
    return Setup(recipe, Path(recipe.output), tokenizer, student, teacher, vocabulary, texts, order, steps, servers)


def first_checks(recipe: Recipe) -> list[Callable[[], object]]:
    """What needs nothing to be loaded: each check raises `InputError` where the recipe cannot run on this machine."""
    models = {"student": recipe.student} | ({} if recipe.teacher is None else {"teacher": recipe.teacher})
    return [
        partial(check_bridge, recipe),
        partial(check_cache, recipe),
        partial(check_served, recipe),
        partial(check_sampling, recipe),
        partial(answer_reader, recipe.evaluation.answer),
        partial(check_installed, recipe.train.trackers),
        partial(_check_dtype, recipe.student),
        *(partial(device_of, model.device, role) for role, model in models.items()),
        partial(check_quantised, recipe),
    ]


def _check_dtype(student: Model) -> None:
    if student.dtype == "float16":
        raise InputError(
            "student.dtype is float16, whose range is too narrow for gradients and Adam's moments; "
            "use float32, with train.precision: bfloat16 to save time"
        )


def model_notes(
    recipe: Recipe, student: PreTrainedModel, teacher: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """What is not wrong about the models of a run, and yet worth a line each."""
    notes = [stop_note(student, tokenizer)]
    if teacher is not None and recipe.teacher is not None:
        notes += [
            same_weights_note(recipe.student, recipe.teacher),
            *pair_notes(
                student,
                teacher,
                tokenizer,
                # A teacher that reads with its own tokenizer has its own chat template as well.
                tokenizer if recipe.method.plan.bridges_tokenizers else load_tokenizer(recipe.teacher, "teacher"),
            ),
        ]
    return [note for note in notes if note]


def total_steps(recipe: Recipe, rows: int) -> int:
    """Optimiser steps of a run: as the recipe says, or those that its epochs over the rows take.

    A method that uses every collection of text for several inner epochs makes that many more steps an epoch.
    """
    if recipe.train.steps is not None:
        return recipe.train.steps
    an_epoch = Order(rows=rows, seed=recipe.seed).steps(recipe.train.epochs or 1, recipe.train.batch_size)
    return an_epoch * recipe.method.plan.inner_epochs


def _teacher_model(recipe: Recipe) -> PreTrainedModel | None:
    """The teacher where the run needs one; its skeleton where a cache may do instead of its weights."""
    if recipe.teacher is None or is_served(recipe) or not needs_teacher(recipe):
        return None
    if recipe.teacher_cache.kind is not None and recipe.student.from_teacher is None:
        return load_skeleton(recipe.teacher, "teacher")
    if recipe.train.shard == "both" and _is_scattered(recipe.teacher, "teacher") and not _gives_weights(recipe):
        return load_cut(recipe.teacher, "teacher", seed=recipe.seed, within=recipe.train.shard_within)
    return load_model(recipe.teacher, "teacher", seed=recipe.seed)


def load_student(
    recipe: Recipe, spec: Model, tokenizer: PreTrainedTokenizerBase, teacher: PreTrainedModel | None = None
) -> LanguageModel:
    """Load a student; with `train.shard` cut over the processes of the run, all of which call it.

    Args:
        recipe: whose student it is.
        spec: where it lies, or what it is made of.
        tokenizer: of the run.
        teacher: the model that `from_teacher` copies from, or, while it is whole, whose weights an adapter may share.

    Raises:
        InputError: as `load_model` and `shard` say.
    """
    cut = recipe.train.shard != "none"
    if cut and _is_scattered(spec, "student"):
        model = load_cut(spec, "student", seed=recipe.seed, within=recipe.train.shard_within)
    else:
        giver = None if teacher is None or is_sharded(teacher) else teacher
        model = load_model(spec, "student", seed=recipe.seed, tokenizer=tokenizer, teacher=giver)
    student = LanguageModel(model, stop_ids(model, tokenizer))
    if cut:
        shard(model, "student", recipe.train.shard_within)
    return student


def _gives_weights(recipe: Recipe) -> bool:
    """Whether the teacher is needed whole at first: its layers are copied, or an adapter goes on the same weights."""
    student, teacher = recipe.student, recipe.teacher
    assert teacher is not None
    return student.from_teacher is not None or world().main_does(lambda: adapters.is_on(student, teacher))


def _is_scattered(spec: Model, role: str) -> bool:
    return world().size > 1 and world().main_does(lambda: is_read_once(spec, role))


def _teacher(
    recipe: Recipe,
    model: PreTrainedModel | ServedTeacher | None,
    student: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Read,
    texts: Texts,
    report: Callable[[str], None],
) -> tuple[LocalTeacher | CachedTeacher | TopKTeacher | ServedTeacher | None, int | None]:
    if model is None or recipe.teacher is None:
        return None, None
    if isinstance(model, ServedTeacher):
        shared = shared_with(model, student.network, tokenizer)
        if shared.note:
            report(f"vocabulary: {shared.note}")
        return model, shared.size
    if recipe.teacher_cache.kind is not None:
        return cached_teacher(recipe, student, tokenizer, model, texts, report)
    own = load_tokenizer(recipe.teacher, "teacher")
    if recipe.method.plan.bridges_tokenizers:
        bridged = bridged_teacher(recipe, model, own, student, tokenizer, rows, texts)
        report(f"vocabulary: {bridge_line(bridged)}")
        if recipe.train.shard == "both":
            shard(model, "teacher", recipe.train.shard_within)
        return bridged, None
    teacher = LocalTeacher(LanguageModel(model, stop_ids(model, own)), student.device)
    if recipe.train.shard == "both":
        shard(model, "teacher", recipe.train.shard_within)
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
    count = model.num_parameters()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    part = f", {trained / 1e6:,.2f} M trained" if 0 < trained < count else ""
    return f"{model.config.model_type} with {count / 1e6:,.2f} M parameters{part}"


def model_of_checkpoint(recipe: Recipe, folder: Path) -> Model:
    """The student's section of a recipe, pointed at a finished model or a checkpoint."""
    return replace(recipe.student, model=str(folder), from_config=None, from_teacher=None, adapter=None)
