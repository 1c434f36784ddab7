"""Adversarial moment matching, and the divergences on the same text that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Count, DivergenceName, NonNegative, Positive
from tutelage.methods.objective import Direct, Modules, Plan, Terms
from tutelage.methods.on_and_off_policy import OnAndOffPolicy, parts_of, refuse_other_policies

if TYPE_CHECKING:
    from torch import nn

    from tutelage.methods.objective import Context
    from tutelage.models.language_model import LanguageModel
    from tutelage.models.teachers import Teacher
    from tutelage.rollouts.rollout import Rollout


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DistributionMatching(OnAndOffPolicy, Direct):
    """The controls of moment matching: a divergence on the same text, off-policy, on-policy or both.

    Formula: (1 − β) E_{y~fixed} Σ_t γ^t D(p_t, q_t) + β E_{y~student} Σ_t γ^t D(p_t, q_t); no gradient through the
    sampling. D in {forward_kl, reverse_kl, total_variation} and β in {0, 1} are the six cells of AMMD's Figure 1.

    Reference: AMMD (arXiv 2406.02959), Fig. 1.
    """

    name: Literal["distribution-matching"] = "distribution-matching"
    divergence: DivergenceName = "total_variation"

    def terms(
        self,
        rollout: Rollout,
        student: LanguageModel,
        teacher: Teacher | None,
        vocabulary: int | None = None,
        modules: Modules | None = None,
        training: Sequence[str] = ("student",),
    ) -> Terms:
        """Return the weighted sums of the divergence on each kind of text."""
        from tutelage.losses import linear_divergence

        assert teacher is not None
        losses, metrics, counts = {}, {}, {}
        for part in parts_of(rollout, list(self.weights), student, teacher, vocabulary):
            discounts = part.discounts(self.discount)
            scores = linear_divergence(
                part.hidden,
                student.head,
                part.teacher_hidden,
                teacher.head,
                self.divergence,
                coefficients=self.weights[part.side] * discounts,
                vocabulary=vocabulary,
            )
            assert scores.divergence is not None
            losses[part.side] = scores.total
            metrics[f"distance_{part.side}"] = (discounts * scores.divergence).sum()
            counts[f"distance_{part.side}"] = part.sequences
        return Terms(losses, metrics, counts)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MomentMatching(OnAndOffPolicy):
    """AMMD: match the teacher's expected action values, as seen by critics that look for the largest difference.

    Two players: the critics f_off and f_on, bounded functions of state and token, are moved uphill on the moment
    distance between teacher and student; the student is moved downhill.

    Formula, with p the teacher, q the student and g_t = E_{y~p} f(s_t, y) − E_{y~q} f(s_t, y):
    min_q max_f (1 − β) E_{τ~p} Σ_t γ^t g_t + β E_{τ~q} Σ_t γ^t g_t. Off-policy the student's gradient is
    −E Σ_t γ^t Σ_y ∇q(y|s_t) f(s_t, y). On-policy, where the states are the student's doing, it has in addition
    E Σ_t ∇log q(y_t|s_t) Σ_{t'>t} γ^t' g_t'.

    Reference: AMMD (arXiv 2406.02959). Differs: its code was never published, so the form of the critics, their
    number of steps, the learning rates and the meaning of its factor β are our own reading.
    """

    name: Literal["moment-matching"] = "moment-matching"
    bound: Positive = 0.5
    """B: the critics' values lie in (−B, B). With ½ the largest moment distance is the total variation."""
    critic_source: Literal["student", "teacher", "both"] = "teacher"
    """Whose hidden states the critics read. The teacher's stay what they are while the student learns."""
    critic_rank: Count | None = None
    """Rank of the critics; `null` is a full matrix of vocabulary × width for each."""
    critic_steps: Count = 1
    """Updates of the critics on a batch before the student's; each costs a forward pass of the student."""
    critic_rate: Positive = 30.0
    """Learning rate of the critics, as a multiple of the student's."""
    estimator: Literal["expected", "sampled"] = "expected"
    """On-policy, how the value of the token itself enters: by its expectation over the vocabulary, with less
    variance, or by the token that was drawn (REINFORCE). Both have the same expected gradient."""
    greedy: bool = False
    """Leave out what a token does to the states after it. Cheaper and steadier, but not the gradient."""
    baseline: Literal["batch", "none"] = "batch"
    """Subtracted from the returns: the mean of the other sequences of the batch at the same place, or nothing."""
    cross_entropy: NonNegative = 0.0
    """Weight of −log q(y) on the fixed text, added to the off-policy term."""
    gradient_penalty: NonNegative = 0.0
    """Weight of (‖∇_h f(s, y)‖ − penalty_norm)² at the tokens of the text, which keeps the critics from being
    steep. AdVIL: 10."""
    penalty_norm: NonNegative = 0.4
    """The norm that the gradient penalty pulls towards. AdVIL: 0.4."""
    orthogonality: NonNegative = 0.0
    """Weight of ‖WᵀW − I‖², W the critics' matrix. AdVIL: 1e-4."""

    @model_validator(mode="after")
    def _student_samples_itself(self) -> MomentMatching:
        if self.on_policy_weight > 0 and not self.greedy:
            refuse_other_policies(self.student_decoding)
        if self.greedy and self.estimator == "sampled":
            raise ValueError("greedy has no sampled values; leave estimator at 'expected'")
        return self

    @property
    def _critics(self) -> tuple[str, ...]:
        return tuple(f"critic_{side}" for side in self.weights)

    @property
    def plan(self) -> Plan:
        """Critics first, as often as asked for, then the student, on the same text."""
        return Plan(
            phases=(self._critics,) * self.critic_steps + (("student",),),
            learning_rates=dict.fromkeys(self._critics, self.critic_rate),
        )

    def modules(self, student: LanguageModel, teacher: Teacher | None, seed: int) -> dict[str, nn.Module]:
        """One critic for each kind of text."""
        from tutelage.methods.critics import Critic

        assert teacher is not None
        return {
            name: Critic(
                student,
                teacher,
                source=self.critic_source,
                bound=self.bound,
                rank=self.critic_rank,
                discount=self.discount,
                seed=seed + number,
            )
            for number, name in enumerate(self._critics)
        }

    def prepare(self, rollout: Rollout, context: Context) -> Rollout:
        """Add the baseline of the on-policy returns, from the critic as it is before this batch."""
        if "on" not in self.weights or self.greedy or self.baseline == "none":
            return rollout
        from tutelage.methods.moment_game import baselines

        return baselines(self, rollout, context)

    def terms(
        self,
        rollout: Rollout,
        student: LanguageModel,
        teacher: Teacher | None,
        vocabulary: int | None = None,
        modules: Modules | None = None,
        training: Sequence[str] = ("student",),
    ) -> Terms:
        """Return the student's loss on each kind of text, or the critics' where those are trained."""
        import torch

        from tutelage.methods.moment_game import Game

        assert teacher is not None
        assert modules is not None
        learning = "student" in training
        with torch.set_grad_enabled(learning):
            parts = list(parts_of(rollout, list(self.weights), student, teacher, vocabulary))
        losses, metrics, counts = {}, {}, {}
        for part in parts:
            game = Game(self, part, student.head, teacher.head, modules[f"critic_{part.side}"], vocabulary)
            if not learning:
                losses[part.side] = game.critic_loss()
                continue
            losses[part.side], found = game.student_loss()
            metrics |= {f"{name}_{part.side}": value for name, value in found.items()}
            counts |= {f"{name}_{part.side}": part.sequences for name in found}
        return Terms(losses, metrics, counts)
