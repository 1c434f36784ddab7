"""Divergences from a teacher of whose distribution only the most probable tokens were kept."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.divergences import Divergence
from tutelage.errors import InputError
from tutelage.losses.blocks import Block, InBlocks
from tutelage.losses.chunks import DEFAULT_MEMORY
from tutelage.losses.dense import PointwiseFunction, differentiated, evaluated
from tutelage.losses.engine import OnePass
from tutelage.losses.head import Head
from tutelage.losses.linear import Scores, as_head, chosen_divergence
from tutelage.losses.projection import Model
from tutelage.losses.work import Values, Work

_IMPOSSIBLE = -1e4
"""Log-probability of an outcome that is none; its exponential is exactly 0, its differences are finite."""


def top_k_divergence(
    student_hidden: Float[Tensor, "positions width"],
    student_head: Head | Tensor,
    teacher_ids: Int[Tensor, "positions k"],
    teacher_logp: Float[Tensor, "positions k"],
    divergence: str | Divergence | PointwiseFunction,
    *,
    coefficients: Float[Tensor, " positions"] | None = None,
    targets: Int[Tensor, " positions"] | None = None,
    cross_entropy: Float[Tensor, " positions"] | None = None,
    parameters: Float[Tensor, " positions"] | None = None,
    temperature: float = 1.0,
    recorded_temperature: float = 1.0,
    vocabulary: int | None = None,
    memory: int = DEFAULT_MEMORY,
) -> Scores:
    """Compare the student with the k tokens that a teacher's record has of each position, and with its tail.

    Use it where the teacher was scored once and its most probable tokens were kept. Both distributions are
    coarsened: the k tokens stay themselves, all others fall into one bucket. What is measured between the two is
    a true divergence, never more than that between the whole distributions, and equal to it where every token was
    kept. How a student spreads what it leaves to the tail changes nothing.

    Formula: Σ_n c_n D(p̃_n, q̃_n) − Σ_n k_n log q_n(y_n), with p̃ = (p_1, …, p_k, 1 − Σ p_i) and q̃ the same of
    the student; the rest as in `linear_divergence`. The tail is at least the resolution of the arithmetic, for
    rounded log-probabilities may add up to more than one; the others are then scaled down.

    Args:
        student_hidden: final hidden states, one a position; receives a gradient.
        student_head: head of the student, or its weight `[vocabulary, width]`; receives a gradient.
        teacher_ids: the ids that were kept, each at most once a position; −1 for fewer than k.
        teacher_logp: their log-probabilities over the teacher's whole vocabulary, nats; −∞ where the id is −1.
        divergence: a name such as `jsd(0.5)`, a `Divergence`, or any function of (student_logp, teacher_logp),
            both `[positions, k + 1]`, that returns one value a position. An outcome that is none, at an id of −1,
            has a log-probability of −10,000 for both.
        coefficients: c, one weight a position; ones by default.
        targets: y, the ids of the tokens that follow.
        cross_entropy: k, one weight a position; nothing by default. It is exact, at temperature 1.
        parameters: the divergence's parameter at each position, for a name without one (`skew_forward_kl`).
        temperature: divides the student's logits inside the divergence, > 0.
        recorded_temperature: what the teacher's logits were divided by when `teacher_logp` was recorded. It must be
            `temperature`: the logits in the tail are lost, so a record cannot be moved to another temperature.
        vocabulary: the student's distribution is over the first so many ids; by default over all.
        memory: bytes that the products of one chunk may take.

    Returns:
        The total and the values per position. `teacher_logp` is the target's where it was kept, at the recorded
        temperature, and else that of the whole tail: more than the target's own.

    Raises:
        InputError: the record was made at another temperature, or has an id that is not compared.
        ValueError: `cross_entropy` without `targets`, or a wrong `divergence`.

    >>> import torch
    >>> hidden, weight = torch.zeros(1, 2), torch.randn(4, 2)  # the student finds four tokens equally probable
    >>> teacher = torch.tensor([[0.5, 0.25]]).log()  # a quarter is in the tail, where the student has half
    >>> scores = top_k_divergence(hidden, weight, torch.tensor([[2, 0]]), teacher, "total_variation")
    >>> scores.divergence.tolist()
    [0.25]
    """
    if temperature != recorded_temperature:
        raise InputError(
            f"the teacher's top-k log-probabilities were recorded at temperature {recorded_temperature:g}, but the "
            f"divergence is asked for at {temperature:g}; record them at {temperature:g}, or set the temperature of "
            f"the loss to {recorded_temperature:g}"
        )
    if cross_entropy is not None and targets is None:
        raise ValueError("cross_entropy needs targets, the ids of the tokens that follow")
    whole = as_head(student_head)
    student = whole.narrow(vocabulary or whole.vocabulary)
    highest = int(teacher_ids.max()) if teacher_ids.numel() else -1
    if highest >= student.vocabulary:
        raise InputError(
            f"the teacher's record has the id {highest}, but only the {student.vocabulary:,} ids that student and "
            "teacher share are compared; record the teacher over those alone"
        )
    wide = torch.promote_types(student_hidden.dtype, torch.float32)
    chosen = chosen_divergence(divergence, parameters)
    comparison = TopK(chosen, parameters, teacher_ids, _coarse(teacher_ids, teacher_logp.to(wide), student.vocabulary))
    work = Work(
        student=Model.of(student_hidden, student),
        others=(),
        pointwise=InBlocks(comparison),
        compared=True,
        coefficients=coefficients,
        targets=targets,
        cross_entropy=cross_entropy,
        temperature=temperature,
        memory=memory,
    )
    return Scores(*OnePass.apply(work, student_hidden, student.weight, student.bias))


@dataclass(frozen=True)
class TopK:
    """Comparison with the tokens that were kept, and with the rest as one."""

    divergence: Divergence | PointwiseFunction
    parameters: Tensor | None
    ids: Tensor
    teacher_logp: Tensor
    """Of the ids and of the tail, `[positions, k + 1]`."""

    def __call__(self, work: Work, block: Block, values: Values) -> Tensor | None:
        """Fill in the values of a block and return their slope."""
        student, ids, teacher_logp = block.student, self.ids[block.rows], self.teacher_logp[block.rows]
        if values.teacher_logp is not None:
            assert work.targets is not None
            values.teacher_logp[block.rows] = _logp_of(work.targets[block.rows], ids, teacher_logp)
        kept, places = ids >= 0, ids.clamp_min(0)
        exp = student.exp.gather(-1, places) * kept
        rest = block.scratch.array().copy_(student.exp).scatter_add_(-1, places, -exp)
        tail = rest.sum(-1, keepdim=True).clamp_min(torch.finfo(rest.dtype).tiny)
        logp = student.shifted.gather(-1, places).masked_fill(~kept, _IMPOSSIBLE)
        logp = torch.cat([logp, tail.log()], -1) - student.total.log()
        none = teacher_logp == _IMPOSSIBLE
        logp = logp.masked_fill(none, _IMPOSSIBLE)
        value, slope = self._evaluated(logp, teacher_logp, block)
        assert values.divergence is not None
        values.divergence[block.rows] = value
        if slope is None:
            return None
        slope = slope.masked_fill(none, 0.0) * block.factor
        rest.mul_(slope[:, -1:] / tail).addcmul_(student.exp, -slope.sum(-1, keepdim=True) / student.total)
        return rest.scatter_add_(-1, places, slope[:, :-1])

    def _evaluated(self, student_logp: Tensor, teacher_logp: Tensor, block: Block) -> tuple[Tensor, Tensor | None]:
        differentiate = block.differentiate[0]
        if not isinstance(self.divergence, Divergence):
            return differentiated(self.divergence, student_logp, teacher_logp, differentiate)
        parameter = None if self.parameters is None else self.parameters[block.rows, None].to(student_logp.dtype)
        return evaluated(self.divergence, student_logp, teacher_logp, parameter, differentiate)


def _coarse(ids: Tensor, logp: Tensor, vocabulary: int) -> Tensor:
    """Log-probabilities of the kept tokens and of the tail, which add up to one, `[positions, k + 1]`."""
    kept = ids >= 0
    mass = (logp.exp() * kept).sum(-1, keepdim=True)
    everything = kept.sum(-1, keepdim=True) == vocabulary
    least = torch.finfo(logp.dtype).eps
    tail = (1 - mass).clamp_min(least).masked_fill(everything, 0.0)
    scaled = (1 - mass < least) | everything
    logp = logp + torch.where(scaled, ((1 - tail) / mass).log(), 0.0)
    return torch.cat(
        [logp.masked_fill(~kept, _IMPOSSIBLE), tail.log().masked_fill(everything, _IMPOSSIBLE)], -1
    ).detach()


def _logp_of(targets: Tensor, ids: Tensor, logp: Tensor) -> Tensor:
    """Log-probability of what each target has become."""
    found = ids == targets[:, None]
    place = torch.where(found.any(-1), found.int().argmax(-1) if ids.shape[1] else 0, ids.shape[1])
    return logp.gather(-1, place[:, None]).squeeze(-1)
