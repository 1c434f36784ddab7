"""Disks that are full, too small or closed."""

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.faults.runs import assert_same_results, leftovers, run, start, write_recipe

from tutelage.models import gathering
from tutelage.training import disk, export, tracking
from tutelage.training.checkpoint import steps_kept


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 400 KB, where this process may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def big_enough() -> None:
    """Switch the look before the run off, so that the disk fills up in it."""
    disk.require_room = lambda recipe, student: None


def test_a_disk_that_fills_up_keeps_the_checkpoints_before_and_the_run_goes_on_later(tmp_path, small_disk, whole):
    words = [*write_recipe(tmp_path, "gkd"), "--output", str(small_disk / "run")]
    filler = small_disk / "filler"
    filler.write_bytes(bytes(200_000))
    child = start(words, tmp_path / "log", big_enough)
    assert child.wait() == 75, child.said
    assert "No space left on" in child.said
    assert "need " in child.said
    assert "free some space, and the same command goes on" in child.said
    assert "Traceback" not in child.said
    assert leftovers(small_disk / "run") == []
    assert steps_kept(small_disk / "run" / "checkpoints")
    filler.unlink()
    run([*words, "--train.keep-checkpoints", "1"], tmp_path / "log", big_enough)
    assert_same_results(small_disk / "run", whole("gkd"))


def full_at(owner: Any, name: str, calls: set[int], error: Callable[[], Exception]) -> Callable[[], None]:
    """Have a function fail in some of its calls, as on a full disk, after it has written a part."""

    def plant() -> None:
        original, made = getattr(owner, name), 0

        def failing(*arguments: Any, **options: Any) -> Any:
            nonlocal made
            made += 1
            if made in calls:
                for path in arguments:
                    if isinstance(path, Path):
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.with_name("half").write_bytes(b"half")
                raise error()
            return original(*arguments, **options)

        setattr(owner, name, failing)

    return plant


def by_the_system() -> Exception:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def by_a_library() -> Exception:
    from safetensors import SafetensorError

    return SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("error", [by_the_system, by_a_library])
def test_a_save_that_finds_room_at_the_second_try_is_no_matter(tmp_path, error, whole):
    run(write_recipe(tmp_path, "gkd"), tmp_path / "log", full_at(gathering, "save_file", {5}, error))
    assert_same_results(tmp_path / "run", whole("gkd"))
    assert leftovers(tmp_path / "run") == []


@pytest.mark.parametrize("error", [by_the_system, by_a_library])
def test_a_save_that_finds_no_room_leaves_with_75(tmp_path, error, whole):
    words = write_recipe(tmp_path, "gkd")
    child = start(words, tmp_path / "log", full_at(gathering, "save_file", {5, 6}, error))
    assert child.wait() == 75
    assert "the checkpoint of step 2 is kept" in child.said
    assert leftovers(tmp_path / "run") == []
    run(words, tmp_path / "log")
    assert_same_results(tmp_path / "run", whole("gkd"))


def test_a_full_disk_at_the_export_leaves_with_75_and_the_same_command_writes_the_model(tmp_path, whole):
    words = write_recipe(tmp_path, "gkd")
    child = start(words, tmp_path / "log", full_at(export, "seal", {1}, by_the_system))
    assert child.wait() == 75
    assert "all 6 steps are done and saved" in child.said
    run(words, tmp_path / "log")
    assert_same_results(tmp_path / "run", whole("gkd"))


@pytest.mark.parametrize("call", [9, 10, 11, 20])  # a step, an evaluation, its samples, a later step
@pytest.mark.parametrize("save_every", [1, None])
def test_a_log_that_cannot_be_written_leaves_with_75(tmp_path, call, save_every, whole):
    sections = {"train": {"save_every": save_every}}
    words = write_recipe(tmp_path, "gkd", **sections)
    child = start(words, tmp_path / "log", full_at(tracking.JsonLines, "log", {call}, by_the_system))
    assert child.wait() == 75
    assert "No space left on device" in child.said
    run(words, tmp_path / "log")
    assert_same_results(tmp_path / "run", whole("gkd"))


def test_a_line_of_the_log_is_written_whole_or_not_at_all(small_disk):
    log = tracking.JsonLines(small_disk / "metrics.jsonl", 0)
    log.log(1, {"loss": 1.0})
    (small_disk / "filler").write_bytes(bytes(370_000))
    with pytest.raises(OSError, match="No space left"):
        log.log(2, {"text": "x" * 100_000})
    log.log(3, {"loss": 2.0})
    log.close()
    assert [json.loads(line)["step"] for line in (small_disk / "metrics.jsonl").read_text().splitlines()] == [1, 3]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_loaded(tmp_path, small_disk):
    words = [*write_recipe(tmp_path, "gkd"), "--output", str(small_disk / "run"), "--train.keep-checkpoints", "9"]
    child = start(words, tmp_path / "log", no_loading)
    assert child.wait() == 2
    assert "the run needs 10 x " in child.said
    assert "for keep=9 (+1 staging)" in child.said


def no_loading() -> None:
    """Fail where a model is loaded."""
    from tutelage.training import setup

    def load_model(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    setup.load_model = load_model


def test_a_folder_that_cannot_be_written_into_is_refused_before_anything_is_loaded(tmp_path, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for output in (small_disk, small_disk / "deep" / "run"):
        child = start([*write_recipe(tmp_path, "gkd"), "--output", str(output)], tmp_path / "log", no_loading)
        assert child.wait() == 2
        assert f"cannot write into {output}" in child.said


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_folder_without_permission_is_refused_before_anything_is_loaded(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    child = start([*write_recipe(tmp_path, "gkd"), "--output", str(closed / "run")], tmp_path / "log", no_loading)
    assert child.wait() == 2
    assert "cannot write into" in child.said


def test_an_output_that_is_or_passes_through_a_file_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        child = start([*write_recipe(tmp_path, "gkd"), "--output", str(output)], tmp_path / "log", no_loading)
        assert child.wait() == 2
        assert f"output: {tmp_path / 'file'} is a file; name a folder" in child.said
