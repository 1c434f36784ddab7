"""Work on the rows of a text, micro-batch by micro-batch, shared among the processes of a run."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TypeVar

from tutelage.rollouts.rollout import Rollout
from tutelage.world import world

Value = TypeVar("Value")


def for_each_row(
    work: Callable[[Sequence[int]], Sequence[Value]], rollout: Rollout, micro_batch_tokens: int
) -> list[Value]:
    """Do some work on a text, each process on its share of the micro-batches; all get what was found for every row.

    Args:
        work: takes the rows of a micro-batch, returns one thing for each of them.
        rollout: the text.
        micro_batch_tokens: tokens (padding included) in one micro-batch.

    >>> text = Rollout.of([[3]] * 3, [[4, 5, 1], [1], [4, 1]])
    >>> for_each_row(lambda rows: [len(text.responses[row]) for row in rows], text, 6)
    [3, 1, 2]
    """
    parts = rollout.micro_batch_rows(micro_batch_tokens)
    found = dict(zip(chain(*parts), chain(*world().shared(work, parts)), strict=True))
    return [found[row] for row in range(len(rollout))]
