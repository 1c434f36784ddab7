"""f-distill: divergences between whole sequences, taken apart into sums over their steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Decoding, LossTemperature, Reduction
from tutelage.methods.objective import Direct, Modules, Terms, added, count_units, position_weights
from tutelage.methods.policy_gradient import ragged, target_logps
from tutelage.methods.token_matching import comparison_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from tutelage.divergences import Divergence
    from tutelage.losses import Scores
    from tutelage.models.language_model import LanguageModel
    from tutelage.models.teachers import Teacher
    from tutelage.rollouts.rollout import Rollout
    from tutelage.rollouts.samplers import Sampler, Sources

_TEXT = {"kl": ("teacher",), "rkl": ("student",), "engine": ("student",), "js": ("teacher", "student")}
_TEXT["tvd"] = _TEXT["js"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FDistill(Direct):
    """Sequence-level f-divergences: KL on the teacher's text, RKL on the student's, JS and TVD on both.

    Formula, with p the teacher, q the student, y ~ p written once (or anew, with `fresh_teacher`) and y′ ~ q written
    anew at each step:

        kl      Σ_t KL(p_t‖q_t) on y
        rkl     Σ_t KL(q_t‖p_t) on y′
        engine  Σ_t Σ_v q_t(v) (−log p_t(v)) on y′: rkl without the entropy of the student
        js      λ Σ_t KL(p_t‖m_t) on y + (1 − λ) Σ_t KL(q_t‖m_t) on y′, with λ = ½
        tvd     ½ Σ_t TVD(p_t, q_t) on y + ½ Σ_t TVD(p_t, q_t) on y′

    Averages are taken over both texts together, so the halves of js and tvd appear without their common ½.

    Reference: Wen et al. 2023 (f-distill, ACL 2023), Eqs. 6, 7, 8 and 10; ENGINE: Tu et al. 2020.
    Differs: with `exact`, m_t is the mixture's own next-token distribution, as in the authors' correction, and
    not λ p_t + (1 − λ) q_t; with `through_sampling`, the gradient is that of the sequence-level divergence.
    """

    name: Literal["f-distill"] = "f-distill"
    divergence: Literal["kl", "rkl", "js", "tvd", "engine"] = "tvd"
    """Which divergence; `engine` is `rkl` without the entropy of the student."""
    exact: bool = False
    """js only: take m_t = m(y_≤t) / m(y_<t), the mixture of whole sequences, instead of the average of p_t and q_t.
    Costs one more pass over the vocabulary."""
    mixture: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """js only: λ, the weight of the teacher in the mixture and of its text in the sum."""
    through_sampling: bool = False
    """Add the gradient that goes through how the student's text was sampled, which the paper stops: unbiased for the
    sequence-level divergence, of higher variance, and one more pass over the vocabulary."""
    temperature: LossTemperature = 1.0
    reduction: Reduction = "token"
    fresh_teacher: bool = False
    """Have the teacher write anew at each step; `false` has it write once for each prompt, kept on disk."""
    teacher_decoding: Decoding = Field(default_factory=Decoding)
    """How the teacher writes its text."""
    student_decoding: Decoding = Field(default_factory=Decoding)
    """How the student writes."""

    @model_validator(mode="after")
    def _consistent(self) -> FDistill:
        if self.fresh_teacher and "teacher" not in _TEXT[self.divergence]:
            raise ValueError(f"fresh_teacher is about the teacher's text, and divergence '{self.divergence}' uses none")
        if self.divergence != "js" and (self.exact or self.mixture != 0.5):
            raise ValueError(f"exact and mixture are about divergence 'js' (got '{self.divergence}')")
        if self.exact and self.temperature != 1:
            raise ValueError("exact compares whole sequences, so it needs temperature 1")
        if self.through_sampling:
            self._check_sampling()
        return self

    def _check_sampling(self) -> None:
        if self.divergence == "kl":
            raise ValueError("through_sampling is about the student's text, and divergence 'kl' uses the teacher's")
        if self.reduction != "token" or self.temperature != 1 or not self.student_decoding.samples_the_model:
            raise ValueError(
                "through_sampling is unbiased only with reduction 'token', temperature 1, and student_decoding that "
                "samples from the student itself (strategy sample, temperature 1, top_k 0, top_p 1, "
                "no_repeat_ngram_size 0)"
            )

    def sampler(self, sources: Sources) -> Sampler:
        """The teacher, the student, or both."""
        from tutelage.rollouts.samplers import Both

        by_teacher = sources.fresh_teacher if self.fresh_teacher else sources.teacher
        assert by_teacher is not None
        written = {
            "teacher": lambda: by_teacher(self.teacher_decoding),
            "student": lambda: sources.student(self.student_decoding),
        }
        samplers = [written[writer]() for writer in _TEXT[self.divergence]]
        return samplers[0] if len(samplers) == 1 else Both(*samplers)

    def units(self, rollout: Rollout) -> dict[str, float]:
        """Tokens or sequences, of both texts together."""
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
        """Sum over both texts, each with its own half of the divergence."""
        assert teacher is not None
        terms = []
        for writer in _TEXT[self.divergence]:
            rows = [row for row, name in enumerate(rollout.writers) if name == writer]
            if rows:
                part = _Part(rollout.select(rows), student, teacher, vocabulary)
                terms.append(self._half(part, writer))
        return added(terms)

    def _half(self, part: _Part, writer: str) -> Terms:
        """The part of the divergence that is taken on one writer's text."""
        import torch

        share = 2 * self.mixture if writer == "teacher" else 2 * (1 - self.mixture)
        weights = position_weights(part.rollout, self.reduction)
        coefficients = torch.tensor(weights, device=part.device, dtype=torch.float64) * share
        divergence, parameters = self._divergence(part, writer)
        cross_entropy = None
        if self.through_sampling and writer == "student":
            cross_entropy = -part.future(divergence, parameters) * coefficients
        scores = part.scores(
            divergence,
            parameters=parameters,
            coefficients=coefficients,
            cross_entropy=cross_entropy,
            temperature=self.temperature,
        )
        total = scores.total
        if cross_entropy is not None:  # it is there for its gradient: the value stays that of the divergence
            assert scores.student_logp is not None
            total = total + (cross_entropy * scores.student_logp).sum()
        return Terms({"student": total}, comparison_metrics(scores))

    def _divergence(self, part: _Part, writer: str) -> tuple[str | Divergence, Tensor | None]:
        """What is summed over the steps of a writer's text, and its parameter where that changes with the position."""
        if self.divergence == "engine":
            return _energy(), None
        if self.divergence != "js":
            return {"kl": "forward_kl", "rkl": "reverse_kl", "tvd": "total_variation"}[self.divergence], None
        # A skewed KL is the KL to a mixture; its parameter is the weight of the model that the KL starts from.
        name = "skew_forward_kl" if writer == "teacher" else "skew_reverse_kl"
        if not self.exact:
            return f"{name}({self.mixture if writer == 'teacher' else 1 - self.mixture!r})", None
        weights = part.prefix_weights(self.mixture)
        return name, weights if writer == "teacher" else 1 - weights


class _Part:
    """One writer's text under both models."""

    def __init__(self, rollout: Rollout, student: LanguageModel, teacher: Teacher, vocabulary: int | None) -> None:
        self.rollout, self.device = rollout, student.device
        self._vocabulary = vocabulary
        self._heads = student.head, teacher.head
        self._hidden = student.hidden(rollout), teacher.hidden(rollout)
        self._targets = student.targets(rollout, vocabulary)

    def scores(self, divergence: str | Divergence, **options) -> Scores:
        """Compare the models at every position."""
        from tutelage.losses import linear_divergence

        return linear_divergence(
            self._hidden[0],
            self._heads[0],
            self._hidden[1],
            self._heads[1],
            divergence,
            targets=self._targets,
            vocabulary=self._vocabulary,
            **options,
        )

    def future(self, divergence: str | Divergence, parameters: Tensor | None) -> Tensor:
        """Sum of the divergences at the positions after each one, which its token brings about."""
        import torch

        from tutelage.estimators import returns

        with torch.no_grad():
            values = self.scores(divergence, parameters=parameters).divergence
        assert values is not None
        return self._flat(returns(ragged(values, self.rollout), include_current=False))

    def prefix_weights(self, weight: float) -> Tensor:
        """The teacher's weight at each position, given the tokens before it."""
        from tutelage.estimators import prefix_weights

        models = list(zip(self._hidden, self._heads, strict=True))
        logps = target_logps(models, self._targets, self._vocabulary)
        student_logps, teacher_logps = (ragged(flat, self.rollout) for flat in logps)
        return self._flat(prefix_weights(student_logps, teacher_logps, weight))

    def _flat(self, rows: list[list[float]]) -> Tensor:
        import torch

        return torch.tensor([v for row in rows for v in row], device=self.device, dtype=torch.float64)


def _energy() -> Divergence:
    """Cross-entropy of the student's distribution with the teacher's: Σ_v q(v) (−log p(v))."""
    import torch

    from tutelage.divergences import Divergence

    def term(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
        weight = student_logp.exp()
        return torch.where(weight == 0, 0.0, -weight * teacher_logp)

    return Divergence("energy", term, term)  # the slope of q · c with respect to log q is q · c
