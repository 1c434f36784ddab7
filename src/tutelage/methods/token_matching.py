"""Matching the teacher token by token: what SeqKD, supervised KD, on-policy KD, ImitKD and GKD have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, CrossEntropyShare, DivergenceName, LossTemperature, Reduction
from tutelage.methods.objective import Direct, Modules, Plan, Terms, count_units, position_weights

if TYPE_CHECKING:
    from torch import Tensor

    from tutelage.losses import Scores
    from tutelage.losses.linear import PointwiseFunction
    from tutelage.models.language_model import LanguageModel
    from tutelage.models.teachers import Teacher
    from tutelage.rollouts.rollout import Rollout
    from tutelage.rollouts.samplers import Sampler, Sources


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TokenMatching(Direct, ABC):
    """The loss of the methods that differ only in who writes the text; they add a name and a sampler.

    Formula: Σ w_t [(1 − s)·D(teacher, student)_t + s·(−log q(y_t))], with the weight w of the reduction.
    """

    divergence: DivergenceName = "forward_kl"
    cross_entropy: CrossEntropyShare = 0.0
    temperature: LossTemperature = 1.0
    reduction: Reduction = "token"

    @abstractmethod
    def sampler(self, sources: Sources) -> Sampler:
        """Say who writes the text."""

    @property
    def plan(self) -> Plan:
        """One batch, one step; distributions are compared, unless fixed text only repeats its own words."""
        return Plan(asks_of_fixed_text="nothing" if self.cross_entropy == 1 else "distribution")

    def units(self, rollout: Rollout) -> dict[str, float]:
        """Count tokens or sequences."""
        return {"student": count_units(rollout, self.reduction)}

    def terms(
        self,
        rollout: Rollout,
        student: LanguageModel,
        teacher: Teacher | None,
        vocabulary: int | None = None,
        modules: Modules | None = None,
        training: Sequence[str] = ("student",),
    ) -> Terms:
        """Return the sum of the loss over a micro-batch."""
        assert teacher is not None
        if self.cross_entropy == 1 and "student" not in rollout.writers:
            return cross_entropy_terms(rollout, student, self.reduction, vocabulary)
        return token_matching_terms(
            rollout,
            student,
            teacher,
            divergence=self.divergence,
            reduction=self.reduction,
            temperature=self.temperature,
            cross_entropy=self.cross_entropy,
            vocabulary=vocabulary,
        )


def cross_entropy_terms(
    rollout: Rollout, student: LanguageModel, reduction: Reduction, vocabulary: int | None = None
) -> Terms:
    """Return the sum of −log q(y) over the masked positions, each with its reduction's weight.

    Args:
        rollout: a micro-batch.
        student: receives gradients.
        reduction: token mean or sequence mean.
        vocabulary: number of leading ids to normalise over; all by default.
    """
    import torch

    from tutelage.losses import linear_divergence

    weights = torch.tensor(position_weights(rollout, reduction), device=student.device, dtype=torch.float64)
    scores = linear_divergence(
        student.hidden(rollout),
        student.head,
        targets=student.targets(rollout, vocabulary),
        cross_entropy=weights,
        vocabulary=vocabulary,
    )
    assert scores.student_logp is not None
    return Terms({"student": scores.total}, {"cross_entropy": -scores.student_logp.sum()})


def token_matching_terms(
    rollout: Rollout,
    student: LanguageModel,
    teacher: Teacher,
    *,
    divergence: str | PointwiseFunction,
    reduction: Reduction,
    temperature: float = 1.0,
    cross_entropy: float = 0.0,
    vocabulary: int | None = None,
) -> Terms:
    """Return the sum over positions of (1 − s)·D(teacher, student) + s·(−log q(y)).

    The share s is `cross_entropy` on text of the data and the teacher. On the student's own text it is 0, for
    there is nothing right about that text that the student could learn by repeating it (it collapses).

    Args:
        rollout: a micro-batch; no gradient goes through how it was written. Importance weights that came with it
            multiply its positions.
        student: receives gradients.
        teacher: receives none.
        divergence: a name such as `jsd(0.5)`, or a function as `linear_divergence` takes it.
        reduction: token mean or sequence mean.
        temperature: divides both models' logits inside the divergence.
        cross_entropy: share s of the cross-entropy, in [0, 1].
        vocabulary: number of leading ids that both vocabularies share.
    """
    import torch

    weights = torch.tensor(position_weights(rollout, reduction), device=student.device, dtype=torch.float64)
    importance = _importance(rollout, student)
    if importance is not None:
        weights = weights * importance
    shares = torch.tensor(
        [
            0.0 if writer == "student" else cross_entropy
            for writer, positions in zip(rollout.writers, rollout.positions_of, strict=True)
            for _ in range(positions)
        ],
        device=student.device,
        dtype=torch.float64,
    )
    scores = teacher.compare(
        student.hidden(rollout),
        student.head,
        rollout,
        divergence,
        coefficients=weights * (1 - shares),
        targets=student.targets(rollout, vocabulary),
        cross_entropy=weights * shares if cross_entropy else None,
        temperature=temperature,
        vocabulary=vocabulary,
    )
    metrics = comparison_metrics(scores)
    if importance is not None:
        metrics["importance_weight"] = importance.sum()
    return Terms({"student": scores.total}, metrics)


def _importance(rollout: Rollout, student: LanguageModel) -> Tensor | None:
    """The importance weight of each position, for text that an older student wrote; `None` where there are none."""
    import torch

    from tutelage.rollouts.rollout import LOG_WEIGHT

    if LOG_WEIGHT not in rollout.values:
        return None
    logs = rollout.masked(rollout.values[LOG_WEIGHT])
    return torch.tensor(logs, device=student.device, dtype=torch.float64).exp()


def comparison_metrics(scores: Scores) -> dict[str, Tensor]:
    """Return the sums over positions of the divergence and of both models' cross-entropy with the text."""
    assert scores.divergence is not None
    assert scores.student_logp is not None
    assert scores.teacher_logp is not None
    return {
        "divergence": scores.divergence.sum(),
        "cross_entropy": -scores.student_logp.sum(),
        "teacher_cross_entropy": -scores.teacher_logp.sum(),
    }
