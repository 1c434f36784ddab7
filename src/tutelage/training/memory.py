"""What a run needs of memory, phase by phase, found by running its phases without numbers."""

import copy
import re
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel

from tutelage.config import Decoding
from tutelage.data import Examples
from tutelage.divergences import forward_kl
from tutelage.evaluation.evaluate import GENERATED
from tutelage.losses import linear_divergence
from tutelage.models import adapters
from tutelage.models.language_model import LanguageModel
from tutelage.models.quantising import weight_bytes
from tutelage.models.teachers import LocalTeacher
from tutelage.recipe import Recipe
from tutelage.rollouts.rollout import Ids, Rollout
from tutelage.training.ledger import Ledger, as_fake, pretending
from tutelage.training.writers import asked_of

_GIB = 2**30
_LOGITS = 4  # float32 arrays of size batch × vocabulary alive while a token is drawn
_ALLOCATOR = 1.08
"""On the CPU, resident memory over the bytes that the tensors of a phase hold: what the C library's allocator keeps
between blocks of changing sizes (benchmarks/RESULTS.md, Memory)."""


@dataclass(frozen=True)
class Part:
    """One part of a run's memory."""

    name: str
    gibibytes: float
    knob: str
    """What lowers it."""
    at_once: bool = True
    """Held all the time; a phase's own memory is held while it lasts only."""


class _Shape(LanguageModel):
    """A language model of fake tensors: there are no numbers to verify its head with."""

    def _verify(self) -> None:
        pass


def estimate(
    recipe: Recipe, student: PreTrainedModel, teacher: PreTrainedModel | None, examples: Examples
) -> list[Part]:
    """Predict the resident memory of a run: what is held all the time, what each phase adds, and the peak.

    The longest rows of the data, with responses as long as the recipe allows, go through the models forward and
    backward as fake tensors, so that every architecture, precision and checkpointing of activations is accounted
    for. A method's further passes without gradients need less than the one with them.

    Args:
        recipe: sizes of batch and micro-batch, precision, how text is written.
        student: its skeleton (`models.skeleton`).
        teacher: likewise.
        examples: the training rows.

    Returns:
        Parts in GiB, the peak last; each with the keys of the recipe that lower it.
    """
    student, teacher = copy.deepcopy((student, teacher))
    with torch.device("meta"):
        student = cast(PreTrainedModel, adapters.outline(student, recipe.student, "student"))
    with pretending():
        run = _Run(recipe, student, teacher, examples)
        held, phases = run.held(), run.phases()
    allocator = 1.0 if _on_cuda(recipe) else _ALLOCATOR
    phases = [Part(p.name, p.gibibytes * allocator, p.knob, at_once=False) for p in phases]
    peak = sum(p.gibibytes for p in held) + max(p.gibibytes for p in phases)
    worst = max(phases, key=lambda p: p.gibibytes)
    return [*held, *phases, Part(f"peak (in {worst.name})", peak, worst.knob)]


class _Run:
    """A run's models as fake tensors, and its longest step."""

    def __init__(
        self, recipe: Recipe, student: PreTrainedModel, teacher: PreTrainedModel | None, examples: Examples
    ) -> None:
        self._recipe, self._train = recipe, recipe.train
        self._student_model = as_fake(student)
        if self._train.gradient_checkpointing:
            self._student_model.gradient_checkpointing_enable({"use_reentrant": False})
        self._student_model.train(self._train.gradient_checkpointing)
        self._student = _Shape(self._student_model)
        self._teacher = None if teacher is None else _Shape(as_fake(teacher).eval().requires_grad_(False))
        self._own = recipe.method.modules(
            self._student, None if self._teacher is None else LocalTeacher(self._teacher), recipe.seed
        )
        rows = sorted(examples, key=lambda e: len(e.prompt) + len(e.response), reverse=True)[: self._train.batch_size]
        self._rows = rows * -(-self._train.batch_size // len(rows))

    def held(self) -> list[Part]:
        """What stays in memory all the time."""
        student, own = _bytes(self._student_model), sum(map(_bytes, self._own.values()))
        learning = _bytes(self._student_model, learning=True) + own
        parts = [
            Part("student's weights", student / _GIB, "student.dtype, a smaller student"),
            Part("optimiser", 2 * learning / _GIB, "an adapter, a smaller student"),
        ]
        if own:
            parts.append(Part("the method's own modules", own / _GIB, "the method's rank or sizes"))
        teacher = self._recipe.teacher
        if self._teacher is not None and not (teacher and adapters.is_on(self._recipe.student, teacher)):
            size = weight_bytes(self._teacher.network, "none" if teacher is None else teacher.quantize)
            parts.append(Part("teacher's weights", size / _GIB, "teacher.dtype, teacher.quantize"))
        if not _on_cuda(self._recipe):
            parts.insert(0, Part("Python and libraries", resident() / _GIB, "–"))
        return parts

    def phases(self) -> list[Part]:
        """What each phase needs besides, the update first."""
        written = _written(self._recipe)
        parts = [self._update(written)]
        for who, decoding, samples in written:
            rows = min(decoding.batch_size, self._train.batch_size * samples)
            model = self._teacher if who == "teacher" else self._student
            assert model is not None
            both = [self._student, self._teacher] if who == "mixture" else [model]
            size = sum(self._writing(m, decoding, rows) for m in both if m is not None)
            name = "text for the evaluation" if who == "evaluation" else f"text by the {who}"
            parts.append(Part(name, size / _GIB, "the decoding's batch_size and max_new_tokens"))
        return parts

    def _update(self, written: list[tuple[str, Decoding, int]]) -> Part:
        """Forward, divergence and backward of the two largest micro-batches of a step, one after the other."""
        longest = max((decoding.max_new_tokens for _, decoding, _ in written), default=0)
        samples = max((samples for _, _, samples in written), default=1)
        rows = [row for row in self._rows for _ in range(samples)]
        responses = [e.response if len(e.response) >= longest else (0,) * longest for e in rows]
        rollout = Rollout.of([e.prompt for e in rows], responses)
        parts = rollout.micro_batches(self._train.micro_batch_tokens)[:2]
        with Ledger() as ledger:
            for part in parts:
                self._pass(part)
        size = max(len(part) * max(part.lengths) for part in parts)
        knobs = "train.micro_batch_tokens, train.gradient_checkpointing, train.precision"
        return Part(f"update of {size:,} tokens at a time", ledger.peak / _GIB, knobs)

    def _pass(self, rollout: Rollout) -> None:
        student, teacher = self._student, self._teacher
        with torch.autocast("cpu", torch.bfloat16, enabled=self._train.precision == "bfloat16"):
            hidden = student.hidden(rollout)
            if teacher is None:
                weights = hidden.new_ones(len(hidden), dtype=torch.float32)
                targets = student.targets(rollout)
                scores = linear_divergence(hidden, student.head, targets=targets, cross_entropy=weights)
            else:
                with torch.no_grad():
                    teacher_hidden = teacher.hidden(rollout)
                scores = linear_divergence(hidden, student.head, teacher_hidden, teacher.head, forward_kl)
        scores.total.backward()

    def _writing(self, model: LanguageModel, decoding: Decoding, rows: int) -> int:
        """Bytes for reading the prompts, or for the whole cache and the logits of one position."""
        longest = max(len(e.prompt) for e in self._rows)
        prompts: list[Ids] = [(0,) * longest] * rows
        with Ledger() as ledger, torch.no_grad():
            cache = _read(model, prompts)
            kept = ledger.held * (longest + decoding.max_new_tokens) / longest
        del cache
        logits = _LOGITS * 4 * rows * model.head.vocabulary
        return int(max(ledger.peak, kept) + logits)


def _read(model: LanguageModel, prompts: list[Ids]) -> Cache:
    """Read prompts and return the cache of keys and values."""
    ids, config = torch.tensor(prompts), model.network.config
    if not model.is_encoder_decoder:
        cache = DynamicCache(config=config)
        model.network.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        return cache
    cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
    states = model.network.get_encoder()(input_ids=ids).last_hidden_state
    model.network.get_decoder()(input_ids=ids, encoder_hidden_states=states, past_key_values=cache, use_cache=True)
    return cache


def _written(recipe: Recipe) -> list[tuple[str, Decoding, int]]:
    """Who writes text in a step, how, and how many responses to a prompt."""
    found = [(_WHO[one.writer], one.decoding, one.samples) for one in asked_of(recipe) if one.decoding is not None]
    if any(name in recipe.evaluation.metrics for name in GENERATED):
        found.append(("evaluation", recipe.evaluation.decoding, 1))
    return found


_WHO = {"student": "student", "teacher": "teacher", "fresh_teacher": "teacher", "mixed": "mixture"}


def resident() -> int:
    """Bytes of memory that this process has held at most."""
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if peak is not None:  # what `getrusage` says on Linux is at least what the process had that started this one
        return int(peak[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _bytes(model: torch.nn.Module, learning: bool = False) -> int:
    """What the weights of a model take, or those of them that learn."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad or not learning)


def _on_cuda(recipe: Recipe) -> bool:
    device = recipe.student.device
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
