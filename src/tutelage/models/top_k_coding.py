"""The most probable tokens of a distribution and the mass of all others, in a few bytes a token."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

_LOW, _MORE = 0x7F, 0x80  # seven bits a byte, and whether another byte follows


def pick(
    logp: Float[Tensor, "positions vocabulary"], mass: float, max_k: int
) -> tuple[Int[Tensor, " positions"], Int[Tensor, " entries"], Float[Tensor, " entries"], Float[Tensor, " positions"]]:
    """Choose the fewest tokens at each position that hold a mass together, the most probable ones first.

    Args:
        logp: log-probabilities, nats.
        mass: stop when the chosen tokens hold this much; 1 takes `max_k` of them everywhere.
        max_k: take no more than these.

    Returns:
        How many were taken at each position; their ids, rising within a position, and log-probabilities, one
        position after the other; and the mass of the tokens left out at each position.

    >>> counts, ids, kept, tail = pick(torch.tensor([[0.1, 0.6, 0.1, 0.2], [0.96, 0.02, 0.01, 0.01]]).log(), 0.75, 3)
    >>> counts.tolist(), ids.tolist(), [round(value, 3) for value in tail.tolist()]
    ([2, 1], [1, 3, 0], [0.2, 0.04])
    """
    top, ids = logp.topk(min(max_k, logp.shape[-1]))
    before = top.exp().cumsum(-1) - top.exp()
    kept = torch.ones_like(ids, dtype=torch.bool) if mass == 1 else before < mass
    kept[:, 0] = True
    order = ids.argsort(-1)
    ids, top, kept = (column.gather(-1, order) for column in (ids, top, kept))
    rest = logp.exp().scatter(-1, ids, torch.where(kept, 0.0, top.exp())).sum(-1)
    return kept.sum(-1), ids[kept], top[kept], rest


def encode_ids(counts: Int[Tensor, " positions"], ids: Int[Tensor, " entries"]) -> Tensor:
    """Write ids that rise within each position as differences of one, two or three bytes.

    >>> encode_ids(torch.tensor([2, 1]), torch.tensor([5, 300, 7])).tolist()
    [5, 167, 2, 7]
    """
    steps = np.diff(ids.numpy(), prepend=0)
    starts = _starts(counts.numpy())
    steps[starts] = ids.numpy()[starts]
    pieces = [(steps >> (7 * place)) & _LOW for place in range(5)]
    length = 1 + np.sum([steps >> (7 * place) > 0 for place in range(1, 5)], axis=0)
    written = np.stack([piece | np.where(length > place + 1, _MORE, 0) for place, piece in enumerate(pieces)], axis=1)
    return torch.from_numpy(written[np.arange(5) < length[:, None]].astype(np.uint8))


def decode_ids(counts: Int[Tensor, " positions"], stream: Tensor) -> Int[Tensor, " entries"]:
    """Read what `encode_ids` wrote.

    >>> decode_ids(torch.tensor([2, 1]), torch.tensor([5, 167, 2, 7], dtype=torch.uint8)).tolist()
    [5, 300, 7]
    """
    data = stream.numpy()
    last = np.flatnonzero(data < _MORE)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(data)) - np.repeat(first, last - first + 1)
    steps = np.add.reduceat((data & _LOW).astype(np.int64) << (7 * place), first)
    total = steps.cumsum()
    starts = _starts(counts.numpy())
    before = total[starts] - steps[starts]
    return torch.from_numpy(total - np.repeat(before, counts.numpy()))


def padded(
    records: Sequence[Mapping[str, Tensor]],
) -> tuple[Int[Tensor, "positions k"], Float[Tensor, "positions k"], Float[Tensor, " positions"]]:
    """Put rows as they are stored under one another.

    Rounded log-probabilities are shifted, position by position, so that they and the tail hold a mass of 1 again.

    Args:
        records: `counts`, `ids`, `logp` and `tail` of each row, and `target`, the log-probability of its own tokens.

    Returns:
        Ids, padded with −1; their log-probabilities, padded with −inf; log-probabilities of the rows' own tokens.
    """
    counts, stream, logp, tail, target = (
        torch.cat([record[name] for record in records]) for name in ("counts", "ids", "logp", "tail", "target")
    )
    counts = counts.long()
    ids = decode_ids(counts, stream)
    place = torch.arange(len(ids)) - torch.from_numpy(_starts(counts.numpy())).repeat_interleave(counts)
    row = torch.arange(len(counts)).repeat_interleave(counts)
    wide_ids = torch.full((len(counts), int(counts.max())), -1)
    wide_logp = torch.full(wide_ids.shape, -torch.inf)
    wide_ids[row, place], wide_logp[row, place] = ids, logp.float()
    if logp.dtype != torch.float32:
        wide_logp += (torch.log1p(-tail) - wide_logp.logsumexp(-1))[:, None]
    return wide_ids, wide_logp, target


def _starts(counts: NDArray) -> NDArray:
    return counts.cumsum() - counts
