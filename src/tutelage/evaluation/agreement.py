"""How close the student is to the teacher, and to the references, token by token on given text."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage import divergences
from tutelage.evaluation.intervals import Measurement, bootstrap_mean
from tutelage.evaluation.sequences import comparison, per_sequence, token_logps
from tutelage.models.language_model import LanguageModel
from tutelage.models.teachers import Teacher
from tutelage.rollouts.rollout import Rollout

AGREEMENT = ("forward_kl", "reverse_kl", "jsd", "total_variation", "same_top_token")


def loss_on(student: LanguageModel, rollout: Rollout, micro_batch_tokens: int) -> Measurement:
    """Return the mean −log q(y) over the masked tokens, nats a token; intervals resample sequences."""
    logps = token_logps(student, rollout, micro_batch_tokens)
    return _token_mean([-values.sum().item() for values in logps], rollout.positions_of)


def agreement(
    student: LanguageModel,
    teacher: Teacher,
    rollout: Rollout,
    micro_batch_tokens: int,
    vocabulary: int | None = None,
) -> dict[str, Measurement]:
    """Compare student and teacher at each masked token of given text.

    Args:
        student: the student.
        teacher: the teacher.
        rollout: the text, whoever wrote it.
        micro_batch_tokens: tokens in one forward pass.
        vocabulary: number of leading ids that both vocabularies share.

    Returns:
        Means over tokens: `forward_kl`, `reverse_kl`, `jsd` (β = ½), all in nats, `total_variation` in [0, 1],
        and `same_top_token`, the share of tokens where both models' most probable tokens are the same.
    """
    compare = comparison(agreement_at, student, teacher, vocabulary)
    sums = [values.sum(0).tolist() for values in per_sequence(compare, rollout, micro_batch_tokens)]
    return {
        name: _token_mean([row[column] for row in sums], rollout.positions_of) for column, name in enumerate(AGREEMENT)
    }


def agreement_at(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """Return the five numbers of `AGREEMENT` for each position, `[positions, 5]`."""
    return torch.stack(
        [
            divergences.forward_kl(student_logp, teacher_logp),
            divergences.reverse_kl(student_logp, teacher_logp),
            divergences.jsd(student_logp, teacher_logp, beta=0.5),
            divergences.total_variation(student_logp, teacher_logp),
            (student_logp.argmax(-1) == teacher_logp.argmax(-1)).to(student_logp.dtype),
        ],
        dim=-1,
    )


def _token_mean(sums: Sequence[float], counts: Sequence[int]) -> Measurement:
    """Mean over all tokens; a sequence weighs as much as it has tokens in the loss."""
    kept = [(total / count, count) for total, count in zip(sums, counts, strict=True) if count]
    return bootstrap_mean([mean for mean, _ in kept], [count for _, count in kept])
