"""The pointwise work of a chunk, a block of positions at a time, for any way of comparing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.losses.chunks import block_size, slices
from tutelage.losses.projection import Projection
from tutelage.losses.scratch import Scratch
from tutelage.losses.softmax import Softmax
from tutelage.losses.work import Values, Work


@dataclass(frozen=True)
class Block:
    """Positions that are worked on together, and what a comparison needs to know of them."""

    rows: slice
    """These positions among all."""
    student: Softmax
    """The student at the work's temperature; not to be overwritten."""
    factor: Tensor
    """Coefficient over temperature, `[positions, 1]`: what slopes with respect to logits are multiplied with."""
    products: tuple[Tensor, ...]
    """Those of the other models, `[positions, vocabulary]`; the slope of a trained one is written over them."""
    differentiate: tuple[bool, ...]
    """Whether gradients of the student are needed, then of each of these models."""
    scratch: Scratch
    """Where to take arrays from."""


Comparison = Callable[[Work, Block, Values], Tensor | None]
"""Fills in the divergence of a block, and returns factor · its slope with respect to the student's logits over
temperature, where the student is differentiated."""


@dataclass(frozen=True)
class InBlocks:
    """Pointwise work by a comparison, or by none where there is only a cross-entropy."""

    comparison: Comparison | None

    def __call__(self, work: Work, rows: slice, projections: Sequence[Projection], values: Values) -> None:
        """Go through a chunk."""
        student, *others = projections
        differentiate = tuple(p.needed for p in projections)
        size = block_size(work.vocabulary, work.memory, student.product.device)
        wide = torch.promote_types(student.product.dtype, torch.float32)
        scratch = Scratch(student.product.new_empty(size, work.vocabulary, dtype=wide))
        for part in slices(rows.stop - rows.start, size):
            place = slice(rows.start + part.start, rows.start + part.stop)
            product = student.product[part]
            scratch.start(len(product))
            logits = student.head.logits_of(product, scratch.array())
            softmax = Softmax.of(logits, work.temperature, scratch)
            slope = None
            if self.comparison is not None:
                products = tuple(p.product[part] for p in others)
                factor = _factor(work, place, softmax)
                block = Block(place, softmax, factor, products, differentiate, scratch)
                slope = self.comparison(work, block, values)
            if work.targets is not None:
                plain = softmax if work.temperature == 1.0 else Softmax.of(logits, 1.0, scratch)
                slope = _with_targets(work, place, plain, slope, values)
            if slope is not None and student.needed:
                product.copy_(student.head.slope_of_product(logits, slope))


def _factor(work: Work, rows: slice, softmax: Softmax) -> Tensor:
    if work.coefficients is None:
        return torch.full_like(softmax.total, 1 / work.temperature)
    return work.coefficients[rows, None].to(softmax.total.dtype) / work.temperature


def _with_targets(work: Work, rows: slice, student: Softmax, slope: Tensor | None, values: Values) -> Tensor | None:
    """Fill in the student's log-probabilities of the targets, and add the slope of the cross-entropy."""
    assert work.targets is not None
    assert values.student_logp is not None
    targets = work.targets[rows]
    values.student_logp[rows] = student.logp_of(targets)
    if work.cross_entropy is None:
        return slope
    weights = work.cross_entropy[rows, None].to(student.exp.dtype)
    scale = weights / student.total
    slope = student.exp * scale if slope is None else slope.addcmul_(student.exp, scale)
    return slope.scatter_add_(-1, targets[:, None], -weights)
