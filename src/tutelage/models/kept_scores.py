"""What is kept of a teacher's scores, and what it costs: final hidden states, or the most probable tokens."""

from typing import Protocol

import torch
from torch import Tensor

from tutelage.errors import DivergedError
from tutelage.losses.chunks import DEFAULT_MEMORY, chunk_size, slices
from tutelage.models.score_store import Record
from tutelage.models.teachers import LocalTeacher
from tutelage.models.top_k_coding import encode_ids, pick
from tutelage.rollouts.rollout import Rollout


class Kind(Protocol):
    """What is kept of each row."""

    def records(self, teacher: LocalTeacher, rollout: Rollout) -> list[Record]:
        """Score a micro-batch; return the tensors of each row, on the CPU."""
        ...

    def bytes_a_token(self, width: int, itemsize: int) -> float:
        """Return what a token costs on disk, at most, given the width and type of the teacher's states."""
        ...


class HiddenStates:
    """Keep the final hidden states: with the head they give the whole distribution again.

    Args:
        dtype: the type they are kept in; the teacher's own, which loses nothing, by default.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self._dtype = dtype

    def records(self, teacher: LocalTeacher, rollout: Rollout) -> list[Record]:
        """Run the teacher.

        Raises:
            DivergedError: a state is not finite, or not in the type that it is to be kept in.
        """
        states = teacher.hidden(rollout).cpu()
        kept = states if self._dtype is None else states.to(self._dtype)
        if not torch.isfinite(kept).all():
            problem = "beyond the range of teacher_cache.dtype" if torch.isfinite(states).all() else "not finite"
            raise DivergedError(f"some of the teacher's hidden states are {problem}; none of these rows was kept")
        return [{"hidden": part} for part in kept.split(list(rollout.positions_of))]

    def bytes_a_token(self, width: int, itemsize: int) -> float:
        """Return width × bytes of a number."""
        return width * (itemsize if self._dtype is None else self._dtype.itemsize)


class TopK:
    """Keep the most probable tokens with their log-probabilities, and the mass of all others.

    Args:
        mass: keep as many tokens as hold this mass.
        max_k: but no more than these.
        vocabulary: number of leading ids that are compared; the distribution is over them.
        temperature: divides the logits.
        dtype: type of the log-probabilities; float32 by default.
    """

    def __init__(
        self, mass: float, max_k: int, vocabulary: int, temperature: float = 1.0, dtype: torch.dtype | None = None
    ) -> None:
        self._mass, self._max_k, self._vocabulary, self._temperature = mass, max_k, vocabulary, temperature
        self._dtype = dtype or torch.float32

    def records(self, teacher: LocalTeacher, rollout: Rollout) -> list[Record]:
        """Run the teacher and its head.

        Raises:
            DivergedError: a log-probability is not finite.
        """
        states, head = teacher.hidden(rollout), teacher.head.narrow(self._vocabulary)
        targets = torch.tensor(rollout.targets, device=states.device)
        chunks = [
            self._chunk(head.logits(states[rows]), targets[rows])
            for rows in slices(len(states), chunk_size(self._vocabulary, DEFAULT_MEMORY))
        ]
        counts, ids, logp, tail, target = (torch.cat(column).cpu() for column in zip(*chunks, strict=True))
        if not torch.isfinite(logp).all():
            raise DivergedError("some of the teacher's log-probabilities are not finite; none of these rows was kept")
        records, first = [], 0
        positions = list(rollout.positions_of)
        by_row = [column.split(positions) for column in (counts, tail, target)]
        for row_counts, row_tail, row_target in zip(*by_row, strict=True):
            entries = slice(first, first + int(row_counts.sum()))
            first = entries.stop
            records.append(
                {
                    "counts": row_counts.to(torch.int32),
                    "ids": encode_ids(row_counts, ids[entries]),
                    "logp": logp[entries].to(self._dtype),
                    "tail": row_tail,
                    "target": row_target,
                }
            )
        return records

    def bytes_a_token(self, width: int, itemsize: int) -> float:
        """Return what `max_k` tokens cost at every position."""
        an_id = 1 if self._vocabulary <= 2**7 else 2 if self._vocabulary <= 2**14 else 3
        return min(self._max_k, self._vocabulary) * (an_id + self._dtype.itemsize) + 12

    def _chunk(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        counts, ids, kept, tail = pick((logits / self._temperature).log_softmax(-1), self._mass, self._max_k)
        own = logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)
        return counts, ids, kept.float(), tail.float(), own.float()
