"""Who writes the text of a run: asked of its method before anything is loaded."""

from dataclasses import dataclass
from typing import Literal

from tutelage.config import Decoding
from tutelage.recipe import Recipe
from tutelage.rollouts.samplers import DataSampler, Sampler, Sources

Writer = Literal["data", "student", "teacher", "fresh_teacher", "mixed"]


@dataclass(frozen=True)
class Asked:
    """A sampler that a method asked for."""

    writer: Writer
    """By its name in `Sources`."""
    decoding: Decoding | None = None
    """How text is written; `None` for the data's own."""
    samples: int = 1
    """Responses to a prompt."""
    teacher_share: float = 0.0
    """Of a mixture of teacher and student, how much of it the teacher is."""


def asked_of(recipe: Recipe) -> list[Asked]:
    """Return the samplers that the method of a run asks for; none of them can write.

    A method has sections for writers that it does not use as it is set up, so its settings alone do not tell.
    """
    asked: list[Asked] = []

    def note(writer: Writer, decoding: Decoding | None = None, samples: int = 1, teacher_share: float = 0.0) -> Sampler:
        asked.append(Asked(writer, decoding, samples, teacher_share))
        return DataSampler()

    recipe.method.sampler(
        Sources(
            data=lambda: note("data"),
            student=lambda decoding, samples=1: note("student", decoding, samples),
            teacher=lambda decoding: note("teacher", decoding),
            seed=recipe.seed,
            steps=1,
            fresh_teacher=lambda decoding: note("fresh_teacher", decoding),
            mixed=lambda decoding, teacher_share, samples=1: note("mixed", decoding, samples, teacher_share),
        )
    )
    return asked
