"""Values and slopes of the named divergences in as few passes over a block as the algebra allows.

With q and p the probabilities of student and teacher, every slope with respect to the student's logits is

    q (score − Σ q score),   score = (∂ term / ∂ log q) / q,

forward KL's being simply q − p. A form reads two `Softmax` and works in place: it may overwrite the teacher's
arrays, never the student's. Its result holds where it is finite; a block in which a token is impossible (−∞) for
one of the models may come out as not a number, and is then left to the definition in `tutelage.divergences`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tutelage.losses.scratch import Scratch
from tutelage.losses.softmax import Softmax

Parameter = float | Tensor
Form = Callable[[Softmax, Softmax, Tensor, Any, Scratch], tuple[Tensor, Tensor]]
"""Of student, teacher, a factor for the slope `[positions, 1]` and the divergence's parameter, a number or
`[positions, 1]` (or `None`), and where to take arrays from; gives the value `[positions, 1]`, and the slope times the
factor."""


def _forward_kl(student: Softmax, teacher: Softmax, factor: Tensor, _: None, scratch: Scratch) -> tuple[Tensor, Tensor]:
    gap = teacher.shifted.sub_(student.shifted)
    value = _mean(teacher, gap, out=gap) - teacher.total.log() + student.total.log()
    slope = torch.mul(student.exp, factor / student.total, out=scratch.array())
    return value, slope.addcmul_(teacher.exp, -factor / teacher.total)


def _reverse_kl(student: Softmax, teacher: Softmax, factor: Tensor, _: None, scratch: Scratch) -> tuple[Tensor, Tensor]:
    gap = torch.sub(student.shifted, teacher.shifted, out=teacher.shifted)
    mean, slope = _centred(student, gap, factor, spare=teacher.exp)
    return mean - student.total.log() + teacher.total.log(), slope


def _jsd(
    student: Softmax, teacher: Softmax, factor: Tensor, beta: Parameter, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    mixture_logp = _mixture(teacher, student, beta, scratch).log_()
    teacher_gap = teacher.shifted.sub_(mixture_logp)
    student_gap = torch.sub(student.shifted, mixture_logp, out=mixture_logp)
    teacher_kl = _mean(teacher, teacher_gap, out=teacher_gap) - teacher.total.log()
    mean, slope = _centred(student, student_gap, (1 - beta) * factor, spare=teacher.exp)
    return beta * teacher_kl + (1 - beta) * (mean - student.total.log()), slope


def _total_variation(
    student: Softmax, teacher: Softmax, factor: Tensor, _: None, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    # Both are divided before they are compared, so that equal probabilities differ by exactly nothing.
    teacher.exp.div_(teacher.total)
    difference = torch.div(student.exp, student.total, out=scratch.array()).sub_(teacher.exp)
    value = torch.abs(difference, out=teacher.shifted).sum(-1, keepdim=True) / 2
    return value, _centred(student, difference.sign_(), factor / 2, spare=teacher.exp)[1]


def _skew_forward_kl(
    student: Softmax, teacher: Softmax, factor: Tensor, alpha: Parameter, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    mixture = _mixture(teacher, student, alpha, scratch)
    ratio = torch.div(teacher.exp, mixture, out=scratch.array()).div_(teacher.total)
    gap = teacher.shifted.sub_(mixture.log_())
    value = _mean(teacher, gap, out=gap) - teacher.total.log()
    return value, _centred(student, ratio, (alpha - 1) * factor, spare=teacher.exp)[1]


def _skew_reverse_kl(
    student: Softmax, teacher: Softmax, factor: Tensor, alpha: Parameter, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    mixture = _mixture(student, teacher, alpha, scratch)
    ratio = torch.div(student.exp, mixture, out=scratch.array()).mul_(alpha / student.total)
    gap = torch.sub(student.shifted, mixture.log_(), out=mixture)
    value = _mean(student, gap, out=teacher.exp) - student.total.log()
    return value, _centred(student, gap.sub_(ratio), factor, spare=teacher.exp)[1]


def _mixture(first: Softmax, second: Softmax, weight: Parameter, scratch: Scratch) -> Tensor:
    """weight · first + (1 − weight) · second, above zero so that it has a logarithm."""
    mixture = torch.mul(first.exp, weight / first.total, out=scratch.array())
    return mixture.addcmul_(second.exp, (1 - weight) / second.total).clamp_min_(torch.finfo(mixture.dtype).tiny)


def _mean(model: Softmax, array: Tensor, out: Tensor) -> Tensor:
    """Expectation of an array under a model, `[positions, 1]`; overwrites `out`."""
    return torch.mul(model.exp, array, out=out).sum(-1, keepdim=True) / model.total


def _centred(student: Softmax, score: Tensor, factor: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
    """Σ q score, and factor · q (score − Σ q score) in place of score; overwrites `spare` too."""
    mean = _mean(student, score, out=spare)
    return mean, score.sub_(mean).mul_(student.exp).mul_(factor / student.total)


FORMS: dict[str, Form] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
    "total_variation": _total_variation,
    "skew_forward_kl": _skew_forward_kl,
    "skew_reverse_kl": _skew_reverse_kl,
}
