"""A run whose teacher remembers: where what it says of fixed text is kept, and what is still missing of it."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.errors import InputError
from tutelage.methods.token_matching import TokenMatching
from tutelage.models.cached_teacher import HEAD, CachedTeacher, TopKTeacher, store_head
from tutelage.models.capture import Capture, plan_capture
from tutelage.models.head import output_head
from tutelage.models.identity import tokenizer_identity, weights_identity
from tutelage.models.kept_scores import HiddenStates, Kind, TopK
from tutelage.models.language_model import LanguageModel
from tutelage.models.loading import load_model, load_tokenizer, stop_ids
from tutelage.models.score_store import ScoreStore
from tutelage.models.skeleton import load_skeleton
from tutelage.models.teachers import LocalTeacher
from tutelage.models.vocabulary import shared_vocabulary
from tutelage.recipe import Recipe
from tutelage.rollouts.rollout import Rollout
from tutelage.training.disk import readable
from tutelage.training.fixed_text import autocast, fixed_text, needs_weights
from tutelage.training.texts import Texts
from tutelage.world import world

_SECONDS = 10.0  # between two lines about a capture that goes on
_SECONDS_BETWEEN_QUESTIONS = 0.2  # whether another run has finished capturing

Report = Callable[[str], None]


class TeacherAtHand:
    """The teacher of a recipe, of which as much is loaded as is asked for.

    Args:
        recipe: has a teacher.
        device: where results are wanted.
        model: the teacher, where it was loaded for another reason, or its skeleton.
    """

    def __init__(self, recipe: Recipe, device: torch.device, model: PreTrainedModel | None = None) -> None:
        assert recipe.teacher is not None
        self._spec, self._seed, self._device = recipe.teacher, recipe.seed, device
        self._local: LocalTeacher | None = None
        self.tokenizer = load_tokenizer(self._spec, "teacher")
        """Its own tokenizer."""
        self.model = model or load_skeleton(self._spec, "teacher")
        """The model, perhaps without its weights."""

    def local(self) -> LocalTeacher:
        """Return the whole teacher."""
        if self._local is None:
            if next(self.model.parameters()).is_meta:
                self.model = load_model(self._spec, "teacher", seed=self._seed)
            wrapped = LanguageModel(self.model, stop_ids(self.model, self.tokenizer))
            self._local = LocalTeacher(wrapped, self._device)
        return self._local


class TeacherCache:
    """The cache of a recipe: what is in it, what it lacks, and the teacher that reads it.

    Args:
        recipe: its `teacher_cache` has a kind.
        teacher: the teacher.
        vocabulary: leading ids on which student and teacher are compared.
        report: told in one line each what happens.
        repair: forget damaged files, so that they are captured anew; by default they are an error.

    Raises:
        InputError: the folder holds other scores, or a file is missing or damaged.
    """

    def __init__(
        self, recipe: Recipe, teacher: TeacherAtHand, vocabulary: int, report: Report, repair: bool = False
    ) -> None:
        self._recipe, self._teacher, self._report, self._repair = recipe, teacher, report, repair
        self._kind = _kind(recipe, vocabulary)
        self._fingerprint = _fingerprint(recipe, teacher, vocabulary)
        self.folder = Path(recipe.teacher_cache.folder or Path(recipe.output) / "teacher_cache")
        """Where it is."""
        self.store = self._opened()
        """What is in it."""

    @property
    def whole(self) -> bool:
        """Whether it has the head, where its kind needs one."""
        return self._recipe.teacher_cache.kind == "top-k" or self.store.size_of(HEAD) > 0

    def capture(self, text: Rollout) -> Capture:
        """Find out what the cache lacks of a text."""
        head = self._head()
        return plan_capture(text, self.store, self._kind.bytes_a_token(head.shape[1], head.dtype.itemsize))

    def complete(self, text: Rollout, on_progress: Callable[[int], None] | None = None) -> None:
        """Capture what is missing, all processes of the run together. Where another run is at it, wait for that first.

        Args:
            text: all fixed text of the run.
            on_progress: told the number of tokens done, shard by shard; what it raises ends the capture.

        Raises:
            InputError: the disk cannot hold it.
        """
        everyone = world()
        if not everyone.any(not self.whole or self.capture(text).missing_tokens > 0):
            return
        with _only_capture(self.folder):
            self.store = everyone.agreed(self._opened)
            missing = self.capture(text)
            if not self.whole or missing.missing_tokens:
                self._run(missing, on_progress or self._lines(missing.missing_tokens))
                if not everyone.is_main:
                    self.store = self._opened()

    def size(self, text: Capture) -> int:
        """Return the bytes that what is missing will take, at most."""
        head = self._head()
        return text.bytes_of(text.missing_tokens) + (0 if self.whole else head.numel() * head.dtype.itemsize)

    def teacher(self, device: torch.device) -> CachedTeacher | TopKTeacher:
        """Return the teacher that reads the cache; the model is behind it where the run asks for more."""
        live = self._teacher.local() if needs_weights(self._recipe) else None
        if self._recipe.teacher_cache.kind == "top-k":
            return TopKTeacher(self.store, device, temperature_of(self._recipe), live)
        return CachedTeacher(self.store, device, live)

    def _run(self, missing: Capture, on_progress: Callable[[int], None]) -> None:
        size, tokens = self.size(missing), missing.missing_tokens
        world().main_does(lambda: self._check_room(size))
        self._report(f"teacher cache: {tokens:,} of {missing.tokens:,} tokens to score, {readable(size)} at most")
        local = world().agreed(self._teacher.local)
        if not self.whole:
            world().main_does(lambda: store_head(self.store, local.head))
        start = time.perf_counter()
        with autocast(self._recipe, local.model.device):
            missing.run(self.store, local, self._kind, self._recipe.train.micro_batch_tokens, on_progress)
        rate = tokens / (time.perf_counter() - start)
        rows = self.store.size - self.store.size_of(HEAD)
        self._report(
            f"teacher cache: complete, {readable(self.store.size)} ({rows / missing.tokens:.0f} bytes a token), "
            f"{rate:,.0f} tokens a second"
        )

    def _check_room(self, size: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise InputError(
                f"the teacher cache needs {readable(size)} in {self.folder}, and {readable(free)} are free; name a "
                "teacher_cache.folder on another disk, or choose teacher_cache.kind: top-k or a smaller dtype"
            )

    def _opened(self) -> ScoreStore:
        if not self._repair:
            return ScoreStore(self.folder, self._fingerprint)
        return ScoreStore(
            self.folder,
            self._fingerprint,
            on_damage=lambda path, fault: self._report(f"teacher cache: {path} {fault}; it is captured anew"),
        )

    def _head(self) -> Tensor:
        return output_head(self._teacher.model).weight

    def _lines(self, tokens: int) -> Callable[[int], None]:
        done, last = 0, time.perf_counter()

        def progress(more: int) -> None:
            nonlocal done, last
            done += more
            if time.perf_counter() - last > _SECONDS:
                last = time.perf_counter()
                self._report(f"teacher cache: {done:,} of {tokens:,} tokens")

        return progress


@contextmanager
def _only_capture(folder: Path) -> Iterator[None]:
    """Hold a cache against other runs, by the first process of this one; ask again until nobody else is at it."""
    lock = FileLock(folder / ".capture.lock", blocking=False)

    def acquired() -> bool:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            return False
        return True

    try:
        while not world().main_does(acquired):
            time.sleep(_SECONDS_BETWEEN_QUESTIONS)
        yield
    finally:
        lock.release()


def cached_teacher(
    recipe: Recipe,
    student: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    texts: Texts,
    report: Report,
) -> tuple[CachedTeacher | TopKTeacher, int]:
    """Return the teacher of a run from its cache, completed first where something is missing.

    Args:
        recipe: its `teacher_cache` has a kind.
        student: the student.
        tokenizer: the run's.
        model: the teacher, or its skeleton: its weights are read only if they are needed.
        texts: rows of the run.
        report: told in one line each what happens.

    Returns:
        The teacher, and the number of ids that both vocabularies share.

    Raises:
        InputError: the cache is somebody else's or damaged, or the disk cannot hold it.
    """
    teacher = TeacherAtHand(recipe, student.device, model)
    shared = shared_vocabulary(tokenizer, teacher.tokenizer, student.head.vocabulary, output_head(model).vocabulary)
    if shared.note:
        report(f"vocabulary: {shared.note}")
    cache = TeacherCache(recipe, teacher, shared.size, report)
    cache.complete(fixed_text(recipe, texts, lambda: teacher.local().model, shared.size))
    part = "" if needs_weights(recipe) else "; the model itself is not needed"
    report(f"teacher: its scores of fixed text are in {cache.folder}{part}")
    return cache.teacher(student.device), shared.size


def temperature_of(recipe: Recipe) -> float:
    """The temperature at which a method compares that asks for distributions only."""
    assert isinstance(recipe.method, TokenMatching)
    return recipe.method.temperature


def _kind(recipe: Recipe, vocabulary: int) -> Kind:
    settings = recipe.teacher_cache
    dtype = None if settings.dtype == "exact" else getattr(torch, settings.dtype)
    if settings.kind == "top-k":
        return TopK(settings.mass, settings.max_k, vocabulary, temperature_of(recipe), dtype)
    return HiddenStates(dtype)


def _fingerprint(recipe: Recipe, teacher: TeacherAtHand, vocabulary: int) -> dict[str, Any]:
    """What the scores depend on besides the text."""
    settings, spec = recipe.teacher_cache, recipe.teacher
    assert spec is not None
    found = {
        "teacher": weights_identity(spec, "teacher"),
        "tokenizer": tokenizer_identity(teacher.tokenizer),
        "computed in": f"{spec.dtype}, train.precision {recipe.train.precision}",
        "teacher_cache.kind": settings.kind,
        "teacher_cache.dtype": settings.dtype,
    }
    if settings.kind == "top-k":
        found |= {
            "teacher_cache.mass": settings.mass,
            "teacher_cache.max_k": settings.max_k,
            "method.temperature": temperature_of(recipe),
            "shared vocabulary": vocabulary,
        }
    return found
