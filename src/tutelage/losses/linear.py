"""Divergences and log-probabilities from hidden states, in one pass over the vocabulary."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.divergences import Divergence, named, parametrised
from tutelage.losses.blocks import InBlocks
from tutelage.losses.chunks import DEFAULT_MEMORY
from tutelage.losses.dense import Dense, PointwiseFunction
from tutelage.losses.engine import OnePass
from tutelage.losses.head import Head
from tutelage.losses.projection import Model
from tutelage.losses.work import Pointwise, Work


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
    teacher = None if teacher_head is None else as_head(teacher_head)
    if (teacher is None) != (divergence is None) or (teacher is None) != (teacher_hidden is None):
        raise ValueError("teacher_hidden, teacher_head and divergence belong together: give all or none")
    if cross_entropy is not None and targets is None:
        raise ValueError("cross_entropy needs targets, the ids of the tokens that follow")
    if teacher is None and cross_entropy is None:
        raise ValueError("nothing to compute: give a teacher with a divergence, or cross_entropy")
    if extra_head is not None and (isinstance(divergence, str | Divergence | None) or extra_hidden is None):
        raise ValueError("extra_head needs extra_hidden, and a function of three as the divergence")
    student, extra = as_head(student_head), None if extra_head is None else extra_head.gathered()
    size = vocabulary or min(h.vocabulary for h in (student, teacher, extra) if h is not None)
    # The weights are passed narrowed, so that autograd pads their gradients back to the full vocabulary.
    student, third = student.narrow(size), None if extra is None else extra.narrow(size)
    others = [
        Model.of(hidden, head.narrow(size))
        for hidden, head in ((teacher_hidden, teacher), (extra_hidden, third))
        if hidden is not None and head is not None
    ]
    model, chosen = Model.of(student_hidden, student), chosen_divergence(divergence, parameters)
    work = Work(
        student=model,
        others=tuple(others),
        pointwise=_pointwise(model, chosen, parameters),
        compared=chosen is not None,
        coefficients=coefficients,
        targets=targets,
        cross_entropy=cross_entropy,
        temperature=temperature,
        memory=memory,
    )
    trained = () if third is None else (extra_hidden, third.weight, third.bias)
    return Scores(*OnePass.apply(work, student_hidden, student.weight, student.bias, *trained))


def _pointwise(student: Model, divergence: Any, parameters: Tensor | None) -> Pointwise:
    """Return one kernel where there is one, else the way in blocks that does anything."""
    if divergence is None or not _has_kernel(student, divergence):
        return InBlocks(None if divergence is None else Dense(divergence, parameters))
    from tutelage.losses.triton_pointwise import InOneKernel

    if parameters is None and divergence.parameter is not None:
        parameters = torch.full((len(student.hidden),), divergence.parameter, device=student.hidden.device)
    return InOneKernel(divergence.family, parameters)


def _has_kernel(student: Model, divergence: Divergence | PointwiseFunction) -> bool:
    named_here = isinstance(divergence, Divergence) and divergence.family is not None
    on_device = student.hidden.is_cuda and student.compute != torch.float64
    return named_here and on_device and find_spec("triton") is not None


def chosen_divergence(divergence: Any, parameters: Tensor | None) -> Any:
    """Return a divergence by its name, or what is none as it is."""
    if isinstance(divergence, str):
        return named(divergence) if parameters is None else parametrised(divergence)
    if parameters is not None and not isinstance(divergence, Divergence):
        raise ValueError("parameters needs the name of a divergence that takes one, without its parenthesis")
    return divergence


def as_head(head: Head | Tensor) -> Head:
    """Return a head, whole on this process, of what may be its weight alone."""
    return (head if isinstance(head, Head) else Head(head)).gathered()
