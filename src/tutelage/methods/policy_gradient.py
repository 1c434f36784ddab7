"""What policy-gradient methods share: log-probabilities of whole collections, and ragged lists of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tutelage.rollouts.shares import for_each_row

if TYPE_CHECKING:
    from torch import Tensor

    from tutelage.estimators import ClipRule
    from tutelage.losses import Head
    from tutelage.methods.objective import Context
    from tutelage.rollouts.rollout import Rollout, Values

Ragged = list[list[float]]


def sequence_logps(rollout: Rollout, context: Context) -> tuple[Ragged, Ragged]:
    """Return the log-probabilities of the masked tokens under the student and the teacher, as they are now.

    Run with the same forward passes as the update, and without dropout; each process of the run does its share.

    Args:
        rollout: any number of sequences; they are cut into micro-batches here.
        context: the models.

    Returns:
        One list a sequence, one number a masked token, nats: the student's and the teacher's.
    """
    import torch

    assert context.teacher is not None
    student, teacher = context.student, context.teacher

    def both(rows: Sequence[int]) -> list[tuple[list[float], list[float]]]:
        part = rollout.select(rows)
        with torch.no_grad():
            models = [(student.hidden(part), student.head), (teacher.hidden(part), teacher.head)]
        of_student, of_teacher = target_logps(models, student.targets(part, context.vocabulary), context.vocabulary)
        return list(zip(ragged(of_student, part), ragged(of_teacher, part), strict=True))

    was_training = student.network.training
    student.network.eval()
    found = for_each_row(both, rollout, context.micro_batch_tokens)
    student.network.train(was_training)
    return [own for own, _ in found], [other for _, other in found]


def target_logps(models: Sequence[tuple[Tensor, Head]], targets: Tensor, vocabulary: int | None) -> list[Tensor]:
    """Return the log-probability of each target under each model, given hidden states and heads; no gradient."""
    import torch

    from tutelage.losses import linear_divergence

    vocabulary = vocabulary or min(head.vocabulary for _, head in models)
    nothing = torch.zeros(len(targets), device=targets.device, dtype=torch.float64)
    found = []
    for hidden, head in models:
        scores = linear_divergence(
            hidden.detach(), head.detached(), targets=targets, cross_entropy=nothing, vocabulary=vocabulary
        )
        assert scores.student_logp is not None
        found.append(scores.student_logp)
    return found


def surrogate_slope(
    student_logp: Tensor, estimates: Mapping[str, Tensor], *, clip: float | None, rule: ClipRule
) -> tuple[Tensor, Tensor]:
    """Return the clipped surrogate at each position, and its slope with respect to the student's log-probability.

    Args:
        student_logp: log q of the tokens at the current weights.
        estimates: `old_logp`, `advantage` and `weight`, one number a position; no gradient goes into them.
        clip: ε; `None` clips nothing.
        rule: as `estimators.clipped_surrogate` takes it.
    """
    import torch

    from tutelage.estimators import clipped_surrogate

    with torch.enable_grad():
        variable = student_logp.detach().double().requires_grad_()
        log_ratio = variable - estimates["old_logp"]
        value = clipped_surrogate(log_ratio, estimates["advantage"], estimates["weight"], clip=clip, rule=rule)
        (slope,) = torch.autograd.grad(value.sum(), variable)
    return value.detach(), slope


def ragged(flat: Tensor, rollout: Rollout) -> Ragged:
    """Cut numbers at the masked positions into one list a sequence."""
    numbers, start, rows = flat.tolist(), 0, []
    for positions in rollout.positions_of:
        rows.append(numbers[start : start + positions])
        start += positions
    return rows


def at_masked(column: Values, rollout: Rollout) -> Ragged:
    """Leave out the numbers at tokens that are not in the mask."""
    return [
        [value for value, seen in zip(row, mask, strict=True) if seen]
        for row, mask in zip(column, rollout.masks, strict=True)
    ]


def at_all_tokens(rows: Sequence[Sequence[float]], rollout: Rollout) -> Ragged:
    """The inverse of `at_masked`: put 0 at tokens that are not in the mask."""
    found = []
    for row, mask in zip(rows, rollout.masks, strict=True):
        numbers = iter(row)
        found.append([next(numbers) if seen else 0.0 for seen in mask])
    return found
