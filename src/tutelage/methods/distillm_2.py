"""DistiLLM-2: what the teacher wrote is made more probable, what the student wrote is held against the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Count, Decoding, Reduction
from tutelage.methods.objective import Context, Modules, Plan, Terms, added, count_units, position_weights
from tutelage.methods.policy_gradient import sequence_logps
from tutelage.methods.token_matching import comparison_metrics

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tutelage.divergences import Divergence
    from tutelage.models.language_model import LanguageModel
    from tutelage.models.teachers import Teacher
    from tutelage.rollouts.rollout import Rollout
    from tutelage.rollouts.samplers import Sampler, Sources


def _decoding() -> Decoding:
    return Decoding(temperature=0.8, top_p=0.95)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DistiLLM2:
    """DistiLLM-2: a skewed forward KL on the teacher's text and a skewed reverse KL on the student's, for each prompt.

    Formula: (2 − β) · mean KL(p ‖ αp + (1−α)q) on the teacher's text + β · mean KL(q ‖ (1−α)p + αq) on the
    student's, both averaged over the tokens of each sequence first; divided by 2.

    Curricula, each switched on by itself: β rises by 0.5 over the first half of the run, so that the student's
    text weighs more; α is smaller for sequences on which the models are closer than on average.

    Reference: DistiLLM-2 (ICML 2025), CALD and its official code. Differs: the paper writes (1 − β) and β, which
    is this with twice its β; both curricula change between collections, there with every step.
    """

    name: Literal["distillm-2"] = "distillm-2"
    alpha: Annotated[float, Field(gt=0.01, lt=1)] = 0.1
    """Skew α of both divergences: the weight of the model that the KL starts from, in its mixture."""
    alpha_curriculum: bool = False
    """Set α of each sequence by how far apart the models are on it: between 0.01 and `alpha`."""
    beta: Annotated[float, Field(ge=0, le=2)] = 1.0
    """β: weight of the student's text; the teacher's has 2 − β."""
    beta_curriculum: bool = False
    """Let β rise by 0.5 over the first half of the run (from the usual 1 to 1.5)."""
    detach_mixture: bool = True
    """Let no gradient through the student inside the mixture of the skewed reverse KL, as the official code."""
    reduction: Reduction = "sequence"
    collection: Count | None = None
    """Prompts for which both models write at once; `null` is one batch. More keeps the writers' text for longer."""
    inner_epochs: Count = 1
    """Passes over a collection."""
    fresh_teacher: bool = True
    """Have the teacher write anew for each collection; `false` has it write once for each prompt, kept on disk."""
    teacher_decoding: Decoding = Field(default_factory=_decoding)
    """How the teacher writes."""
    student_decoding: Decoding = Field(default_factory=_decoding)
    """How the student writes."""

    @model_validator(mode="after")
    def _consistent(self) -> DistiLLM2:
        if self.beta_curriculum and self.beta > 1.5:
            raise ValueError(f"beta rises by 0.5 and must not pass 2: give at most 1.5 (got {self.beta:g})")
        return self

    @property
    def needs_teacher(self) -> bool:
        """Yes."""
        return True

    @property
    def plan(self) -> Plan:
        """Collections of text by both."""
        return Plan(collection=self.collection, inner_epochs=self.inner_epochs)

    def modules(self, student: LanguageModel, teacher: Teacher | None, seed: int) -> dict[str, nn.Module]:
        """None."""
        return {}

    def sampler(self, sources: Sources) -> Sampler:
        """The teacher and the student, for every prompt."""
        from tutelage.rollouts.samplers import Both

        by_teacher = sources.fresh_teacher if self.fresh_teacher else sources.teacher
        assert by_teacher is not None
        return Both(by_teacher(self.teacher_decoding), sources.student(self.student_decoding))

    def prepare(self, rollout: Rollout, context: Context) -> Rollout:
        """Add what the curricula say for this collection."""
        values = {}
        if self.beta_curriculum:
            values["beta"] = [self.beta + 0.5 * min(1.0, 2 * context.progress)] * len(rollout)
        if self.alpha_curriculum:
            values["alpha"] = self._alphas(rollout, context)
        columns = {
            name: [[number] * len(response) for number, response in zip(numbers, rollout.responses, strict=True)]
            for name, numbers in values.items()
        }
        return rollout.with_values(**columns)

    def _alphas(self, rollout: Rollout, context: Context) -> list[float]:
        from tutelage.estimators import skew_weights

        by_student, by_teacher = sequence_logps(rollout, context)
        alphas = [self.alpha] * len(rollout)
        for writer, own, other in (("teacher", by_teacher, by_student), ("student", by_student, by_teacher)):
            rows = [row for row, name in enumerate(rollout.writers) if name == writer]
            found = skew_weights([own[row] for row in rows], [other[row] for row in rows], self.alpha)
            for row, alpha in zip(rows, found, strict=True):
                alphas[row] = alpha
        return alphas

    def units(self, rollout: Rollout) -> Mapping[str, float]:
        """Sequences or tokens, of both texts together."""
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
        """Sum over both texts."""
        assert teacher is not None
        parts = []
        for own in (False, True):
            rows = [row for row, writer in enumerate(rollout.writers) if (writer == "student") == own]
            if rows:
                parts.append(self._half(rollout.select(rows), student, teacher, vocabulary, own))
        return added(parts)

    def _half(
        self, rollout: Rollout, student: LanguageModel, teacher: Teacher, vocabulary: int | None, own: bool
    ) -> Terms:
        """The skewed reverse KL on the student's own text, the skewed forward KL on the teacher's."""
        import torch

        from tutelage.divergences import parametrised
        from tutelage.losses import linear_divergence

        def column(name: str, constant: float) -> Tensor:
            known = rollout.values.get(name)
            numbers = [constant] * rollout.positions if known is None else rollout.masked(known)
            return torch.tensor(numbers, device=student.device, dtype=torch.float64)

        weights = torch.tensor(position_weights(rollout, self.reduction), device=student.device, dtype=torch.float64)
        beta = column("beta", self.beta)
        forward, reverse = parametrised("skew_forward_kl"), parametrised("skew_reverse_kl")
        scores = linear_divergence(
            student.hidden(rollout),
            student.head,
            teacher.hidden(rollout),
            teacher.head,
            (_held_mixture(reverse) if self.detach_mixture else reverse) if own else forward,
            parameters=column("alpha", self.alpha),
            coefficients=weights * (beta if own else 2 - beta),
            targets=student.targets(rollout, vocabulary),
            vocabulary=vocabulary,
        )
        return Terms({"student": scores.total}, comparison_metrics(scores))


def _held_mixture(reverse: Divergence) -> Divergence:
    """The skewed reverse KL without gradient through its mixture: q (log q − log m) has the slope itself + q."""
    from tutelage.divergences import Divergence

    def slope(student_logp: Tensor, teacher_logp: Tensor, alpha: Tensor) -> Tensor:
        return reverse.term(student_logp, teacher_logp, alpha) + student_logp.exp()

    return Divergence("skew_reverse_kl with a held mixture", reverse.term, slope)
