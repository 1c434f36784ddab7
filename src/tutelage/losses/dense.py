"""Comparing the student with a teacher's whole distributions: by a named divergence, or by any function."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.divergences import Divergence
from tutelage.losses.blocks import Block
from tutelage.losses.fused import FORMS
from tutelage.losses.softmax import Softmax
from tutelage.losses.work import Values, Work

PointwiseFunction = Callable[..., Tensor]
"""Of (student_logp, teacher_logp), and of a third model's vectors where one is given."""


@dataclass(frozen=True)
class Dense:
    """Comparison with a teacher, and with a third model where the work has one."""

    divergence: Divergence | PointwiseFunction
    parameters: Tensor | None

    def __call__(self, work: Work, block: Block, values: Values) -> Tensor | None:
        """Fill in the values of a block and return their slope."""
        teacher_logits = work.others[0].head.logits_of(block.products[0], block.scratch.array())
        teacher = Softmax.of(teacher_logits, work.temperature, block.scratch)
        if values.teacher_logp is not None:
            assert work.targets is not None
            plain = teacher if work.temperature == 1.0 else Softmax.of(teacher_logits, 1.0, block.scratch)
            values.teacher_logp[block.rows] = plain.logp_of(work.targets[block.rows])
        assert values.divergence is not None
        form = FORMS.get(self.divergence.family or "") if isinstance(self.divergence, Divergence) else None
        if form is not None and teacher_logits.device.type == "cpu":
            value, slope = form(block.student, teacher, block.factor, self._parameter(block), block.scratch)
            if value.isfinite().all():
                values.divergence[block.rows] = value.squeeze(-1)
                return slope
            teacher = Softmax.of(teacher_logits, work.temperature, block.scratch)
        value, slope = self._by_definition(work, block, teacher.logp)
        values.divergence[block.rows] = value
        return None if slope is None else _of_logits(block, slope)

    def _by_definition(self, work: Work, block: Block, teacher_logp: Tensor) -> tuple[Tensor, Tensor | None]:
        """Value per position, and its slope with respect to the student's log-probabilities."""
        student_logp, differentiate = block.student.logp, block.differentiate[0]
        if len(block.products) > 1:
            return _with_a_third(self.divergence, student_logp, teacher_logp, work, block)
        if not isinstance(self.divergence, Divergence):
            return differentiated(self.divergence, student_logp, teacher_logp, differentiate)
        return evaluated(self.divergence, student_logp, teacher_logp, self._parameter(block), differentiate)

    def _parameter(self, block: Block) -> Tensor | float | None:
        if self.parameters is None:
            assert isinstance(self.divergence, Divergence)
            return self.divergence.parameter
        return self.parameters[block.rows, None].to(block.factor.dtype)


def evaluated(
    divergence: Divergence, student_logp: Tensor, teacher_logp: Tensor, parameter: Any, differentiate: bool
) -> tuple[Tensor, Tensor | None]:
    """Value of a divergence per position, and its slope with respect to the student's log-probabilities."""
    given = (parameter,) if isinstance(parameter, Tensor) else ()
    value = divergence(student_logp, teacher_logp, *given)
    return value, divergence.slope(student_logp, teacher_logp, *given) if differentiate else None


def differentiated(
    function: PointwiseFunction, student_logp: Tensor, teacher_logp: Tensor, differentiate: bool
) -> tuple[Tensor, Tensor | None]:
    """The same for any function, by autograd."""
    if not differentiate:
        return function(student_logp, teacher_logp), None
    with torch.enable_grad():
        variable = student_logp.detach().requires_grad_()
        value = function(variable, teacher_logp)
        (slope,) = torch.autograd.grad(value.sum(), variable)
    return value.detach(), slope


def _with_a_third(
    function: Any, student_logp: Tensor, teacher_logp: Tensor, work: Work, block: Block
) -> tuple[Tensor, Tensor | None]:
    """The same for a function of three; the slope of the third model's product is written over it."""
    head, product = work.others[1].head, block.products[1]
    student_needed, third_needed = block.differentiate[0], block.differentiate[2]
    outputs = head.logits_of(product)
    if not student_needed and not third_needed:
        return function(student_logp, teacher_logp, outputs), None
    with torch.enable_grad():
        variables = [student_logp.requires_grad_(student_needed), outputs.detach().requires_grad_(third_needed)]
        value = function(variables[0], teacher_logp, variables[1])
        slopes = list(torch.autograd.grad(value.sum(), [v for v in variables if v.requires_grad]))
    if third_needed:
        slope = slopes.pop() * (block.factor * work.temperature)
        product.copy_(head.slope_of_product(outputs.detach(), slope))
    return value.detach(), slopes[0] if slopes else None


def _of_logits(block: Block, slope: Tensor) -> Tensor:
    """Turn a slope with respect to log-probabilities into one with respect to logits, times the factor."""
    total = slope.sum(-1, keepdim=True) / block.student.total
    return torch.addcmul(slope, block.student.exp, total, value=-1).mul_(block.factor)
