"""How many positions are worked on at a time.

A *chunk* is what one matrix product is made for: large, so that the product is efficient, and bounded by a
memory budget. A *block* is a part of a chunk that the pointwise work is done on: on a CPU so few rows that they
stay in the cache from the first operation on them to the last.
"""

from collections.abc import Iterator

import torch

DEFAULT_MEMORY = 128 * 2**20
_CACHED_NUMBERS = 2**19  # per array of a block, of which about six are in use together
_TEMPORARIES = 6  # float32 arrays of a block's size alive at the same time


def chunk_size(vocabulary: int, memory: int, bytes_per_logit: int = 4 * _TEMPORARIES) -> int:
    """Return the positions whose arrays fit into so many bytes, at least one."""
    return max(1, memory // (bytes_per_logit * vocabulary))


def block_size(vocabulary: int, memory: int, device: torch.device) -> int:
    """Return the positions whose pointwise work is done together, at least one."""
    if device.type == "cpu":
        return max(1, _CACHED_NUMBERS // vocabulary)
    return chunk_size(vocabulary, memory)


def evened(positions: int, chunk: int) -> int:
    """Return the smallest chunk that cuts the positions into as few parts as `chunk` does.

    >>> evened(1024, 682)
    512
    """
    parts = max(1, -(-positions // chunk))
    return max(1, -(-positions // parts))


def slices(positions: int, chunk: int) -> Iterator[slice]:
    """Cut positions into chunks.

    >>> list(slices(5, 3))
    [slice(0, 3, None), slice(3, 5, None)]
    """
    for start in range(0, positions, chunk):
        yield slice(start, min(start + chunk, positions))
