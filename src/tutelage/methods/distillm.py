"""DistiLLM: skewed divergences, and the student's own text where the validation loss asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from tutelage.config import (
    STRICT,
    Count,
    CrossEntropyShare,
    Decoding,
    DivergenceName,
    LossTemperature,
    NonNegative,
    Reduction,
    Share,
)
from tutelage.methods.objective import Direct, Modules, Plan, Terms, count_units
from tutelage.methods.plain_text import plain_text_term
from tutelage.methods.token_matching import token_matching_terms

if TYPE_CHECKING:
    from tutelage.models.language_model import LanguageModel
    from tutelage.models.teachers import Teacher
    from tutelage.rollouts.rollout import Rollout
    from tutelage.rollouts.samplers import Sampler, Sources


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DistiLLM(Direct):
    """DistiLLM: a skewed KL on the data's text, and on the student's own as far as the validation loss asks for it.

    The student's text is written with a probability φ that begins at 0 and rises when the validation loss does;
    it goes into a buffer, and is used again from there more and more as the run goes on.

    Formula: Σ_t [(1 − s)·D(p_t, q_t) − s·log q(y_t)] + c · (−log q on plain text), each averaged over its own
    tokens; s is 0 on the student's text.

    Reference: DistiLLM (arXiv 2402.03898), Eqs. 3 and 4, Algorithm 1, and its official code.
    """

    name: Literal["distillm"] = "distillm"
    divergence: DivergenceName = "skew_reverse_kl(0.1)"
    cross_entropy: CrossEntropyShare = 0.0
    temperature: LossTemperature = 1.0
    reduction: Reduction = "token"
    student_fraction: Share = 0.0
    """φ at the start: the probability of the student's text."""
    increase: Share = 0.1
    """What φ rises by after an evaluation whose loss has risen."""
    tolerance: NonNegative = 0.1
    """ε: rise of the validation loss (nats a token) that is let pass."""
    compare_with: Literal["last_rise", "last"] = "last_rise"
    """The loss that an evaluation's is compared with: that of the evaluation at which φ rose last (the first one until
    then), or that of the evaluation before."""
    capacity: Count = 1000
    """Sequences in the replay buffer."""
    text_rows: Annotated[int, Field(ge=0)] = 0
    """Rows of plain text (`data.text`) in every batch, for the language-modelling term; 0 leaves it out."""
    text_weight: NonNegative = 1.0
    """c: weight of the language-modelling term."""
    student_decoding: Decoding = Field(default_factory=Decoding)
    """How the student writes."""

    @property
    def plan(self) -> Plan:
        """One batch, one step; goes by the validation loss."""
        return Plan(text_rows=self.text_rows, follows_loss=True)

    def sampler(self, sources: Sources) -> Sampler:
        """The adaptive mixture."""
        from tutelage.rollouts.replay import AdaptiveMixture

        return AdaptiveMixture(
            sources.student(self.student_decoding),
            sources.data(),
            steps=sources.steps,
            seed=sources.seed,
            fraction=self.student_fraction,
            increase=self.increase,
            tolerance=self.tolerance,
            capacity=self.capacity,
            compare_with=self.compare_with,
        )

    def units(self, rollout: Rollout) -> dict[str, float]:
        """Tokens or sequences of the responses; tokens of the plain text."""
        responses, text = _parts(rollout)
        return {"student": count_units(responses, self.reduction), "text": text.positions}

    def terms(
        self,
        rollout: Rollout,
        student: LanguageModel,
        teacher: Teacher | None,
        vocabulary: int | None = None,
        modules: Modules | None = None,
        training: Sequence[str] = ("student",),
    ) -> Terms:
        """Sums of the divergence on the responses, and of the cross-entropy on plain text."""
        assert teacher is not None
        responses, text = _parts(rollout)
        losses, metrics, counts = {}, {}, {}
        if responses:
            found = token_matching_terms(
                responses,
                student,
                teacher,
                divergence=self.divergence,
                reduction=self.reduction,
                temperature=self.temperature,
                cross_entropy=self.cross_entropy,
                vocabulary=vocabulary,
            )
            losses |= found.losses
            metrics |= found.metrics
            counts |= dict.fromkeys(found.metrics, responses.positions)
        if text:
            losses["text"], metrics["text_cross_entropy"] = plain_text_term(
                text, student, teacher, weight=self.text_weight, teacher_share=0.0, vocabulary=vocabulary
            )
            counts["text_cross_entropy"] = text.positions
        return Terms(losses, metrics, counts)


def _parts(rollout: Rollout) -> tuple[Rollout, Rollout]:
    """The responses to prompts, and the plain text."""
    text = [row for row, writer in enumerate(rollout.writers) if writer == "text"]
    responses = [row for row, writer in enumerate(rollout.writers) if writer != "text"]
    return rollout.select(responses), rollout.select(text)
