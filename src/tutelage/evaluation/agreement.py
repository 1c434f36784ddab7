"""How close the student is to the teacher, and to the references, token by token on given text."""

import torch
from torch import Tensor

from tutelage import divergences
from tutelage.evaluation.intervals import Measurement, bootstrap_mean
from tutelage.losses import linear_divergence, map_vocabulary
from tutelage.models.language_model import LanguageModel
from tutelage.models.teachers import Teacher
from tutelage.rollouts.rollout import Rollout

AGREEMENT = ("forward_kl", "reverse_kl", "jsd", "total_variation", "same_top_token")


@torch.no_grad()
def loss_on(student: LanguageModel, rollout: Rollout, micro_batch_tokens: int) -> Measurement:
    """Return the mean −log q(y) over the masked tokens, nats a token; intervals resample sequences."""
    sums, counts = [], []
    for part in rollout.micro_batches(micro_batch_tokens):
        targets = student.targets(part)
        scores = linear_divergence(
            student.hidden(part),
            student.head,
            targets=targets,
            cross_entropy=torch.ones_like(targets).float(),
        )
        assert scores.student_logp is not None
        sums += [-value for value in _per_sequence(scores.student_logp, part)]
        counts += part.positions_of
    return _token_mean(sums, counts)


@torch.no_grad()
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
    sums: dict[str, list[float]] = {name: [] for name in AGREEMENT}
    counts: list[int] = []
    for part in rollout.micro_batches(micro_batch_tokens):
        values = map_vocabulary(
            _compare,
            student.hidden(part),
            student.head,
            teacher.hidden(part),
            teacher.head,
            vocabulary=vocabulary,
        )
        for column, name in enumerate(AGREEMENT):
            sums[name] += _per_sequence(values[:, column], part)
        counts += part.positions_of
    return {name: _token_mean(values, counts) for name, values in sums.items()}


def _compare(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
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


def _per_sequence(values: Tensor, rollout: Rollout) -> list[float]:
    """Sum values per position into one a sequence."""
    return [part.double().sum().item() for part in values.split(list(rollout.positions_of))]


def _token_mean(sums: list[float], counts: list[int]) -> Measurement:
    """Mean over all tokens; a sequence weighs as much as it has tokens in the loss."""
    kept = [(total / count, count) for total, count in zip(sums, counts, strict=True) if count]
    return bootstrap_mean([mean for mean, _ in kept], [count for _, count in kept])
