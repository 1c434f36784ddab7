"""What is measured of written text to see that it goes wrong: pure functions of ids."""

import math
from collections.abc import Collection, Mapping, Sequence

import torch

from tutelage.losses.chunks import DEFAULT_MEMORY, chunk_size, slices
from tutelage.models.teachers import Teacher
from tutelage.rollouts.rollout import Ids, Rollout

PIECE = 4
"""Tokens of a piece whose return is counted: shorter ones come back in good text too."""


def text_measures(rollout: Rollout, stop_ids: Collection[int]) -> dict[str, float]:
    """Measure what the student wrote, alone or together with the teacher; nothing where it wrote nothing.

    Args:
        rollout: the batch.
        stop_ids: ids that end a response.

    Returns:
        `length` in tokens, and as shares from 0 to 1: `ended` and `empty` of the responses, `repetition` and
        `prompt_overlap` of their pieces.

    >>> text_measures(Rollout.of([[5], [6]], [[7, 1], [1]], writer="student"), [1])
    {'length': 1.5, 'ended': 1.0, 'empty': 0.5, 'repetition': 0.0, 'prompt_overlap': 0.0}
    """
    rows = [row for row, writer in enumerate(rollout.writers) if writer in ("student", "mixed")]
    if not rows:
        return {}
    written = rollout.select(rows)
    responses = written.responses
    return {
        "length": sum(map(len, responses)) / len(responses),
        "ended": sum(r[-1] in stop_ids for r in responses if r) / len(responses),
        "empty": sum(all(token in stop_ids for token in r) for r in responses) / len(responses),
        "repetition": repetition(responses),
        "prompt_overlap": prompt_overlap(written.prompts, responses),
    }


def repetition(responses: Sequence[Ids]) -> float:
    """Return the share of pieces of four tokens that stood in the same response before.

    >>> repetition([(1, 2, 1, 2, 1, 2, 1)]), repetition([(1, 2, 3, 4, 5)])
    (0.5, 0.0)
    """
    pieces = [_pieces(response) for response in responses]
    count = sum(map(len, pieces))
    return 1 - sum(len(set(row)) for row in pieces) / count if count else 0.0


def prompt_overlap(prompts: Sequence[Ids], responses: Sequence[Ids]) -> float:
    """Return the share of the responses' pieces of four tokens that stand in their own prompt.

    >>> prompt_overlap([(1, 2, 3, 4, 5)], [(1, 2, 3, 4, 9)])
    0.5
    """
    copied = count = 0
    for prompt, response in zip(prompts, responses, strict=True):
        known, pieces = set(_pieces(prompt)), _pieces(response)
        copied += sum(piece in known for piece in pieces)
        count += len(pieces)
    return copied / count if count else 0.0


def all_equal(rewards: Sequence[float]) -> bool:
    """Say whether several rewards are all the same, so that they prefer nothing.

    >>> all_equal([0.0, 0.0]), all_equal([0.0, 1.0]), all_equal([1.0])
    (True, False, False)
    """
    return len(rewards) > 1 and min(rewards) == max(rewards)


def entropy_ratio(metrics: Mapping[str, float]) -> float | None:
    """Return how surprising the student's own text is to the student, relative to the teacher; `None` if not known.

    Formula: Σ −log q(y_t) / Σ −log p(y_t) on y ~ q, which is H / (H + KL(q ‖ p)) with H the student's entropy.
    Near 1 where the two agree; near 0 where the student is sure of what the teacher finds unlikely.

    >>> entropy_ratio({"student_text": 1.0, "cross_entropy": 0.5, "teacher_cross_entropy": 2.0})
    0.25
    """
    if metrics["student_text"] < 1 or "cross_entropy" not in metrics or "teacher_cross_entropy" not in metrics:
        return None
    teacher = metrics["teacher_cross_entropy"]
    return metrics["cross_entropy"] / teacher if math.isfinite(teacher) and teacher > 0 else None


@torch.no_grad()
def mass_outside(teacher: Teacher, rollout: Rollout, vocabulary: int) -> float:
    """Return the mean probability that a teacher gives to the ids which the student does not have.

    Args:
        teacher: with its whole head.
        rollout: text with at least one token in the loss.
        vocabulary: number of leading ids that both share.
    """
    hidden, head = teacher.hidden(rollout), teacher.head.gathered()
    outside = 0.0
    for rows in slices(len(hidden), chunk_size(head.vocabulary, DEFAULT_MEMORY)):
        logits = head.logits(hidden[rows])
        inside = logits[:, :vocabulary].logsumexp(-1) - logits.logsumexp(-1)
        outside -= torch.expm1(inside).sum().item()
    return outside / len(hidden)


def _pieces(ids: Ids) -> list[Ids]:
    return list(zip(*(ids[start:] for start in range(PIECE)), strict=False))
