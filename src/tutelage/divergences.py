"""Divergences between the student's and the teacher's next-token distributions, in nats per position.

Each is a sum over the vocabulary of one pointwise *term*, and its gradient with respect to the student's
logits needs one pointwise *slope*: with `slope = ∂ term / ∂ student_logp`,

    ∂ D / ∂ student_logits = slope − student_probabilities · Σ slope.

That is what lets `tutelage.losses` compute any of them without keeping the logits. Nothing here knows of
masks, temperatures, shifts or averages: student and teacher come as log-probabilities, one distribution
a row, and one number a row comes back.

Forward KL, reverse KL, JSD(β) and total variation are different functions. The generalised JSD does not
turn into a KL at the ends of its range: it goes to zero there, as β·KL(teacher‖student) for β → 0 and as
(1−β)·KL(student‖teacher) for β → 1. A sweep over β therefore changes the size of the gradient as well.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.config import DIVERGENCES, split_divergence

LogProbabilities = Float[Tensor, "... vocabulary"]
PerPosition = Float[Tensor, "..."]


def forward_kl(student_logp: LogProbabilities, teacher_logp: LogProbabilities) -> PerPosition:
    """KL(teacher‖student): the student must cover everything the teacher may say.

    The usual choice for supervised distillation. A student too small to cover all of the teacher's modes
    spreads itself between them (mean-seeking).

    Formula: Σ_v p_v (log p_v − log q_v), with p the teacher and q the student.

    Args:
        student_logp: log-probabilities of the student, `[..., vocabulary]`, nats.
        teacher_logp: log-probabilities of the teacher, the same shape.

    Returns:
        Divergence per position, `[...]`, nats, in [0, ∞].

    >>> q, p = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    >>> round(forward_kl(q, p).item(), 4)
    0.1308

    Reference: Hinton et al. 2015; GKD (arXiv 2306.13649), §2.
    """
    return _forward_kl_term(student_logp, teacher_logp).sum(-1)


def reverse_kl(student_logp: LogProbabilities, teacher_logp: LogProbabilities) -> PerPosition:
    """KL(student‖teacher): the student must not say what the teacher would not.

    The choice where a small student should be good at one way of answering rather than poor at all of
    them (mode-seeking): instruction following, on-policy training. Diversity goes down.

    Formula: Σ_v q_v (log q_v − log p_v), with p the teacher and q the student.

    Args:
        student_logp: log-probabilities of the student, `[..., vocabulary]`, nats.
        teacher_logp: log-probabilities of the teacher, the same shape.

    Returns:
        Divergence per position, `[...]`, nats, in [0, ∞].

    >>> q, p = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    >>> round(reverse_kl(q, p).item(), 4)
    0.1438

    Reference: MiniLLM (arXiv 2306.08543), §2.1.
    """
    return _reverse_kl_term(student_logp, teacher_logp).sum(-1)


def jsd(student_logp: LogProbabilities, teacher_logp: LogProbabilities, beta: float) -> PerPosition:
    """Generalised Jensen–Shannon divergence, between the two KLs and bounded.

    Formula: β KL(p‖m) + (1−β) KL(q‖m) with m = β p + (1−β) q, p the teacher and q the student: β weighs
    the *teacher* in the mixture. β → 0 behaves like forward KL scaled by β, β → 1 like reverse KL scaled
    by 1−β, so JSD(0.1) and JSD(0.9) have about a tenth of a KL's gradient.

    Args:
        student_logp: log-probabilities of the student, `[..., vocabulary]`, nats.
        teacher_logp: log-probabilities of the teacher, the same shape.
        beta: weight of the teacher in the mixture, strictly between 0 and 1.

    Returns:
        Divergence per position, `[...]`, nats, in [0, −β log β − (1−β) log(1−β)].

    >>> q, p = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    >>> round(jsd(q, p, beta=0.5).item(), 4)
    0.0338

    Reference: GKD (arXiv 2306.13649), Eq. 1.
    """
    return _jsd_term(student_logp, teacher_logp, beta).sum(-1)


def total_variation(student_logp: LogProbabilities, teacher_logp: LogProbabilities) -> PerPosition:
    """Total variation distance: the mass that the two models place differently.

    One minus it is the probability that a speculative decoder accepts the student's token, so a draft
    model is best trained on it.

    Formula: ½ Σ_v |p_v − q_v|.

    Args:
        student_logp: log-probabilities of the student, `[..., vocabulary]`, nats.
        teacher_logp: log-probabilities of the teacher, the same shape.

    Returns:
        Distance per position, `[...]`, in [0, 1] (no unit).

    >>> q, p = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    >>> round(total_variation(q, p).item(), 4)
    0.25

    Reference: f-distill (ACL 2023), Eq. 9.
    """
    return _total_variation_term(student_logp, teacher_logp).sum(-1)


def skew_forward_kl(student_logp: LogProbabilities, teacher_logp: LogProbabilities, alpha: float) -> PerPosition:
    """Forward KL to a student that has a little of the teacher mixed in: bounded gradients.

    Formula: KL(p ‖ α p + (1−α) q). The small weight α belongs to the teacher; swapped, the loss would be
    bounded by log 1/(1−α) and teach almost nothing.

    Args:
        student_logp: log-probabilities of the student, `[..., vocabulary]`, nats.
        teacher_logp: log-probabilities of the teacher, the same shape.
        alpha: weight of the teacher in the mixture, strictly between 0 and 1 (DistiLLM: 0.1).

    Returns:
        Divergence per position, `[...]`, nats, in [0, −log α].

    >>> q, p = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    >>> round(skew_forward_kl(q, p, alpha=0.1).item(), 4)
    0.107

    Reference: DistiLLM (arXiv 2402.03898), Eq. 3.
    """
    return _skew_forward_kl_term(student_logp, teacher_logp, alpha).sum(-1)


def skew_reverse_kl(student_logp: LogProbabilities, teacher_logp: LogProbabilities, alpha: float) -> PerPosition:
    """Reverse KL to a teacher that has a little of the student mixed in: bounded loss.

    Formula: KL(q ‖ (1−α) p + α q).

    Args:
        student_logp: log-probabilities of the student, `[..., vocabulary]`, nats.
        teacher_logp: log-probabilities of the teacher, the same shape.
        alpha: weight of the student in the mixture, strictly between 0 and 1 (DistiLLM: 0.1).

    Returns:
        Divergence per position, `[...]`, nats, in [0, −log α].

    >>> q, p = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    >>> round(skew_reverse_kl(q, p, alpha=0.1).item(), 4)
    0.1131

    Reference: DistiLLM (arXiv 2402.03898), Eq. 4.
    """
    return _skew_reverse_kl_term(student_logp, teacher_logp, alpha).sum(-1)


@dataclass(frozen=True)
class Divergence:
    """A divergence with its parameter bound: what the engine needs to evaluate and differentiate it.

    `term` and `slope` are pointwise functions of (student_logp, teacher_logp), both `[..., vocabulary]`.
    """

    name: str
    term: Callable[..., Tensor]
    slope: Callable[..., Tensor]
    family: str | None = None
    """The name without its parameter; `None` for a divergence that is not of this module."""
    parameter: float | None = None
    """The parameter, where there is one and it is bound."""

    def __call__(
        self, student_logp: LogProbabilities, teacher_logp: LogProbabilities, *parameter: Tensor
    ) -> PerPosition:
        """Return the divergence per position, `[...]`; `parameter` is one of `[..., 1]` where it is not bound."""
        return self.term(student_logp, teacher_logp, *parameter).sum(-1)


def named(text: str) -> Divergence:
    """Return the divergence that a recipe names, such as `reverse_kl` or `jsd(0.1)`.

    Raises:
        ValueError: the name or its parameter is wrong; the message lists what is known.

    >>> named("jsd(0.5)").name
    'jsd(0.5)'
    """
    name, parameter = split_divergence(text)
    term, slope = _POINTWISE[name]
    if parameter is None:
        return Divergence(text, term, slope, name)
    return Divergence(
        text,
        lambda student_logp, teacher_logp: term(student_logp, teacher_logp, parameter),
        lambda student_logp, teacher_logp: slope(student_logp, teacher_logp, parameter),
        name,
        parameter,
    )


def parametrised(name: str) -> Divergence:
    """Return a divergence whose parameter is not bound: term and slope take it as a third argument `[..., 1]`.

    Raises:
        ValueError: there is no divergence of that name, or it has no parameter.

    >>> q, p = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
    >>> [round(v, 4) for v in parametrised("skew_forward_kl")(q, p, torch.tensor([[0.1]])).tolist()]
    [0.107]
    """
    if DIVERGENCES.get(name) is None:
        known = ", ".join(n for n, parameter in DIVERGENCES.items() if parameter)
        raise ValueError(f"'{name}' is no divergence with a parameter; expected one of {known}")
    return Divergence(name, *_POINTWISE[name], name)


def _weighted(weight: Tensor, value: Tensor) -> Tensor:
    """`weight · value` where an impossible token (weight 0) contributes nothing, even if value is ±∞."""
    return torch.where(weight == 0, 0.0, weight * value)


def _mixture(first_logp: Tensor, second_logp: Tensor, weight: float | Tensor) -> Tensor:
    """log(weight · first + (1 − weight) · second), exact also where one of them is 0."""
    if isinstance(weight, Tensor):
        return torch.logaddexp(first_logp + weight.log(), second_logp + (-weight).log1p())
    return torch.logaddexp(first_logp + math.log(weight), second_logp + math.log1p(-weight))


def _forward_kl_term(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    return _weighted(teacher_logp.exp(), teacher_logp - student_logp)


def _forward_kl_slope(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    return -teacher_logp.exp()


def _reverse_kl_term(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    return _weighted(student_logp.exp(), student_logp - teacher_logp)


def _reverse_kl_slope(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    return _weighted(student_logp.exp(), student_logp - teacher_logp + 1)


def _jsd_term(student_logp: Tensor, teacher_logp: Tensor, beta: float | Tensor) -> Tensor:
    mixture_logp = _mixture(teacher_logp, student_logp, beta)
    return beta * _weighted(teacher_logp.exp(), teacher_logp - mixture_logp) + (1 - beta) * _weighted(
        student_logp.exp(), student_logp - mixture_logp
    )


def _jsd_slope(student_logp: Tensor, teacher_logp: Tensor, beta: float | Tensor) -> Tensor:
    mixture_logp = _mixture(teacher_logp, student_logp, beta)
    return (1 - beta) * _weighted(student_logp.exp(), student_logp - mixture_logp)


def _total_variation_term(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    return 0.5 * (student_logp.exp() - teacher_logp.exp()).abs()


def _total_variation_slope(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    student = student_logp.exp()
    return 0.5 * student * (student - teacher_logp.exp()).sign()


def _skew_forward_kl_term(student_logp: Tensor, teacher_logp: Tensor, alpha: float | Tensor) -> Tensor:
    return _weighted(teacher_logp.exp(), teacher_logp - _mixture(teacher_logp, student_logp, alpha))


def _skew_forward_kl_slope(student_logp: Tensor, teacher_logp: Tensor, alpha: float | Tensor) -> Tensor:
    mixture_logp = _mixture(teacher_logp, student_logp, alpha)
    return _weighted(student_logp.exp(), -(1 - alpha) * (teacher_logp - mixture_logp).exp())


def _skew_reverse_kl_term(student_logp: Tensor, teacher_logp: Tensor, alpha: float | Tensor) -> Tensor:
    return _weighted(student_logp.exp(), student_logp - _mixture(student_logp, teacher_logp, alpha))


def _skew_reverse_kl_slope(student_logp: Tensor, teacher_logp: Tensor, alpha: float | Tensor) -> Tensor:
    mixture_logp = _mixture(student_logp, teacher_logp, alpha)
    ratio = alpha * (student_logp - mixture_logp).exp()
    return _weighted(student_logp.exp(), student_logp - mixture_logp + 1 - ratio)


_POINTWISE: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "forward_kl": (_forward_kl_term, _forward_kl_slope),
    "reverse_kl": (_reverse_kl_term, _reverse_kl_slope),
    "jsd": (_jsd_term, _jsd_slope),
    "total_variation": (_total_variation_term, _total_variation_slope),
    "skew_forward_kl": (_skew_forward_kl_term, _skew_forward_kl_slope),
    "skew_reverse_kl": (_skew_reverse_kl_term, _skew_reverse_kl_slope),
}
