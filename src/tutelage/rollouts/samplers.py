"""Who writes the text: samplers turn rows of the data into rollouts.

What `sample(examples, step)` returns depends on its arguments, the seed, the current weights and, for samplers
with a memory (a replay buffer, an adaptive share), on their `state` only; so a resumed run samples what the
uninterrupted one would have. What a sampler remembers it replaces and never changes in place: a run that is told
to stop while it samples saves what was before.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tutelage.config import Decoding
from tutelage.data import Example
from tutelage.errors import DivergedError
from tutelage.models.language_model import LanguageModel
from tutelage.randomness import generator
from tutelage.rollouts.decoding import decode
from tutelage.rollouts.rollout import Rollout, joined
from tutelage.rollouts.store import TextStore


class Sampler(Protocol):
    """Anything that turns rows of the data into a rollout."""

    def sample(self, examples: Sequence[Example], step: int) -> Rollout:
        """Return the same number of sequences for each row, one row after the other, in the given order."""
        ...

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Take the values of an evaluation."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what has to be remembered to go on, for JSON."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        ...


class Stateless:
    """Part of the samplers that remember nothing."""

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Nothing depends on evaluations."""

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


@dataclass(frozen=True)
class DataSampler(Stateless):
    """The responses that the data came with."""

    def sample(self, examples: Sequence[Example], step: int) -> Rollout:
        """Return the rows as they are; each has a response."""
        return Rollout.of(
            [e.prompt for e in examples],
            [e.response for e in examples],
            masks=[e.mask for e in examples],
            items=[e.item for e in examples],
        )


def several(examples: Sequence[Example], step: int, samples: int) -> dict[str, Any]:
    """Return the prompts, places and items for several responses to each row, one after the other.

    >>> row = Example(7, "", (3, 4), (), (), "", "")
    >>> several([row], step=2, samples=2)["places"]
    [(2, 7, 0), (2, 7, 1)]
    """
    repeated = [(example, number) for example in examples for number in range(samples)]
    return {
        "prompts": [example.prompt for example, _ in repeated],
        "places": [(step, example.item, number) for example, number in repeated],
        "items": [example.item for example, _ in repeated],
    }


@dataclass(frozen=True)
class StudentSampler(Stateless):
    """Text written by the student as it is now. No gradient goes through the writing."""

    student: LanguageModel
    decoding: Decoding
    seed: int
    vocabulary: int | None = None
    samples: int = 1
    """Responses to each prompt."""

    def sample(self, examples: Sequence[Example], step: int) -> Rollout:
        """Write the responses to each prompt, those to the same prompt one after the other."""
        return decode(
            self.student,
            decoding=self.decoding,
            seed=self.seed,
            vocabulary=self.vocabulary,
            **several(examples, step, self.samples),
        )


@dataclass(frozen=True)
class TeacherSampler(Stateless):
    """Text written by the teacher: once for each prompt, kept on disk, and reused from there."""

    teacher: LanguageModel | None
    """Who writes; may be `None` where the store is known to have the responses to all prompts."""
    decoding: Decoding
    seed: int
    store: TextStore
    vocabulary: int | None = None

    def sample(self, examples: Sequence[Example], step: int) -> Rollout:
        """Return the stored responses; have the missing ones written first."""
        missing = [e for e in examples if self.store.get(e.prompt) is None]
        if missing:
            assert self.teacher is not None
            written = decode(
                self.teacher,
                [e.prompt for e in missing],
                self.decoding,
                seed=self.seed,
                places=[(e.item,) for e in missing],
                writer="teacher",
                vocabulary=self.vocabulary,
            )
            _refuse_nonfinite(written, missing)
            self.store.add(written)
        return Rollout.of(
            [e.prompt for e in examples],
            [self.store.get(e.prompt) or () for e in examples],
            writer="teacher",
            items=[e.item for e in examples],
        )


def _refuse_nonfinite(written: Rollout, examples: Sequence[Example]) -> None:
    """Keep text off the disk that a model wrote from numbers that are not finite."""
    for example, logps in zip(examples, written.logps or (), strict=False):
        if not all(map(math.isfinite, logps)):
            raise DivergedError(
                f"the teacher's log-probabilities are not finite while it writes for {example.where}; nothing of this "
                "text is kept. Check teacher.dtype (bfloat16 has a wider range than float16)"
            )


@dataclass(frozen=True)
class FreshTeacherSampler(Stateless):
    """Text written by the teacher anew for every collection, and kept nowhere."""

    teacher: LanguageModel
    decoding: Decoding
    seed: int
    vocabulary: int | None = None

    def sample(self, examples: Sequence[Example], step: int) -> Rollout:
        """Write one response to each prompt."""
        return decode(
            self.teacher,
            [e.prompt for e in examples],
            self.decoding,
            seed=self.seed,
            places=[(step, e.item) for e in examples],
            items=[e.item for e in examples],
            writer="teacher",
            vocabulary=self.vocabulary,
        )


@dataclass(frozen=True)
class Mixture(Stateless):
    """The student's text with some probability, another sampler's otherwise.

    Drawn once a step for the whole batch (`unit="step"`, GKD's Algorithm 1: u ~ U(0, 1), the student's text if
    u < fraction), or anew for every row (`unit="example"`, the original ImitKD).
    """

    student: Sampler
    other: Sampler
    fraction: Callable[[int], float]
    """Probability of the student's text at a step."""
    unit: Literal["step", "example"]
    seed: int

    def sample(self, examples: Sequence[Example], step: int) -> Rollout:
        """Draw who writes, and return the rows in their order."""
        fraction = self.fraction(step)
        if self.unit == "step":
            by_student = generator(self.seed, "mixture", step).random() < fraction
            return (self.student if by_student else self.other).sample(examples, step)
        chosen = [generator(self.seed, "mixture", step, e.item).random() < fraction for e in examples]
        groups = [
            (self.student, [row for row, by_student in enumerate(chosen) if by_student]),
            (self.other, [row for row, by_student in enumerate(chosen) if not by_student]),
        ]
        parts = [(sampler.sample([examples[r] for r in rows], step), rows) for sampler, rows in groups if rows]
        order = [row for _, rows in parts for row in rows]
        return joined([part for part, _ in parts]).select([order.index(row) for row in range(len(examples))])


@dataclass(frozen=True)
class Both(Stateless):
    """Fixed text and the student's own text for each prompt, the fixed text first."""

    fixed: Sampler
    student: Sampler

    def sample(self, examples: Sequence[Example], step: int) -> Rollout:
        """Return all sequences of a prompt one after the other."""
        fixed, own = self.fixed.sample(examples, step), self.student.sample(examples, step)
        sizes = [len(part) // len(examples) for part in (fixed, own)]
        order = [
            start + row * size + number
            for row in range(len(examples))
            for start, size in ((0, sizes[0]), (len(fixed), sizes[1]))
            for number in range(size)
        ]
        return joined([fixed, own]).select(order)


@dataclass(frozen=True)
class Sources:
    """The samplers that a run can offer to its method, and what schedules depend on."""

    data: Callable[[], Sampler]
    student: Callable[..., Sampler]
    """Takes a decoding, and a number of samples where that is not 1."""
    teacher: Callable[[Decoding], Sampler]
    seed: int
    steps: int
    fresh_teacher: Callable[[Decoding], Sampler] | None = None
    """The teacher writing anew each time; `teacher` writes once and keeps the text."""
    mixed: Callable[..., Sampler] | None = None
    """Takes a decoding, the teacher's share, and a number of samples where that is not 1."""
