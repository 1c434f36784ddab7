"""Valid files, damaged: what a disk, an editor or a stranger might leave."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st

from tutelage.errors import TutelageError

LENGTHS = pytest.mark.parametrize("cases", [200, pytest.param(10_000, marks=pytest.mark.slow)])
"""How many cases a fuzz test tries: few in every run, many in `make test-slow`."""


@dataclass(frozen=True)
class Edit:
    """One change to a file, at a place given as a share of its length."""

    kind: str
    place: float
    length: int
    piece: bytes

    def apply(self, content: bytes) -> bytes:
        start = int(self.place * len(content))
        end = min(len(content), start + self.length)
        match self.kind:
            case "cut":
                return content[:start]
            case "delete":
                return content[:start] + content[end:]
            case "insert":
                return content[:start] + self.piece + content[start:]
            case "replace":
                return content[:start] + self.piece + content[end:]
            case "repeat":
                return content[:end] + content[start:end] * 3 + content[end:]
            case _:
                flipped = bytes(byte ^ (1 << self.length % 8) for byte in content[start:end][:1])
                return content[:start] + flipped + content[start + len(flipped) :]


def mutated(seeds: Sequence[bytes], pieces: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Some of the seeds, changed in up to six places; now and then any bytes at all.

    Args:
        seeds: valid files.
        pieces: what is likely to break a reader of them.
    """
    piece = st.one_of(st.sampled_from(pieces), st.binary(max_size=6), st.text(max_size=4).map(_bytes))
    kinds = st.sampled_from(("cut", "delete", "insert", "replace", "replace", "insert", "repeat", "flip"))
    edit = st.builds(Edit, kinds, st.floats(0, 1), st.integers(0, 24), piece)
    edits = st.lists(edit, min_size=1, max_size=6)
    return st.one_of(st.builds(_edited, st.sampled_from(seeds), edits), st.binary(max_size=40))


def refusal_of(step: Callable[[], object]) -> str | None:
    """What a step says where it refuses its input with an error of ours, `None` where it takes it.

    Every other error is a failure of the test.
    """
    try:
        step()
    except TutelageError as error:
        return str(error)
    return None


def _edited(content: bytes, edits: Sequence[Edit]) -> bytes:
    for edit in edits:
        content = edit.apply(content)
    return content


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
