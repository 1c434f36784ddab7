"""Checkpoints of cut models, written by all processes in several files: stopped, full, killed, damaged, and gone on."""

import json
from pathlib import Path

import pytest
from tests.distributed.comparing import QUIET, assert_close
from tests.distributed.launch import launch, launched
from tests.tiny import mapping

from tutelage.recipe import recipe_of
from tutelage.training.checkpoint import steps_kept
from tutelage.training.run import train

FILE_BYTES = 6000
METHODS = {"moment-matching": {"critic_rank": None, "gradient_penalty": 0.1, "orthogonality": 0.1}, "minillm": {}}


def recipe(folder: Path, method: str, name: str, **train_section) -> dict:
    found = mapping(folder, method, train={"shard": "both", **train_section}, output=str(folder / name))
    found["method"] = {**found["method"], **METHODS.get(method, {})}
    return found


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Cut over two processes, stopped, gone on by one process, stopped, and gone on by two."""
    folder = tmp_path_factory.mktemp("stopped")
    small = {"file_bytes": FILE_BYTES, "rank": 0, "signal": "SIGTERM"}
    jobs = [{"recipe": recipe(folder, method, method), **small} for method in METHODS]
    launched(folder, [{**job, "step": 2} for job in jobs])
    parts = [json.loads((folder / f"moment-matching-{rank}.json").read_text()) for rank in range(2)]
    first = {method: [path.name for path in checkpoint(folder / method).iterdir()] for method in METHODS}
    alone = [{**job, "step": 4} for job in jobs]
    launched(folder, alone, processes=1)
    assert launched(folder, [{"recipe": job["recipe"], "file_bytes": FILE_BYTES} for job in jobs]) == [
        ["finished", "finished"]
    ] * len(jobs)
    return folder, parts, first


def checkpoint(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step-*"))[-1]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_in_several_files_goes_on_with_any_number_of_processes(stopped, method):
    folder, _, _ = stopped
    whole = train(recipe_of(recipe(folder, method, f"whole-{method}")), **QUIET).folder
    assert_close(whole, folder / method)
    assert not list((folder / method).glob(".staging*"))


@pytest.mark.parametrize("method", METHODS)
def test_the_files_are_those_that_one_process_writes(stopped, method):
    folder, _, first = stopped
    names = first[method]
    assert sum(name.startswith("model-0") for name in names) > 2
    assert sum(name.startswith("optimizer-0") for name in names) > 2
    assert "model.safetensors.index.json" in names
    one = [path.name for path in checkpoint(folder / method).iterdir()]
    assert sorted(one) == sorted(names)
    assert (folder / method / "model" / "model.safetensors.index.json").is_file()


def test_each_process_holds_its_part_of_the_student_and_of_the_critics(stopped):
    _, parts, _ = stopped
    for found in parts:
        assert found.keys() == {"student", "critic_off", "critic_on"}
        for held, whole in found.values():
            assert held == pytest.approx(whole / 2, rel=0.1)


def test_full_disks_and_kills_while_one_process_writes_its_files(tmp_path):
    """Full once: there is room at the second try. Full for good: all leave with what was saved. Killed: likewise."""
    jobs = {
        name: {"recipe": recipe(tmp_path, "gkd", name, save_every=2), "file_bytes": FILE_BYTES, "rank": 1}
        for name in ("once", "full", "killed")
    }
    full = {"do": "full", "writes": [9, 10]}
    once, left = launched(tmp_path, [{**jobs["once"], "do": "full", "writes": [9]}, {**jobs["full"], **full}])
    assert once == ["finished", "finished"]
    assert left[0] == left[1]
    assert "No space left on" in left[0]
    assert "the checkpoint of step 2 is kept" in left[0]
    assert launch(tmp_path, [{**jobs["killed"], "do": "kill", "writes": [9]}], 2, 240).returncode != 0
    for name in ("full", "killed"):
        assert steps_kept(tmp_path / name / "checkpoints") == [2]
    again = [{"recipe": jobs[name]["recipe"]} for name in ("full", "killed")]
    assert launched(tmp_path, again) == [["finished", "finished"]] * 2
    whole = train(recipe_of(recipe(tmp_path, "gkd", "whole", save_every=2)), **QUIET).folder
    for name in jobs:
        assert_close(whole, tmp_path / name)
        assert not list((tmp_path / name / "checkpoints").glob(".*/*"))
