"""MiniLLM's ranking alternative: the student learns to prefer, among its own responses, those that the teacher does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Decoding, NonNegative
from tutelage.methods.objective import Context, Direct, Modules, Terms
from tutelage.methods.policy_gradient import at_all_tokens, sequence_logps

if TYPE_CHECKING:
    from tutelage.models.language_model import LanguageModel
    from tutelage.models.teachers import Teacher
    from tutelage.rollouts.rollout import Rollout
    from tutelage.rollouts.samplers import Sampler, Sources


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MiniLLMRanking(Direct):
    """Ranking: several responses of the student to each prompt, ordered by the teacher, and a margin between them.

    Formula, for a prompt with pairs (y⁺, y⁻) of which the teacher prefers the first:

        loss = mean over pairs of max(0, δ − log q(y⁺|x) + log q(y⁻|x)) − λ log q(y*|x)

    y* is the data's response (as in SLiC) or the best of the student's own (as in RRHF). Which pairs are compared,
    δ, λ and the number of samples are ours: what we could read of the paper does not give them.

    How it is computed: whether a pair is within its margin depends on whole sequences under the current student,
    and a micro-batch may hold one of the two only. So the log-probabilities are taken without gradient for the
    whole batch first; they decide the coefficient of each sequence, and one pass with gradient follows.

    Reference: MiniLLM (arXiv 2306.08543), its ranking ablation; SLiC (arXiv 2210.00045); RRHF (arXiv 2304.05302).
    """

    name: Literal["minillm-ranking"] = "minillm-ranking"
    samples: Annotated[int, Field(ge=2)] = 4
    """Responses of the student to each prompt."""
    rank_by: Literal["sequence", "token"] = "token"
    """The teacher's log-probability of the whole response, which prefers short ones, or its mean over the tokens."""
    pairs: Literal["best_worst", "adjacent", "all"] = "best_worst"
    """Which pairs are compared: the best with the worst, each with the next one, or all."""
    margin: NonNegative = 1.0
    """δ, nats."""
    regularisation: NonNegative = 1.0
    """λ: weight of the cross-entropy with y*."""
    reference: Literal["data", "best"] = "best"
    """y*: the data's response, or the one that the teacher ranks first."""
    student_decoding: Decoding = Field(default_factory=Decoding)
    """How the student writes."""

    @model_validator(mode="after")
    def _samples_differ(self) -> MiniLLMRanking:
        if self.student_decoding.strategy != "sample":
            raise ValueError(
                f"ranking needs different responses to a prompt: set strategy 'sample' (got "
                f"'{self.student_decoding.strategy}')"
            )
        return self

    def sampler(self, sources: Sources) -> Sampler:
        """The student, several times a prompt; the data's response before its own where that is y*."""
        from tutelage.rollouts.samplers import Both

        student = sources.student(self.student_decoding, self.samples)
        return student if self.reference == "best" else Both(sources.data(), student)

    def prepare(self, rollout: Rollout, context: Context) -> Rollout:
        """Rank, compare, and add the coefficient of −log q of each token, with the constant part of the loss."""
        student_logps, teacher_logps = sequence_logps(rollout, context)
        own = [sum(row) for row in student_logps]
        scores = [sum(row) / (max(1, len(row)) if self.rank_by == "token" else 1) for row in teacher_logps]
        coefficients, constants = [0.0] * len(rollout), [0.0] * len(rollout)
        for first in range(0, len(rollout), self._group):
            self._compare(first, own, scores, coefficients, constants)
        spread = [[c] * len(row) for c, row in zip(coefficients, student_logps, strict=True)]
        at_first = [[c, *([0.0] * (len(row) - 1))][: len(row)] for c, row in zip(constants, student_logps, strict=True)]
        return rollout.with_values(
            coefficient=at_all_tokens(spread, rollout), constant=at_all_tokens(at_first, rollout)
        )

    def units(self, rollout: Rollout) -> dict[str, float]:
        """Count prompts."""
        return {"student": len(rollout) / self._group}

    def terms(
        self,
        rollout: Rollout,
        student: LanguageModel,
        teacher: Teacher | None,
        vocabulary: int | None = None,
        modules: Modules | None = None,
        training: Sequence[str] = ("student",),
    ) -> Terms:
        """Return the sum of coefficient · (−log q), and of the constants that make it the loss."""
        import torch

        from tutelage.losses import linear_divergence

        coefficients, constants = (
            torch.tensor(rollout.masked(rollout.values[name]), device=student.device, dtype=torch.float64)
            for name in ("coefficient", "constant")
        )
        scores = linear_divergence(
            student.hidden(rollout),
            student.head,
            targets=student.targets(rollout, vocabulary),
            cross_entropy=coefficients,
            vocabulary=vocabulary,
        )
        assert scores.student_logp is not None
        metrics = {"cross_entropy": -scores.student_logp.sum(), "pushed_down": (coefficients < 0).sum()}
        return Terms({"student": scores.total + constants.sum()}, metrics)

    @property
    def _group(self) -> int:
        """Sequences of a prompt."""
        return self.samples + (self.reference == "data")

    def _compare(
        self,
        first: int,
        own: Sequence[float],
        scores: Sequence[float],
        coefficients: list[float],
        constants: list[float],
    ) -> None:
        """Add one prompt's part, its sequences starting at `first`: −1/n and 1/n for each pair within its margin."""
        of_student = range(first + (self.reference == "data"), first + self._group)
        group = range(first, first + self._group)
        if not all(math.isfinite(value) for row in group for value in (own[row], scores[row])):
            coefficients[group.start : group.stop] = [math.nan] * self._group  # no order: nothing may be learnt from it
            return
        ranked = sorted(of_student, key=lambda row: -scores[row])
        pairs = {
            "best_worst": [(ranked[0], ranked[-1])],
            "adjacent": list(pairwise(ranked)),
            "all": list(combinations(ranked, 2)),
        }[self.pairs]
        for better, worse in pairs:
            if self.margin - own[better] + own[worse] > 0:
                coefficients[better] += 1 / len(pairs)
                coefficients[worse] -= 1 / len(pairs)
                constants[better] += self.margin / len(pairs)
        coefficients[ranked[0] if self.reference == "best" else first] += self.regularisation
