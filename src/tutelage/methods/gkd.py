"""Methods that learn from the student's own text: on-policy KD, ImitKD and GKD."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, BeamDecoding, Decoding, DivergenceName, GreedyDecoding, Share
from tutelage.methods.objective import Modules, Plan, Terms
from tutelage.methods.token_matching import TokenMatching, cross_entropy_terms, token_matching_terms

if TYPE_CHECKING:
    from torch import Tensor

    from tutelage.models.language_model import LanguageModel
    from tutelage.models.teachers import Teacher
    from tutelage.rollouts.rollout import Rollout
    from tutelage.rollouts.samplers import Sampler, Sources

Offline = Literal["data", "teacher"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OnPolicyKD(TokenMatching):
    """On-policy KD: the student writes, the teacher says at each token what it would have written.

    Needs prompts only. The student learns to go on from its own mistakes, which no fixed text shows it.

    Reference: GKD (arXiv 2306.13649), L_OD: y ~ student at temperature 1, no gradient through the sampling.
    """

    name: Literal["on-policy-kd"] = "on-policy-kd"
    student_decoding: Decoding = Field(default_factory=Decoding)
    """How the student writes."""

    def sampler(self, sources: Sources) -> Sampler:
        """The student."""
        return sources.student(self.student_decoding)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GKD(TokenMatching):
    """Generalised KD: the student's own text with probability λ, fixed text otherwise; any divergence.

    Algorithm 1: draw one u ~ U(0, 1) a step; the whole batch is written by the current student if u < λ, and
    comes from the fixed text otherwise. λ = 0 with forward KL is supervised KD, λ = 1 on-policy KD.

    Reference: GKD (arXiv 2306.13649), L_GKD and Algorithm 1. Differs: the paper draws u ≤ λ; with u in [0, 1),
    u < λ makes λ = 0 and λ = 1 exact.
    """

    name: Literal["gkd"] = "gkd"
    divergence: DivergenceName = "jsd(0.5)"
    student_fraction: Share = 0.5
    """λ: the probability that a step's batch is written by the student."""
    offline: Offline = "data"
    """Where the fixed text comes from: the data's responses, or the teacher's (written once, kept on disk)."""
    student_decoding: Decoding = Field(default_factory=Decoding)
    """How the student writes."""
    teacher_decoding: Decoding = Field(default_factory=Decoding)
    """How the teacher writes, where `offline` is `teacher`."""

    def sampler(self, sources: Sources) -> Sampler:
        """A mixture, drawn once a step; the student alone for λ = 1, which needs no fixed text."""
        from tutelage.rollouts.samplers import Mixture

        student = sources.student(self.student_decoding)
        if self.student_fraction == 1:
            return student
        return Mixture(
            student=student,
            other=sources.data() if self.offline == "data" else sources.teacher(self.teacher_decoding),
            fraction=lambda step: self.student_fraction,
            unit="step",
            seed=sources.seed,
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ImitKD(TokenMatching):
    """Imitation learning: each row's text comes from fixed text with probability β, which decays, else from
    the student; the teacher's distribution is matched everywhere.

    With `schedule: constant`, `rate: 0.5`, `unit: step` and sampled student text it is what GKD's comparisons
    call ImitKD, and equals GKD with λ = 0.5 and forward KL. `offline: teacher` is ImitKD*.

    Schedules of β at progress s = i / I: `exponential` r^(−s), `linear` 1 − s, `reverse_sigmoid`
    k / (k + exp(I·s / k)) with k = rate, `constant` rate.

    Formula of `opt`: −Σ_t log q(v_t), with v_t = argmax_v p_t(v) on the student's text, v_t = y_t on other text.

    Reference: Lin et al. 2020; r = 200 for IWSLT and WMT, 10 for CNN/DailyMail.
    """

    name: Literal["imitkd"] = "imitkd"
    loss: Literal["full", "opt"] = "full"
    """`full` matches the teacher's distribution everywhere (`divergence`); `opt` takes the teacher's most probable
    token for the right one on the student's text, and the text's own words elsewhere."""
    schedule: Literal["exponential", "linear", "reverse_sigmoid", "constant"] = "exponential"
    """How the probability β of fixed text decays over the run."""
    rate: Annotated[float, Field(ge=0)] = 200.0
    """r of the exponential schedule, k of the reverse sigmoid, β of the constant one."""
    unit: Literal["step", "example"] = "example"
    """Draw for every row anew, or once a step for the whole batch."""
    offline: Offline = "data"
    """Where the fixed text comes from: the data's responses, or the teacher's (written once, kept on disk)."""
    student_decoding: GreedyDecoding = Field(default_factory=lambda: Decoding(strategy="greedy"))
    """How the student writes; the original is greedy."""
    teacher_decoding: BeamDecoding = Field(default_factory=lambda: Decoding(strategy="beam", beams=5))
    """How the teacher writes, where `offline` is `teacher`."""

    @model_validator(mode="after")
    def _loss_fits_divergence(self) -> ImitKD:
        if self.loss == "opt" and (self.divergence, self.cross_entropy, self.temperature) != ("forward_kl", 0, 1):
            raise ValueError("loss 'opt' compares with single tokens: leave out divergence, cross_entropy, temperature")
        return self

    @model_validator(mode="after")
    def _rate_fits_schedule(self) -> ImitKD:
        if self.schedule == "constant" and not 0 <= self.rate <= 1:
            raise ValueError(
                f"rate is the probability itself with schedule 'constant': expected [0, 1], got {self.rate:g}"
            )
        if self.schedule == "exponential" and self.rate < 1:
            raise ValueError(f"rate must be at least 1 with schedule 'exponential' (got {self.rate:g})")
        if self.schedule == "reverse_sigmoid" and self.rate == 0:
            raise ValueError("rate must be greater than 0 with schedule 'reverse_sigmoid'")
        return self

    @property
    def plan(self) -> Plan:
        """One batch, one step; `opt` gives fixed text its own words."""
        return Plan(asks_of_fixed_text="nothing") if self.loss == "opt" else super().plan

    def offline_probability(self, step: int, steps: int) -> float:
        """Return β at a step.

        >>> method = ImitKD(schedule="exponential", rate=200)
        >>> [round(method.offline_probability(step, 100), 3) for step in (0, 50, 100)]
        [1.0, 0.071, 0.005]
        """
        progress = step / steps
        if self.schedule == "exponential":
            return self.rate**-progress
        if self.schedule == "linear":
            return 1 - progress
        if self.schedule == "reverse_sigmoid":
            return self.rate / (self.rate + math.exp(min(step / self.rate, 700)))
        return self.rate

    def sampler(self, sources: Sources) -> Sampler:
        """A mixture with a decaying share of fixed text."""
        from tutelage.rollouts.samplers import Mixture

        return Mixture(
            student=sources.student(self.student_decoding),
            other=sources.data() if self.offline == "data" else sources.teacher(self.teacher_decoding),
            fraction=lambda step: 1 - self.offline_probability(step, sources.steps),
            unit=self.unit,
            seed=sources.seed,
        )

    def terms(
        self,
        rollout: Rollout,
        student: LanguageModel,
        teacher: Teacher | None,
        vocabulary: int | None = None,
        modules: Modules | None = None,
        training: Sequence[str] = ("student",),
    ) -> Terms:
        """Return the sum of the `full` or the `opt` loss."""
        if self.loss == "full":
            return super().terms(rollout, student, teacher, vocabulary, modules, training)
        assert teacher is not None
        if "student" not in rollout.writers:
            return cross_entropy_terms(rollout, student, self.reduction, vocabulary)
        # A share of 1 gives fixed text its own words; on the student's text there is never a share.
        return token_matching_terms(
            rollout,
            student,
            teacher,
            divergence=_top_token,
            reduction=self.reduction,
            cross_entropy=1.0,
            vocabulary=vocabulary,
        )


def _top_token(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """Cross-entropy with the teacher's most probable token; NaN where the teacher's numbers are."""
    best = teacher_logp.max(-1, keepdim=True)
    return (0 * best.values - student_logp.gather(-1, best.indices)).squeeze(-1)
