"""Divergences and log-probabilities from hidden states, a few positions at a time.

The coefficient of every position is known before the pass, so the gradients of the hidden states, the head
weight and the bias are computed together with the loss: student product, teacher product, pointwise term and
slope, two gradient products. Nothing of size positions × vocabulary outlives a chunk, and nothing is
projected twice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from tutelage.divergences import Divergence, named, parametrised
from tutelage.losses.chunks import DEFAULT_MEMORY, chunk_size, slices
from tutelage.losses.head import Head, compute_dtype

PointwiseFunction = Callable[..., Tensor]
"""Of (student_logp, teacher_logp), and of a third model's vectors where one is given."""


@dataclass(frozen=True)
class Scores:
    """What one pass over the vocabulary gives: the differentiable total, and values per position."""

    total: Float[Tensor, ""]
    """Σ_n coefficients[n] · divergence[n] − cross_entropy[n] · student_logp[n]; carries the gradient."""
    divergence: Float[Tensor, " positions"] | None
    """Divergence per position, nats, detached; `None` without a teacher."""
    student_logp: Float[Tensor, " positions"] | None
    """Student's log-probability of the target at temperature 1, nats, detached; `None` without targets."""
    teacher_logp: Float[Tensor, " positions"] | None
    """The teacher's, likewise; `None` without a teacher or targets."""


def linear_divergence(
    student_hidden: Float[Tensor, "positions student_width"],
    student_head: Head | Tensor,
    teacher_hidden: Float[Tensor, "positions teacher_width"] | None = None,
    teacher_head: Head | Tensor | None = None,
    divergence: str | Divergence | PointwiseFunction | None = None,
    *,
    coefficients: Float[Tensor, " positions"] | None = None,
    targets: Int[Tensor, " positions"] | None = None,
    cross_entropy: Float[Tensor, " positions"] | None = None,
    parameters: Float[Tensor, " positions"] | None = None,
    temperature: float = 1.0,
    vocabulary: int | None = None,
    extra_hidden: Float[Tensor, "positions extra_width"] | None = None,
    extra_head: Head | None = None,
    memory: int = DEFAULT_MEMORY,
) -> Scores:
    """Compare student and teacher over the whole vocabulary, position by position, without keeping logits.

    Formula: Σ_n c_n D(p_n, q_n) − Σ_n k_n log q_n(y_n), where p and q are the softmax of the two heads'
    logits over `temperature`, c is `coefficients`, k is `cross_entropy` and y is `targets`; the second sum is
    at temperature 1.

    Args:
        student_hidden: final hidden states, one a position; receives a gradient.
        student_head: head of the student, or its weight `[vocabulary, width]`; receives a gradient.
        teacher_hidden: final hidden states of the teacher at the same positions; never receives one.
        teacher_head: head of the teacher, or its weight.
        divergence: a name such as `jsd(0.5)`, a `Divergence`, or any function of (student_logp, teacher_logp),
            both `[chunk, vocabulary]`, that returns one value a position; such a function is differentiated
            inside the chunk.
        coefficients: c, one weight a position; ones by default.
        targets: y, the ids of the tokens that follow.
        cross_entropy: k, one weight a position; nothing by default.
        parameters: the divergence's parameter at each position, for a name without one (`skew_forward_kl`).
        temperature: divides both models' logits inside the divergence, > 0. No T² is applied.
        vocabulary: compare on the first so many ids only; by default on those that both heads have.
        extra_hidden: states of a third model, such as a critic, at the same positions; receives a gradient.
        extra_head: its head, which receives one too. `divergence` is then a function of (student_logp,
            teacher_logp, the third model's raw outputs).
        memory: bytes that the temporary arrays of one chunk may take.

    Returns:
        The total (a scalar that carries the gradient) and detached values per position.

    Raises:
        ValueError: a teacher without a divergence, `cross_entropy` without `targets`, a third model without a
            function of three, or a wrong `divergence`.

    >>> hidden, weight = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> scores = linear_divergence(hidden, weight, hidden, weight, "reverse_kl")
    >>> scores.divergence.tolist()
    [0.0, 0.0]
    """
    student = _as_head(student_head)
    teacher = None if teacher_head is None else _as_head(teacher_head)
    if (teacher is None) != (divergence is None) or (teacher is None) != (teacher_hidden is None):
        raise ValueError("teacher_hidden, teacher_head and divergence belong together: give all or none")
    if cross_entropy is not None and targets is None:
        raise ValueError("cross_entropy needs targets, the ids of the tokens that follow")
    if extra_head is not None and (isinstance(divergence, str | Divergence | None) or extra_hidden is None):
        raise ValueError("extra_head needs extra_hidden, and a function of three as the divergence")
    size = vocabulary or min(h.vocabulary for h in (student, teacher, extra_head) if h is not None)
    extra = None if extra_head is None else extra_head.narrow(size)
    work = _Work(
        student=student.narrow(size),
        teacher_hidden=teacher_hidden,
        teacher=None if teacher is None else teacher.narrow(size),
        divergence=_chosen(divergence, parameters),
        coefficients=coefficients,
        parameters=parameters,
        targets=targets,
        cross_entropy=cross_entropy,
        temperature=temperature,
        extra_hidden=None if extra_hidden is None else extra_hidden.detach(),
        extra=extra,
        chunk=chunk_size(size, memory if extra is None else memory * 2 // 3),
    )
    # The weights are passed narrowed, so that autograd pads their gradients back to the full vocabulary.
    third = () if extra is None else (extra_hidden, extra.weight, extra.bias)
    total, *values = _LinearDivergence.apply(student_hidden, work.student.weight, work.student.bias, work, *third)
    return Scores(total, *values)


@dataclass(frozen=True)
class _Work:
    """Everything a pass needs besides the tensors that receive gradients."""

    student: Head
    teacher_hidden: Tensor | None
    teacher: Head | None
    divergence: Divergence | PointwiseFunction | None
    coefficients: Tensor | None
    parameters: Tensor | None
    targets: Tensor | None
    cross_entropy: Tensor | None
    temperature: float
    extra_hidden: Tensor | None
    extra: Head | None
    chunk: int

    def teacher_logits(self, rows: slice) -> Tensor:
        assert self.teacher is not None
        assert self.teacher_hidden is not None
        return self.teacher.logits(self.teacher_hidden[rows])


class _LinearDivergence(torch.autograd.Function):
    """One pass that returns the total and the values per position, and keeps the gradients for backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: _Work, *third: Any):
        gradients = _Gradients.empty(hidden, weight, bias, ctx.needs_input_grad)
        extra = _Gradients.empty(third[0], third[1], third[2], ctx.needs_input_grad[4:]) if third else None
        values = _Values.empty(hidden, work)
        with (
            torch.no_grad(),
            torch.autocast(hidden.device.type, enabled=torch.is_autocast_enabled(hidden.device.type)),
        ):
            for rows in slices(len(hidden), work.chunk):
                _one_chunk(hidden[rows], rows, work, values, gradients, extra)
        ctx.save_for_backward(*gradients.tensors(), *(() if extra is None else extra.tensors()))
        total = values.total(work)
        ctx.mark_non_differentiable(*(v for v in values.tensors() if v is not None))
        return (total, *values.tensors())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total_gradient: Tensor, *_: Tensor | None):
        scaled = [None if g is None else g * total_gradient.to(g.dtype) for g in ctx.saved_tensors]
        return (*scaled[:3], None, *scaled[3:])


@dataclass
class _Gradients:
    """Gradients of hidden states, head weight and bias for a total gradient of 1."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def empty(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...]) -> "_Gradients":
        accumulate = torch.promote_types(weight.dtype, torch.float32)
        return cls(
            torch.zeros_like(hidden) if needed[0] else None,
            torch.zeros_like(weight, dtype=accumulate) if needed[1] else None,
            torch.zeros_like(bias, dtype=accumulate) if bias is not None and needed[2] else None,
        )

    @property
    def needed(self) -> bool:
        return any(g is not None for g in self.tensors())

    def add(self, rows: slice, hidden: Tensor, head: Head, slope: Tensor) -> None:
        """Add a chunk's part, given `slope` = ∂total/∂(hidden weightᵀ + bias)."""
        compute = compute_dtype(hidden)
        if self.bias is not None:
            self.bias += slope.sum(0)
        slope = slope.to(compute)
        with torch.autocast(hidden.device.type, enabled=False):
            if self.hidden is not None:
                self.hidden[rows] = (slope @ head.weight.to(compute)).to(self.hidden.dtype)
            if self.weight is not None and compute == self.weight.dtype:
                self.weight.addmm_(slope.mT, hidden.to(compute))
            elif self.weight is not None:
                self.weight += slope.mT @ hidden.to(compute)

    def tensors(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self.hidden, self.weight, self.bias


@dataclass
class _Values:
    """Values per position, filled chunk by chunk."""

    divergence: Tensor | None
    student_logp: Tensor | None
    teacher_logp: Tensor | None

    @classmethod
    def empty(cls, hidden: Tensor, work: _Work) -> "_Values":
        def new(wanted: bool) -> Tensor | None:
            accumulate = torch.promote_types(hidden.dtype, torch.float32)
            return torch.zeros(len(hidden), dtype=accumulate, device=hidden.device) if wanted else None

        targets, teacher = work.targets is not None, work.teacher is not None
        return cls(new(teacher), new(targets), new(targets and teacher))

    def total(self, work: _Work) -> Tensor:
        parts = []
        if self.divergence is not None:
            weights = work.coefficients
            parts.append(self.divergence.sum() if weights is None else (weights * self.divergence).sum())
        if work.cross_entropy is not None:
            assert self.student_logp is not None
            parts.append(-(work.cross_entropy * self.student_logp).sum())
        if not parts:
            raise ValueError("nothing to compute: give a teacher with a divergence, or cross_entropy")
        return torch.stack(parts).sum()

    def tensors(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self.divergence, self.student_logp, self.teacher_logp


def _one_chunk(
    hidden: Tensor, rows: slice, work: _Work, values: _Values, gradients: _Gradients, extra: _Gradients | None
) -> None:
    logits = work.student.logits(hidden)
    slope = torch.zeros_like(logits) if work.teacher is None else None
    if work.teacher is not None:
        slope = _divergence_part(logits, rows, work, values, gradients.needed, extra)
    if work.targets is not None:
        _target_part(logits, slope, rows, work, values)
    if gradients.needed:
        assert slope is not None
        gradients.add(rows, hidden, work.student, work.student.slope_of_product(logits, slope))


def _divergence_part(
    logits: Tensor, rows: slice, work: _Work, values: _Values, differentiate: bool, extra: "_Gradients | None"
) -> Tensor | None:
    """Fill in a chunk's divergences; return their slope with respect to the student's logits."""
    teacher_logits = work.teacher_logits(rows)
    if values.teacher_logp is not None:
        assert work.targets is not None
        values.teacher_logp[rows] = _logp_of(teacher_logits, work.targets[rows])
    teacher_logp = (teacher_logits / work.temperature).log_softmax(-1)
    student_logp = (logits / work.temperature).log_softmax(-1)
    assert work.divergence is not None
    assert values.divergence is not None
    if extra is not None:
        value, slope = _with_a_third(student_logp, teacher_logp, rows, work, differentiate, extra)
    elif not isinstance(work.divergence, Divergence):
        value, slope = _differentiated(work.divergence, student_logp, teacher_logp, differentiate)
    else:
        parameter = () if work.parameters is None else (work.parameters[rows, None].to(student_logp.dtype),)
        value = work.divergence(student_logp, teacher_logp, *parameter)
        slope = work.divergence.slope(student_logp, teacher_logp, *parameter) if differentiate else None
    values.divergence[rows] = value
    if slope is None:
        return None
    slope = slope - student_logp.exp_() * slope.sum(-1, keepdim=True)
    if work.coefficients is not None:
        slope *= work.coefficients[rows, None].to(slope.dtype)
    return slope if work.temperature == 1.0 else slope / work.temperature


def _differentiated(
    function: PointwiseFunction, student_logp: Tensor, teacher_logp: Tensor, differentiate: bool
) -> tuple[Tensor, Tensor | None]:
    """Value of any function per position, and its slope with respect to the student's log-probabilities."""
    if not differentiate:
        return function(student_logp, teacher_logp), None
    with torch.enable_grad():
        variable = student_logp.detach().requires_grad_()
        value = function(variable, teacher_logp)
        (slope,) = torch.autograd.grad(value.sum(), variable)
    return value.detach(), slope


def _with_a_third(
    student_logp: Tensor, teacher_logp: Tensor, rows: slice, work: _Work, differentiate: bool, gradients: _Gradients
) -> tuple[Tensor, Tensor | None]:
    """The same for a function of three; the third model's gradients are added to its own."""
    assert work.extra is not None
    assert work.extra_hidden is not None
    function: Any = work.divergence
    outputs = work.extra.logits(work.extra_hidden[rows])
    if not differentiate and not gradients.needed:
        return function(student_logp, teacher_logp, outputs), None
    wanted = ((student_logp.detach(), differentiate), (outputs, gradients.needed))
    with torch.enable_grad():
        variables = [variable.requires_grad_(needed) for variable, needed in wanted]
        value = function(variables[0], teacher_logp, variables[1])
        slopes = list(torch.autograd.grad(value.sum(), [v for v in variables if v.requires_grad]))
    if gradients.needed:
        slope = slopes.pop()
        if work.coefficients is not None:
            slope = slope * work.coefficients[rows, None].to(slope.dtype)
        slope = work.extra.slope_of_product(outputs.detach(), slope)
        gradients.add(rows, work.extra_hidden[rows], work.extra, slope)
    return value.detach(), slopes[0] if slopes else None


def _target_part(logits: Tensor, slope: Tensor | None, rows: slice, work: _Work, values: _Values) -> None:
    """Fill in a chunk's log-probabilities of the targets, and add the cross-entropy's slope in place."""
    assert work.targets is not None
    assert values.student_logp is not None
    targets = work.targets[rows]
    values.student_logp[rows] = _logp_of(logits, targets)
    if slope is None or work.cross_entropy is None:
        return
    weights = work.cross_entropy[rows, None].to(slope.dtype)
    slope += weights * logits.softmax(-1)
    slope.scatter_add_(-1, targets[:, None], -weights)


def _logp_of(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)


def _chosen(divergence: Any, parameters: Tensor | None) -> Divergence | PointwiseFunction | None:
    if isinstance(divergence, str):
        return named(divergence) if parameters is None else parametrised(divergence)
    if parameters is not None and not isinstance(divergence, Divergence):
        raise ValueError("parameters needs the name of a divergence that takes one, without its parenthesis")
    return divergence


def _as_head(head: Head | Tensor) -> Head:
    return head if isinstance(head, Head) else Head(head)
