"""What a model says of each token of given text, sequence by sequence, in the order in which the text was given."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tutelage.losses import Head, linear_divergence, map_vocabulary
from tutelage.models.language_model import LanguageModel
from tutelage.models.teachers import Teacher
from tutelage.rollouts.rollout import Rollout
from tutelage.rollouts.shares import for_each_row

Done = Callable[[int], None]


@torch.no_grad()
def per_sequence(
    measure: Callable[[Rollout], Tensor], rollout: Rollout, micro_batch_tokens: int, done: Done = lambda more: None
) -> list[Tensor]:
    """Measure something at every masked token of some text; each process of a run does its share of it.

    Args:
        measure: takes a part of the text, returns `[positions, …]`.
        rollout: the text.
        micro_batch_tokens: tokens in one forward pass.
        done: told how many more sequences are done.

    Returns:
        For each sequence what was found at its tokens, `[positions, …]`, float64 on the CPU.
    """

    def measured(rows: Sequence[int]) -> list[Tensor]:
        part = rollout.select(rows)
        values = measure(part).double().cpu().split(list(part.positions_of))
        done(len(rows))
        return list(values)

    return for_each_row(measured, rollout, micro_batch_tokens)


def token_logps(
    model: LanguageModel | Teacher,
    rollout: Rollout,
    micro_batch_tokens: int,
    *,
    vocabulary: int | None = None,
    done: Done = lambda more: None,
) -> list[Tensor]:
    """Return the log-probability of each masked token of each sequence, nats.

    Args:
        model: whose.
        rollout: the text.
        micro_batch_tokens: tokens in one forward pass.
        vocabulary: ids from this one on have no probability; by default the model has all of its own.
        done: told how many more sequences are done.
    """

    def measure(part: Rollout) -> Tensor:
        return target_logps(model.hidden(part), model.head, part.targets, vocabulary)

    return per_sequence(measure, rollout, micro_batch_tokens, done)


def target_logps(hidden: Tensor, head: Head, targets: Sequence[int], vocabulary: int | None = None) -> Tensor:
    """Return the log-probability of one token a position, `[positions]`, nats.

    Args:
        hidden: final hidden states, one a position.
        head: what reads them.
        targets: the ids.
        vocabulary: ids from this one on have no probability.
    """
    ids = torch.tensor(targets, dtype=torch.long, device=hidden.device)
    ones = torch.ones(len(ids), device=hidden.device)
    scores = linear_divergence(hidden, head, targets=ids, cross_entropy=ones, vocabulary=vocabulary)
    assert scores.student_logp is not None
    return scores.student_logp


def comparison(
    function: Callable[[Tensor, Tensor], Tensor],
    student: LanguageModel,
    teacher: Teacher,
    vocabulary: int | None = None,
) -> Callable[[Rollout], Tensor]:
    """Return what applies a function of both models' log-probabilities to every masked token, for `per_sequence`.

    Args:
        function: takes (student_logp, teacher_logp), `[positions, vocabulary]` both, returns `[positions, …]`.
        student: the student.
        teacher: the teacher.
        vocabulary: number of leading ids that both vocabularies share.
    """

    def measure(part: Rollout) -> Tensor:
        hidden, teacher_hidden = student.hidden(part), teacher.hidden(part)
        return map_vocabulary(function, hidden, student.head, teacher_hidden, teacher.head, vocabulary=vocabulary)

    return measure
