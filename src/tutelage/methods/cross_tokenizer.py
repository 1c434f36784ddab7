"""Distillation from a teacher with another tokenizer: both models read the same text, each in its own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, CrossEntropyShare, Decoding, DivergenceName, Reduction, Share
from tutelage.errors import InputError
from tutelage.methods.objective import Direct, Modules, Plan, Terms, count_units, position_weights

if TYPE_CHECKING:
    from torch import Tensor

    from tutelage.data.alignment import Span
    from tutelage.losses import Head, Scores
    from tutelage.models.bridge import BridgedTeacher
    from tutelage.models.language_model import LanguageModel
    from tutelage.models.teachers import Teacher
    from tutelage.rollouts.rollout import Rollout
    from tutelage.rollouts.samplers import Sampler, Sources


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CrossTokenizer(Direct):
    """Match a teacher with another tokenizer, on the data's text or the student's own.

    The teacher reads the same text in its own tokens. A span is a smallest group of tokens of each that cover the same
    bytes; the ends of both responses are a span too.

    Formula of `spans`: Σ_span w [(1 − s)·D_span] + Σ_t w s·(−log q(y_t)). Where a span is one token for both, D
    compares the distributions over the tokens that both vocabularies have, and all others as one. Elsewhere D compares
    two outcomes, this span and anything else, of probabilities Π q(y_t) and Π p(z_u) over its tokens.

    Formula of `uld`: D_span = Σ_i |q(i) − p(i)|, the sorted probabilities at the first token of each side.

    Reference: `uld` is the distance of Boizard et al. 2024 (arXiv 2402.12030). Differs: positions are paired by bytes
    instead of by number. The rest is ours.
    """

    name: Literal["cross-tokenizer"] = "cross-tokenizer"
    comparison: Literal["spans", "uld"] = "spans"
    """What is compared at each aligned span: the likelihood of its text and what the vocabularies share (spans), or
    the sorted probabilities at its first token (uld)."""
    divergence: DivergenceName = "forward_kl"
    cross_entropy: CrossEntropyShare = 0.0
    reduction: Reduction = "token"
    student_fraction: Share = 0.0
    """λ: the probability that a step's batch is written by the student instead of taken from the data."""
    student_decoding: Decoding = Field(default_factory=Decoding)
    """How the student writes."""

    @model_validator(mode="after")
    def _divergence_fits_comparison(self) -> CrossTokenizer:
        if self.comparison == "uld" and self.divergence != "forward_kl":
            raise ValueError("comparison 'uld' is a distance of its own: leave out divergence")
        return self

    @property
    def plan(self) -> Plan:
        """One batch, one step."""
        return Plan(bridges_tokenizers=True)

    def sampler(self, sources: Sources) -> Sampler:
        """The data, the student, or a draw between them once a step."""
        from tutelage.rollouts.samplers import Mixture

        if self.student_fraction == 0:
            return sources.data()
        student = sources.student(self.student_decoding)
        if self.student_fraction == 1:
            return student
        fraction = self.student_fraction
        return Mixture(student, sources.data(), lambda step: fraction, unit="step", seed=sources.seed)

    def units(self, rollout: Rollout) -> dict[str, float]:
        """Tokens of the student, or sequences."""
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
        """Sum of the comparisons of all spans, and of the cross-entropy.

        Raises:
            InputError: the teacher is none that reads with its own tokenizer.
        """
        import torch

        from tutelage.losses import linear_divergence

        bridged = _bridged(teacher)
        reading = bridged.read(rollout)
        hidden, teacher_hidden = student.hidden(rollout), bridged.hidden(reading.rollout)
        targets = student.targets(rollout)
        weights = torch.tensor(position_weights(rollout, self.reduction), device=hidden.device, dtype=torch.float64)
        shares = weights * torch.tensor(self._shares(rollout), device=hidden.device, dtype=torch.float64)
        # Collected once: how often a head is needed depends on the text, and where it is cut, all processes take part.
        head, teacher_head = student.head.gathered(), bridged.head.gathered()
        sides = _Sides(hidden, head, targets, teacher_hidden, teacher_head, bridged, reading.rollout)
        together, apart = self._sorted_out(reading.spans, sides)
        pairs = self._first_tokens(together, sides, weights - shares)
        chunks, slopes = _chunk_likelihoods(apart, sides, self.divergence, weights - shares)
        by_tokens = pairs is None or bool(apart) or self.cross_entropy > 0  # else the pass is for the metrics only
        with torch.set_grad_enabled(by_tokens and torch.is_grad_enabled()):
            scores = linear_divergence(hidden, head, targets=targets, cross_entropy=shares - slopes)
        assert scores.student_logp is not None
        worth = (chunks * (weights - shares)[[span.student_start for span in apart]]).sum()
        worth = worth - (shares * scores.student_logp).sum()
        total = scores.total - scores.total.detach() + worth.to(scores.total.dtype)
        distances = chunks.sum()
        if pairs is not None:
            assert pairs.divergence is not None
            total, distances = total + pairs.total, distances + pairs.divergence.sum()
        covered = sum(span.student_stop - span.student_start for span in reading.spans)
        counts = {"divergence": len(reading.spans), "one_to_one": len(reading.spans)}
        metrics = {
            "divergence": distances,
            "cross_entropy": -scores.student_logp.sum(),
            "compared": torch.tensor(float(covered)),
            "one_to_one": torch.tensor(float(sum(span.is_one_to_one for span in reading.spans))),
        }
        return Terms({"student": total}, metrics, counts)

    def _shares(self, rollout: Rollout) -> list[float]:
        """The share of the cross-entropy at each position: none on the student's own text."""
        return [
            0.0 if writer == "student" else self.cross_entropy
            for writer, positions in zip(rollout.writers, rollout.positions_of, strict=True)
            for _ in range(positions)
        ]

    def _sorted_out(self, spans: Sequence[Span], sides: _Sides) -> tuple[list[Span], list[Span]]:
        """The spans whose first tokens' distributions are compared, and those of which only the likelihood is."""
        if self.comparison == "uld":
            return list(spans), []
        together = [span for span in spans if span.is_one_to_one and sides.are_shared(span)]
        known = set(together)
        return together, [span for span in spans if span not in known]

    def _first_tokens(self, spans: Sequence[Span], sides: _Sides, weights: Tensor) -> Scores | None:
        import torch

        from tutelage.losses import shared_divergence, sorted_distance

        if not spans:
            return None
        ours, theirs = [span.student_start for span in spans], [span.teacher_start for span in spans]
        states = (sides.hidden[ours], sides.head, sides.teacher_hidden[theirs], sides.teacher_head)
        if self.comparison == "uld":
            return sorted_distance(*states, coefficients=weights[ours])
        shared = sides.teacher.bridge.shared
        student_ids = torch.tensor(list(shared), device=weights.device)
        teacher_ids = torch.tensor(list(shared.values()), device=weights.device)
        return shared_divergence(*states, student_ids, teacher_ids, self.divergence, coefficients=weights[ours])


class _Sides:
    """Both models' states on one text."""

    def __init__(
        self,
        hidden: Tensor,
        head: Head,
        targets: Tensor,
        teacher_hidden: Tensor,
        teacher_head: Head,
        teacher: BridgedTeacher,
        teacher_rollout: Rollout,
    ) -> None:
        import torch

        self.hidden, self.head, self.targets = hidden, head, targets
        self.teacher_hidden, self.teacher_head, self.teacher = teacher_hidden, teacher_head, teacher
        self.teacher_targets = torch.tensor(teacher_rollout.targets, dtype=torch.long, device=hidden.device)
        self._ids, self._teacher_ids = targets.tolist(), teacher_rollout.targets

    def are_shared(self, span: Span) -> bool:
        """Whether the first tokens of a span are one string of both vocabularies."""
        wanted = self._teacher_ids[span.teacher_start]
        return self.teacher.bridge.shared.get(self._ids[span.student_start]) == wanted

    def likelihoods(self, spans: Sequence[Span]) -> tuple[Tensor, Tensor]:
        """Log-probability of each span's tokens under student and teacher, without gradient."""
        ours = [range(span.student_start, span.student_stop) for span in spans]
        theirs = [range(span.teacher_start, span.teacher_stop) for span in spans]
        return (
            _summed(self.hidden, self.head, self.targets, ours),
            _summed(self.teacher_hidden, self.teacher_head, self.teacher_targets, theirs),
        )


def _summed(hidden: Tensor, head: Head, targets: Tensor, spans: Sequence[range]) -> Tensor:
    """Sum of the targets' log-probabilities over each span."""
    import torch

    from tutelage.losses import linear_divergence

    places = torch.tensor([place for span in spans for place in span], dtype=torch.long, device=hidden.device)
    number = torch.tensor([n for n, span in enumerate(spans) for _ in span], dtype=torch.long, device=hidden.device)
    with torch.no_grad():
        zeros = torch.zeros(len(places), dtype=torch.float64, device=hidden.device)
        scores = linear_divergence(hidden[places], head, targets=targets[places], cross_entropy=zeros)
    assert scores.student_logp is not None
    return zeros.new_zeros(len(spans)).index_add_(0, number, scores.student_logp.double())


def _chunk_likelihoods(spans: Sequence[Span], sides: _Sides, divergence: str, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Compare the likelihoods of spans as wholes.

    Returns:
        The divergence of each span, and for each position of the student its weight times the slope of its span's
        divergence with respect to the log-likelihood.
    """
    import torch

    from tutelage.divergences import named

    slopes = torch.zeros_like(weights)
    if not spans:
        return slopes.new_zeros(0), slopes
    student, teacher = sides.likelihoods(spans)
    least = torch.finfo(torch.promote_types(sides.hidden.dtype, torch.float32)).eps
    variable = student.clamp_max(-least).requires_grad_()
    with torch.enable_grad():
        found = named(divergence)(_or_anything_else(variable), _or_anything_else(teacher.clamp_max(-least)))
        (slope,) = torch.autograd.grad(found.sum(), variable)
    places = [place for span in spans for place in range(span.student_start, span.student_stop)]
    number = [n for n, span in enumerate(spans) for _ in range(span.student_start, span.student_stop)]
    first = [spans[n].student_start for n in number]
    slopes[places] = weights[first] * slope[number]
    return found.detach(), slopes


def _or_anything_else(logp: Tensor) -> Tensor:
    """Log-probabilities of an event and of its opposite, `[..., 2]`; exact near both ends."""
    import torch

    near_one = (-torch.expm1(logp)).log()
    return torch.stack([logp, torch.where(logp > -0.7, near_one, torch.log1p(-logp.exp()))], -1)


def _bridged(teacher: Teacher | None) -> BridgedTeacher:
    from tutelage.models.bridge import BridgedTeacher

    if not isinstance(teacher, BridgedTeacher):
        raise InputError(
            "cross-tokenizer reads the text with the teacher's own tokenizer, so it needs a BridgedTeacher "
            "(tutelage.models.bridge), which a recipe makes by itself"
        )
    return teacher
