"""The pointwise work of a chunk in one kernel, for CUDA devices: values, and the slope over the student's product.

One program works on one position and goes over its vocabulary three times: for the two normalisers, for the
divergence and the sum of its slope, and for the slope of every logit. Nothing but the products is read, nothing
but the slope and three numbers a position is written.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false
# (inside a kernel, Python's types are not what they seem)

from collections.abc import Sequence
from dataclasses import dataclass
from typing import no_type_check

import triton
import triton.language as tl
from torch import Tensor

from tutelage.losses.projection import Projection
from tutelage.losses.work import Values, Work

BLOCK = 4096
"""Logits of either model that a program holds at a time."""


@dataclass(frozen=True)
class InOneKernel:
    """Pointwise work by a named divergence."""

    family: str
    parameters: Tensor | None
    """The divergence's parameter at each position; `None` for one without."""

    def __call__(self, work: Work, rows: slice, projections: Sequence[Projection], values: Values) -> None:
        """Work on a chunk."""
        student, teacher = projections

        def part(column: Tensor | None) -> Tensor | None:
            return None if column is None else column[rows].contiguous()

        _pointwise[(rows.stop - rows.start,)](
            student.product,
            teacher.product,
            work.vocabulary,
            student.head.bias,
            teacher.head.bias,
            student.head.scale,
            teacher.head.scale,
            student.head.softcap,
            teacher.head.softcap,
            work.temperature,
            part(work.coefficients),
            part(self.parameters),
            part(work.targets),
            part(work.cross_entropy),
            *(None if v is None else v[rows] for v in values.tensors()),
            FORM=self.family,
            WRITE_SLOPE=student.needed,
            BLOCK=min(BLOCK, triton.next_power_of_2(work.vocabulary)),
        )


@triton.jit
@no_type_check
def _pointwise(
    student_products,
    teacher_products,
    vocabulary,
    student_bias,
    teacher_bias,
    student_scale,
    teacher_scale,
    student_softcap,
    teacher_softcap,
    temperature,
    coefficients,
    parameters,
    targets,
    cross_entropy,
    divergences,
    student_logps,
    teacher_logps,
    FORM: tl.constexpr,
    WRITE_SLOPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Work on one position; whatever is `None` is not asked for."""
    position = tl.program_id(0).to(tl.int64)
    student_row, teacher_row = student_products + position * vocabulary, teacher_products + position * vocabulary
    student_top, student_log_total, student_plain = _normaliser(
        student_row, vocabulary, student_bias, student_scale, student_softcap, temperature, BLOCK
    )
    teacher_top, teacher_log_total, teacher_plain = _normaliser(
        teacher_row, vocabulary, teacher_bias, teacher_scale, teacher_softcap, temperature, BLOCK
    )
    parameter = 0.0
    if parameters is not None:
        parameter = tl.load(parameters + position).to(tl.float32)
    target, weight = -1, 0.0
    if targets is not None:
        target = tl.load(targets + position)
        student_target = _logits(student_row, target, True, student_bias, student_scale, student_softcap)
        tl.store(student_logps + position, student_target - student_top - student_plain)
        teacher_target = _logits(teacher_row, target, True, teacher_bias, teacher_scale, teacher_softcap)
        tl.store(teacher_logps + position, teacher_target - teacher_top - teacher_plain)
    if cross_entropy is not None:
        weight = tl.load(cross_entropy + position).to(tl.float32)
    factor = 1.0 / temperature
    if coefficients is not None:
        factor = tl.load(coefficients + position).to(tl.float32) / temperature

    value, slope_total = 0.0, 0.0
    for start in range(0, vocabulary, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        mask = ids < vocabulary
        student_logits = _logits(student_row, ids, mask, student_bias, student_scale, student_softcap)
        teacher_logits = _logits(teacher_row, ids, mask, teacher_bias, teacher_scale, teacher_softcap)
        term, slope = _term_and_slope(
            (student_logits - student_top) / temperature - student_log_total,
            (teacher_logits - teacher_top) / temperature - teacher_log_total,
            parameter,
            FORM,
        )
        value += tl.sum(tl.where(mask, term, 0.0))
        slope_total += tl.sum(tl.where(mask, slope, 0.0))
    tl.store(divergences + position, value)

    if WRITE_SLOPE:
        for start in range(0, vocabulary, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            mask = ids < vocabulary
            student_logits = _logits(student_row, ids, mask, student_bias, student_scale, student_softcap)
            teacher_logits = _logits(teacher_row, ids, mask, teacher_bias, teacher_scale, teacher_softcap)
            student_logp = (student_logits - student_top) / temperature - student_log_total
            teacher_logp = (teacher_logits - teacher_top) / temperature - teacher_log_total
            _, slope = _term_and_slope(student_logp, teacher_logp, parameter, FORM)
            slope = factor * (slope - tl.exp(student_logp) * slope_total)
            if cross_entropy is not None:
                slope += weight * tl.exp(student_logits - student_top - student_plain)
                slope -= tl.where(ids == target, weight, 0.0)
            if student_softcap is not None:
                capped = student_logits / student_softcap
                slope *= 1.0 - capped * capped
            slope *= student_scale
            tl.store(student_row + ids, slope.to(student_products.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def _logits(row, ids, mask, bias, scale, softcap):
    """Logits of some ids, −∞ beyond the vocabulary."""
    logits = tl.load(row + ids, mask=mask, other=0.0).to(tl.float32)
    if bias is not None:
        logits += tl.load(bias + ids, mask=mask, other=0.0).to(tl.float32)
    logits *= scale
    if softcap is not None:
        logits = softcap * (2.0 * tl.sigmoid(2.0 * logits / softcap) - 1.0)
    return tl.where(mask, logits, -float("inf"))


@triton.jit
@no_type_check
def _normaliser(row, vocabulary, bias, scale, softcap, temperature, BLOCK: tl.constexpr):
    """The largest logit, and log Σ exp of what the logits lie below it: over the temperature, and as they are."""
    top, total, plain = -float("inf"), 0.0, 0.0
    for start in range(0, vocabulary, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        logits = _logits(row, ids, ids < vocabulary, bias, scale, softcap)
        higher = tl.maximum(top, tl.max(logits))
        level = tl.where(higher == -float("inf"), 0.0, higher)  # so far, every token is impossible
        total = total * tl.exp((top - level) / temperature) + tl.sum(tl.exp((logits - level) / temperature))
        plain = plain * tl.exp(top - level) + tl.sum(tl.exp(logits - level))
        top = higher
    return top, tl.log(total), tl.log(plain)


@triton.jit
@no_type_check
def _term_and_slope(student_logp, teacher_logp, parameter, FORM: tl.constexpr):
    """Those of `tutelage.divergences`."""
    student, teacher = tl.exp(student_logp), tl.exp(teacher_logp)
    if FORM == "forward_kl":
        term, slope = _weighted(teacher, teacher_logp - student_logp), -teacher
    elif FORM == "reverse_kl":
        term = _weighted(student, student_logp - teacher_logp)
        slope = term + student
    elif FORM == "jsd":
        mixture_logp = _mixture(teacher_logp, student_logp, parameter)
        slope = (1.0 - parameter) * _weighted(student, student_logp - mixture_logp)
        term = parameter * _weighted(teacher, teacher_logp - mixture_logp) + slope
    elif FORM == "total_variation":
        difference = student - teacher
        term = 0.5 * tl.abs(difference)
        slope = 0.5 * student * tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
    elif FORM == "skew_forward_kl":
        gap = teacher_logp - _mixture(teacher_logp, student_logp, parameter)
        term = _weighted(teacher, gap)
        slope = _weighted(student, (parameter - 1.0) * tl.exp(gap))
    else:
        tl.static_assert(FORM == "skew_reverse_kl")
        gap = student_logp - _mixture(student_logp, teacher_logp, parameter)
        term = _weighted(student, gap)
        slope = term + _weighted(student, 1.0 - parameter * tl.exp(gap))
    return term, slope


@triton.jit
@no_type_check
def _weighted(weight, value):
    """weight · value, where an impossible token contributes nothing."""
    return tl.where(weight == 0, 0.0, weight * value)


@triton.jit
@no_type_check
def _mixture(first_logp, second_logp, weight):
    """log(weight · first + (1 − weight) · second)."""
    first, second = first_logp + tl.log(weight), second_logp + tl.log(1.0 - weight)
    top = tl.maximum(first, second)
    level = tl.where(top == -float("inf"), 0.0, top)
    return level + tl.log(tl.exp(first - level) + tl.exp(second - level))
