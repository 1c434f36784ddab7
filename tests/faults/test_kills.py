"""A run that is killed without warning, at any moment, goes on and ends as the uninterrupted one does."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.faults.cuts import Cut
from tests.faults.kills import kill_at_random
from tests.faults.runs import FAMILIES, assert_same_results, leftovers, run, start, write_recipe

from tutelage.training import checkpoint, loop
from tutelage.training import run as run_module


@pytest.mark.parametrize("method", ["gkd", "minillm", "moment-matching"])
def test_random_kills_lose_nothing(tmp_path, method):
    tally = kill_at_random(tmp_path, method, kills=12)
    assert (tally.kills, tally.lost) == (12, 0)
    assert tally.finished
    assert tally.resumes


@pytest.mark.fault
@pytest.mark.parametrize("method", FAMILIES)
def test_fifty_random_kills_of_every_family_lose_nothing(tmp_path, method):
    tally = kill_at_random(tmp_path, method, kills=50, seed=1)
    print(f"{method}: {tally}")
    assert (tally.kills, tally.lost) == (50, 0)


def cut_save(at: int | None):
    """Kill in the save of step 4, which also drops the checkpoint of step 2."""

    def plant() -> None:
        cut = Cut(at)
        cut.around(loop, "save_checkpoint", when=lambda folder, step, *_: step == 4)
        cut.plant()

    return plant


def cut_finish(at: int | None):
    """Kill while the model is written, checked and named."""

    def plant() -> None:
        cut = Cut(at)
        cut.around(run_module, "_finish")
        cut.plant()

    return plant


def calls_of(words: list[str], log: Path, plant) -> int:
    return int(re.findall(r"calls: (\d+)", run(words, log, plant(None)).said)[0])


@pytest.mark.parametrize("plant", [cut_save, cut_finish])
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.fault)])
def test_a_kill_between_any_two_system_calls_loses_nothing(tmp_path, plant, every, whole):
    calls = calls_of(write_recipe(tmp_path, "gkd", "counted"), tmp_path / "log", plant)
    assert calls > 30
    for at in range(1, calls + 1, every):
        words, folder = write_recipe(tmp_path, "gkd", f"cut-{at}"), tmp_path / f"cut-{at}"
        killed = start(words, tmp_path / "log", plant(at))
        assert killed.wait() == -9
        newest = checkpoint.newest_checkpoint(folder / "checkpoints", lambda text: None)
        assert newest is not None
        assert newest.step == 6 if plant is cut_finish else newest.step in (3, 4)
        run(words, tmp_path / "log")
        assert_same_results(folder, whole("gkd"))
        assert leftovers(folder) == []


def test_a_kill_in_the_finish_of_a_longer_run_does_not_pass_the_shorter_ones_model_off_as_its_own(tmp_path):
    constant = {"train": {"schedule": "constant", "steps": 9}}
    run(write_recipe(tmp_path, "gkd", "whole", **constant), tmp_path / "log")
    words = write_recipe(tmp_path, "gkd", "run", train={"schedule": "constant", "steps": 6})
    run(words, tmp_path / "log")
    words = write_recipe(tmp_path, "gkd", "run", **constant)
    assert start(words, tmp_path / "log", cut_finish(1)).wait() == -9
    run(words, tmp_path / "log")
    assert "finished already" in run(words, tmp_path / "log").said
    one, other = (results_of_weights(tmp_path / name) for name in ("run", "whole"))
    assert one == other


def results_of_weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.fault
def test_kills_of_the_real_command_lose_nothing(tmp_path, whole):
    words = write_recipe(tmp_path, "gkd")
    command = [sys.executable, "-m", "tutelage", *words]
    for _ in range(3):
        with (tmp_path / "log").open("w") as log:
            child = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        steps = len(list((tmp_path / "run" / "checkpoints").glob("step-*")))
        while child.poll() is None and len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) <= steps:
            time.sleep(0.002)
        child.kill()
        child.wait()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert_same_results(tmp_path / "run", whole("gkd"))


@pytest.mark.fault_soak
def test_three_hundred_random_kills_lose_nothing(tmp_path):
    each = -(-300 // len(FAMILIES))
    tallies = {method: kill_at_random(tmp_path / method, method, each, seed=2) for method in FAMILIES}
    print("\nfamily            kills  resumes  finished  lost  steps redone  seconds")
    for method, t in tallies.items():
        print(f"{method:<17} {t.kills:>5} {t.resumes:>8} {t.finished:>9} {t.lost:>5} {t.redone:>13} {t.seconds:>8.0f}")
    kills, lost = (sum(getattr(tally, name) for tally in tallies.values()) for name in ("kills", "lost"))
    print(f"{kills} kills, {lost} lost")
    assert kills >= 300
    assert lost == 0
