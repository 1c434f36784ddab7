"""Files that are whole or not there: written aside, synced, then named; known by size and checksum."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Seal:
    """What a manifest says of a file."""

    size: int
    """Bytes."""
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Seal":
        """Take the seal of a file as it is now."""
        with path.open("rb") as file:
            return cls(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> "Seal":
        """Take a seal out of a manifest."""
        return cls(int(stored["size"]), str(stored["sha256"]))

    def as_dict(self) -> dict[str, Any]:
        """The seal for a manifest."""
        return asdict(self)

    def fault(self, path: Path, contents: bool = True) -> str | None:
        """Say what is wrong with a file in a few words, `None` if it is what was sealed.

        Args:
            path: the file.
            contents: compare the checksum too, not the size alone.
        """
        if not path.is_file():
            return "is missing"
        if path.stat().st_size != self.size:
            return f"has {path.stat().st_size} bytes, the manifest says {self.size}"
        if contents and Seal.of(path) != self:
            return "does not match its checksum"
        return None


def write_whole(path: Path, write: Callable[[Path], object]) -> Seal:
    """Have a file written so that a kill at any moment leaves the old one, or the new one, and never a part.

    Args:
        path: the file; its folder is there.
        write: writes the content to the path that it is given.

    Returns:
        The seal of the new file.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> seal = write_whole(path, lambda aside: aside.write_text("done"))
    >>> seal.size, seal.fault(path), seal.fault(path.with_name("other.txt"))
    (4, None, 'is missing')
    """
    aside = path.with_name(f".writing-{path.name}")
    write(aside)
    sync(aside)
    seal = Seal.of(aside)
    aside.replace(path)
    sync(path.parent)
    return seal


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
