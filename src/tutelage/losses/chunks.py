"""How many positions are worked on at a time."""

from collections.abc import Iterator

DEFAULT_MEMORY = 128 * 2**20
_BUFFERS = 6  # float32 arrays of size chunk × vocabulary alive at the same time


def chunk_size(vocabulary: int, memory: int) -> int:
    """Return the positions whose temporary arrays fit into so many bytes, at least one."""
    return max(1, memory // (4 * _BUFFERS * vocabulary))


def slices(positions: int, chunk: int) -> Iterator[slice]:
    """Cut positions into chunks.

    >>> list(slices(5, 3))
    [slice(0, 3, None), slice(3, 5, None)]
    """
    for start in range(0, positions, chunk):
        yield slice(start, min(start + chunk, positions))
