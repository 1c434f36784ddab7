"""Files that were cut, emptied, lost or changed are found by their names, and the run goes on from what is whole."""

import ast
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults.runs import assert_same_results, leftovers, run, start, write_recipe
from tests.faults.test_signals import told_to_stop

from tutelage.errors import CheckpointError
from tutelage.models.gathering import Written
from tutelage.training import update
from tutelage.training.checkpoint import newest_checkpoint, save_checkpoint, steps_kept
from tutelage.training.manifest import MANIFEST


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def missing(path: Path) -> None:
    path.unlink()


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: list[Callable[[Path], None]] = [half, empty, missing, flipped]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run that was stopped in its fifth step, with the checkpoints of steps 3 and 4, beside a whole one."""
    folder = tmp_path_factory.mktemp("stopped")
    run(write_recipe(folder, "moment-matching", "whole"), folder / "log")
    words = write_recipe(folder, "moment-matching")
    child = start(words, folder / "log", told_to_stop(update.Updater, "_check_and_clip", 13))
    assert child.wait() == 75
    assert steps_kept(folder / "run" / "checkpoints") == [3, 4]
    return folder


def files_of(stopped: Path) -> list[str]:
    newest = stopped / "run" / "checkpoints" / "step-00000004"
    return sorted(str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damaged_file_is_named_and_the_checkpoint_before_is_used(tmp_path, stopped, damage):
    names = files_of(stopped)
    assert {"model.safetensors", "optimizer.safetensors", "modules.safetensors", "state.json", MANIFEST} <= set(names)
    for name in names:
        folder = tmp_path / name.replace("/", "-")
        shutil.copytree(stopped / "run" / "checkpoints", folder)
        damage(folder / "step-00000004" / name)
        said: list[str] = []
        found = newest_checkpoint(folder, said.append)
        assert found is not None
        assert found.step == 3, name
        assert said[0].startswith("skipped step-00000004: ")
        assert name in said[0] or (name == MANIFEST and damage is flipped), said


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "modules.safetensors", "state.json"])
def test_a_run_with_a_damaged_checkpoint_ends_as_the_whole_one(tmp_path, stopped, name):
    folder = copy_of(stopped, tmp_path)
    flipped(folder / "checkpoints" / "step-00000004" / name)
    said = run(words_of(stopped, folder), tmp_path / "log").said
    assert f"skipped step-00000004: {name} does not match its checksum" in said
    assert "resuming from step 3" in said
    assert_same_results(folder, stopped / "whole")
    assert leftovers(folder) == []


def test_without_any_good_checkpoint_the_status_is_4(tmp_path, stopped):
    folder = copy_of(stopped, tmp_path)
    for step in (3, 4):
        half(folder / "checkpoints" / f"step-{step:08d}" / "model.safetensors")
    child = start(words_of(stopped, folder), tmp_path / "log")
    assert child.wait() == 4
    assert "none of the 2 checkpoints" in child.said
    assert "step-00000004: model.safetensors has" in child.said


def test_a_lost_optimizer_is_refused_unless_a_fresh_one_is_asked_for(tmp_path, stopped):
    folder = copy_of(stopped, tmp_path)
    for step in (3, 4):
        missing(folder / "checkpoints" / f"step-{step:08d}" / "optimizer.safetensors")
    words = words_of(stopped, folder)
    refused = start(words, tmp_path / "log")
    assert refused.wait() == 4
    assert "optimizer.safetensors is missing (--reset-optimizer would go on from it" in refused.said
    said = run([*words, "--reset-optimizer"], tmp_path / "log").said
    assert "resuming from step 4" in said
    with pytest.raises(AssertionError):  # it is another run from there on
        assert_same_results(folder, stopped / "whole")


def test_no_verify_compares_sizes_only(tmp_path, stopped):
    folder = copy_of(stopped, tmp_path)
    flipped(folder / "checkpoints" / "step-00000004" / "model.safetensors")
    half(folder / "checkpoints" / "step-00000003" / "model.safetensors")
    said = run([*words_of(stopped, folder), "--no-verify"], tmp_path / "log").said
    assert "resuming from step 4" in said
    broken = copy_of(stopped, tmp_path / "broken")
    state = broken / "checkpoints" / "step-00000004" / "state.json"
    state.write_text("x" * state.stat().st_size)
    child = start([*words_of(stopped, broken), "--no-verify"], tmp_path / "log")
    assert child.wait() == 4
    assert "state.json cannot be read" in child.said
    assert "leave --no-verify out" in child.said


def test_a_checkpoint_of_another_version_is_named_as_such(tmp_path, stopped):
    shutil.copytree(stopped / "run" / "checkpoints", tmp_path / "checkpoints")
    for step in (3, 4):
        manifest = tmp_path / "checkpoints" / f"step-{step:08d}" / MANIFEST
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema": 99}))
    with pytest.raises(CheckpointError, match="has schema 99, this version of tutelage reads 2"):
        newest_checkpoint(tmp_path / "checkpoints", lambda text: None)


def test_a_damaged_checkpoint_does_not_count_as_one_that_is_kept(tmp_path, stopped):
    folder = copy_of(stopped, tmp_path)
    flipped(folder / "checkpoints" / "step-00000004" / "model.safetensors")
    words = words_of(stopped, folder)
    child = start(words, tmp_path / "log", told_to_stop(update.Updater, "_check_and_clip", 4, then=60.0))
    assert child.wait() == 75
    assert steps_kept(folder / "checkpoints") == [3, 4]  # written anew
    assert newest_checkpoint(folder / "checkpoints", print).step == 4  # type: ignore[union-attr]


def test_a_damaged_model_is_written_again(tmp_path, stopped):
    shutil.copytree(stopped / "whole", tmp_path / "run")
    half(tmp_path / "run" / "model" / "model.safetensors")
    words = [*words_of(stopped, tmp_path / "run")]
    run(words, tmp_path / "log")
    assert_same_results(tmp_path / "run", stopped / "whole")
    assert "finished already" in run(words, tmp_path / "log").said


def test_checkpoints_are_ordered_by_step_and_not_by_clock(tmp_path, stopped):
    shutil.copytree(stopped / "run" / "checkpoints", tmp_path / "checkpoints")
    os.utime(tmp_path / "checkpoints" / "step-00000003", (2e9, 2e9))
    os.utime(tmp_path / "checkpoints" / "step-00000004", (0, 0))
    assert newest_checkpoint(tmp_path / "checkpoints", print).step == 4  # type: ignore[union-attr]


def test_files_are_synced_before_the_manifest_and_the_name(tmp_path, stopped, monkeypatch):
    """What a loss of power may not reorder: contents, manifest, folder, name, the folder that holds the name."""
    calls: list[str] = []
    sync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda f: (calls.append(os.readlink(f"/proc/self/fd/{f}")), sync(f))[1])
    monkeypatch.setattr(Path, "rename", lambda self, to: (calls.append(f"rename {self.name}"), rename(self, to))[1])
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, 7, contents_of(stopped), keep=2)
    staging = folder / ".staging" / "step-00000007"
    wanted = [str(staging / name) for name in ("model.safetensors", "state.json", MANIFEST)]
    wanted += [str(staging), "rename step-00000007", str(folder)]
    places = [calls.index(name, 1 if name == str(folder) else 0) for name in wanted]
    last_folder = len(calls) - 1 - calls[::-1].index(str(folder))
    places[-1] = last_folder
    assert places == sorted(places), calls


def contents_of(stopped: Path):
    from tutelage.training.checkpoint import Contents

    model = stopped / "whole" / "model" / "model.safetensors"

    def copied(to: Path) -> list[Written]:
        shutil.copy(model, to)
        return []

    return Contents(copied, {}, {}, {"step": 7}, 1000)


def test_nothing_that_can_run_code_is_ever_opened():
    """Weights are safetensors and state is JSON: no module knows pickle, and none calls torch's load or save."""
    forbidden = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for path in Path("src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").split(".")[0]}
            assert not names & forbidden, path
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("torch", "np")
            ):
                assert node.attr not in ("load", "save"), f"{path}:{node.lineno}"
            if isinstance(node, ast.keyword):
                assert node.arg not in ("weights_only", "allow_pickle"), path


def copy_of(stopped: Path, folder: Path) -> Path:
    """The stopped run in a folder of its own."""
    shutil.copytree(stopped / "run", folder / "run")
    return folder / "run"


def words_of(stopped: Path, folder: Path) -> list[str]:
    """The command that goes on with a copy."""
    return ["train", str(stopped / "run.yaml"), "--output", str(folder)]
