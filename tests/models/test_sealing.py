"""Files that are whole or not there."""

from pathlib import Path

import pytest

from tutelage.sealing import Seal, write_whole


def test_a_kill_while_a_file_is_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    seal = write_whole(path, lambda aside: aside.write_text("old"))

    def killed(aside: Path) -> None:
        aside.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, killed)
    assert path.read_text() == "old"
    assert seal.fault(path) is None
    assert write_whole(path, lambda aside: aside.write_text("new")) == Seal.of(path)
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["note.txt"]


def test_a_seal_survives_a_manifest_and_tells_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    seal = Seal.read(write_whole(path, lambda aside: aside.write_text("abc")).as_dict())
    path.write_text("abd")
    assert seal.fault(path) == "does not match its checksum"
    path.write_text("ab")
    assert seal.fault(path) == "has 2 bytes, the manifest says 3"
    path.unlink()
    assert seal.fault(path) == "is missing"
