"""What every method is: a frozen dataclass of hyper-parameters that names its sampler and computes its loss.

A method is configuration and runtime in one. It says who writes the text (`sampler`), by what count the loop
divides (`units`), and returns *sums* (`terms`), one for each module that is trained; averages are the loop's
business. Modules here import torch only inside functions, so that a recipe is checked without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tutelage.config import Reduction

if TYPE_CHECKING:
    from torch import Tensor

    from tutelage.models.language_model import LanguageModel
    from tutelage.models.teachers import Teacher
    from tutelage.rollouts.rollout import Rollout
    from tutelage.rollouts.samplers import Sampler, Sources


@dataclass(frozen=True)
class Terms:
    """What a method returns for one micro-batch: sums, never means."""

    losses: Mapping[str, Tensor]
    """One scalar for each trainable module (`student`, and critics by their names); carries the gradient."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Detached sums over the positions, in nats or counts."""


class Objective(Protocol):
    """The interface between a method and the loop."""

    @property
    def name(self) -> str:
        """The method's name in recipes."""
        ...

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher has to be loaded."""
        ...

    def sampler(self, sources: Sources) -> Sampler:
        """Say who writes the text."""
        ...

    def units(self, rollout: Rollout) -> int:
        """Count what the loss is averaged over; the loop adds it up over micro-batches and processes."""
        ...

    def terms(
        self, rollout: Rollout, student: LanguageModel, teacher: Teacher | None, vocabulary: int | None = None
    ) -> Terms:
        """Compare student and teacher on a micro-batch.

        Args:
            rollout: the micro-batch, with at least one masked position.
            student: receives gradients.
            teacher: receives none; may be `None` where `needs_teacher` is false.
            vocabulary: number of leading ids that both vocabularies share.
        """
        ...


def count_units(rollout: Rollout, reduction: Reduction) -> int:
    """Count tokens in the loss, or sequences that have some."""
    if reduction == "token":
        return rollout.positions
    return sum(1 for positions in rollout.positions_of if positions)


def position_weights(rollout: Rollout, reduction: Reduction) -> list[float]:
    """Return the weight of each position in the sum: 1, or 1 / (positions of its sequence).

    With `sequence`, the sum divided by the number of sequences is the mean over sequences of the mean over
    their tokens (GKD, Eq. 2); with `token`, divided by the number of tokens, the mean over all tokens.
    """
    if reduction == "token":
        return [1.0] * rollout.positions
    return [1.0 / positions for positions in rollout.positions_of for _ in range(positions)]
