"""One pass over the vocabulary: values and gradients together, a few positions at a time.

The coefficient of every position is known before the pass, so the gradients of the hidden states, the head
weight and the bias are computed together with the loss: student product, teacher product, pointwise term and
slope, two gradient products. Nothing of size positions × vocabulary outlives a chunk, and nothing is
projected twice.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tutelage.losses.chunks import slices
from tutelage.losses.projection import Projection, handed_over
from tutelage.losses.work import Values, Work


class OnePass(torch.autograd.Function):
    """The pass as autograd sees it: of the student's hidden states, weight and bias, then of a trained third model's.

    The first backward pass takes the gradients away, scaled in place. A graph that was kept and goes backward
    once more computes them anew.
    """

    @staticmethod
    def forward(ctx: Any, work: Work, *inputs: Tensor | None):
        ctx.work = work
        ctx.save_for_backward(*inputs)
        values, ctx.gradients = one_pass(work, ctx.needs_input_grad[1:])
        ctx.mark_non_differentiable(*(v for v in values.tensors() if v is not None))
        return (values.total(work), *values.tensors())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total_gradient: Tensor, *_: Tensor | None):
        inputs = ctx.saved_tensors  # complains where one was changed since
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            gradients = one_pass(ctx.work, ctx.needs_input_grad[1:])[1]
        return None, *(
            None if gradient is None else handed_over(gradient, total_gradient, like.dtype)
            for gradient, like in zip(gradients, inputs, strict=True)
        )


def one_pass(work: Work, needed: tuple[bool, ...]) -> tuple[Values, list[Tensor | None]]:
    """Return the values, and the gradients of the inputs for a total gradient of 1."""
    values, chunk = Values.empty(work), work.chunk()
    trained = (needed[:3], (False, False, False), needed[3:])  # a student, a teacher, a third model
    models = (work.student, *work.others)
    projections = [Projection(model, chunk, trained[n]) for n, model in enumerate(models)]
    device = work.student.hidden.device.type
    with torch.no_grad(), torch.autocast(device, enabled=False):
        for rows in slices(len(work.student.hidden), chunk):
            for projection in projections:
                projection.project(rows)
            work.pointwise(work, rows, projections, values)
            for projection in projections:
                projection.add_gradients(rows)
    return values, [gradient for p in (projections[0], *projections[2:]) for gradient in p.gradients]
