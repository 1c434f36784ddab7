"""SIGTERM, SIGINT and SIGUSR1 in every phase: saved, exit status 75, within moments; a second one ends it at once."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.faults.runs import assert_same_results, leftovers, run, start, write_recipe

from tutelage.commands import generate
from tutelage.models import gathering
from tutelage.rollouts import samplers
from tutelage.training import collections, loop, setup, signals, update
from tutelage.training import export as export_module
from tutelage.training import run as run_module
from tutelage.training.checkpoint import newest_checkpoint

ENOUGH = 45.0
"""Seconds within which a run that was told to stop has left, on a machine that others use too."""


@dataclass(frozen=True)
class Moment:
    """When a run is told to stop: before or after the n-th call of a function."""

    method: str
    owner: Any
    name: str
    call: int
    then: float = 60.0
    """Seconds that the call would go on for, had nobody come."""
    after: bool = False


def told_to_stop(
    owner: Any, name: str, call: int, number: int = signal.SIGTERM, then: float = 60.0, after: bool = False
) -> Callable[[], None]:
    """Have a child send itself a signal before or after the n-th call of a function."""

    def plant() -> None:
        original, calls = getattr(owner, name), 0

        def stopped(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            mine = calls == call
            result = original(*arguments, **options) if after else None
            if mine:
                os.kill(os.getpid(), number)
                time.sleep(then)
            return result if after else original(*arguments, **options)

        setattr(owner, name, stopped)

    return plant


BEFORE_THE_FIRST_STEP = {
    "reading rows": (setup, "read_texts", 1),
    "loading models": (setup, "load_model", 2),
    "comparing vocabularies": (setup, "shared_vocabulary", 1),
    "first evaluation": (loop, "evaluate", 1),
    "first sampling": (collections.Collections, "_collect", 1),
    "first update": (update.Updater, "_terms", 1),
}


@pytest.mark.parametrize("phase", BEFORE_THE_FIRST_STEP)
def test_before_the_first_step_nothing_is_lost(tmp_path, phase):
    words = write_recipe(tmp_path, "gkd", method={"student_fraction": 1.0})
    child = start(words, tmp_path / "log", told_to_stop(*BEFORE_THE_FIRST_STEP[phase]))
    assert child.wait(ENOUGH) == 75
    assert "stopped before the first step; nothing is lost" in child.said
    assert "Traceback" not in child.said


LATER = {
    "sampling": Moment("gkd", collections.Collections, "_collect", 3),
    "collecting": Moment("minillm", collections.Collections, "_collect", 2),
    "preparing": Moment("distillm", collections.Collections, "_prepare", 4),
    "replay": Moment("distillm", collections.Collections, "batch", 4),
    "writing the teacher's text": Moment("seqkd", samplers.TeacherSampler, "sample", 2),
    "gradients": Moment("gkd", update.Updater, "_check_and_clip", 3),
    "gradients of the collection just sampled": Moment("minillm", update.Updater, "_check_and_clip", 5),
    "gradients of replayed text": Moment("distillm", update.Updater, "_check_and_clip", 4),
    "gradients of the first critics": Moment("moment-matching", update.Updater, "_check_and_clip", 4),
    "weights half applied": Moment("gkd", update.Updater, "_apply", 3, then=0.0, after=True),
    "critics applied": Moment("moment-matching", update.Updater, "_apply", 4, then=0.0, after=True),
    "critics half applied": Moment("moment-matching", update.Updater, "_apply", 5, then=0.0),
    "evaluation": Moment("distillm", loop, "evaluate", 3),
    "end of an evaluation": Moment("distillm", loop, "evaluate", 2, then=0.0, after=True),
    "what an evaluation found": Moment("distillm", collections.Collections, "observe", 2, then=0.0, after=True),
    "last evaluation": Moment("gkd", loop, "evaluate", 4),
    "save": Moment("gkd", gathering, "save_file", 4, then=0.5),
    "save of the last step": Moment("gkd", gathering, "save_file", 11, then=0.5),
    "export": Moment("gkd", export_module, "load_student", 1),
    "naming the model": Moment("gkd", run_module, "write_whole", 3, then=0.0),
}


@pytest.mark.parametrize(
    ("phase", "save_every"), [(phase, every) for phase in LATER for every in (1, None) if every or "save" not in phase]
)
def test_a_signal_in_any_phase_saves_and_the_run_goes_on_bit_for_bit(tmp_path, phase, save_every, whole):
    at = LATER[phase]
    sections = {"train": {"save_every": save_every}}
    words = write_recipe(tmp_path, at.method, **sections)
    child = start(words, tmp_path / "log", told_to_stop(at.owner, at.name, at.call, then=at.then, after=at.after))
    status = child.wait(ENOUGH)
    finished = phase == "naming the model"
    assert status == (0 if finished else 75), child.said
    assert "Traceback" not in child.said
    if not finished:
        said = re.search(r"saved at step (\d) of 6; the same|stopped before the first|all 6 steps are done", child.said)
        assert said, child.said
        newest = newest_checkpoint(tmp_path / "run" / "checkpoints", print)
        assert (newest.step if newest else None) == (int(said.group(1)) if said.group(1) else newest and newest.step)
    run(words, tmp_path / "log")
    assert_same_results(tmp_path / "run", whole(at.method))
    assert leftovers(tmp_path / "run") == []


@pytest.mark.parametrize("number", signals.SIGNALS, ids=lambda number: number.name)
def test_each_of_the_signals_stops_a_run(tmp_path, number):
    child = start(write_recipe(tmp_path, "gkd"), tmp_path / "log", told_to_stop(update.Updater, "_terms", 8, number))
    assert child.wait(ENOUGH) == 75
    assert f"{number.name}: stopping" in child.said


def test_a_second_signal_ends_the_process_at_once_and_leaves_no_half_checkpoint(tmp_path):
    words = write_recipe(tmp_path, "gkd")
    child = start(words, tmp_path / "log", slow_save(call=6))
    until((tmp_path / "saving").exists)
    child.kill(signal.SIGTERM)
    until(lambda: "SIGTERM: stopping" in child.said)
    child.kill(signal.SIGTERM)
    assert child.wait(30.0) == -signal.SIGTERM
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert names == ["step-00000001", "step-00000002"]
    run(words, tmp_path / "log")
    assert leftovers(tmp_path / "run") == []


def slow_save(call: int) -> Callable[[], None]:
    """Have a save take for ever in its n-th file of tensors."""

    def plant() -> None:
        original, calls = gathering.save_file, 0

        def slow(tensors: Any, path: Path, metadata: Any) -> None:
            nonlocal calls
            calls += 1
            original(tensors, path, metadata)
            if calls == call:
                (path.parents[4] / "saving").touch()
                limit = time.monotonic() + 60
                while time.monotonic() < limit:  # a sleep would be cut short by nothing, but a loop is plainer
                    time.sleep(0.01)

        gathering.save_file = slow

    return plant


def until(happened: Callable[[], bool], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_signal_that_somebody_swallows_is_honoured_after_all(tmp_path):
    def plant() -> None:
        original = update.Updater._terms
        calls = 0

        def swallowing(self: Any, *arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 8:
                try:
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(1)
                except BaseException:
                    os.write(1, b"swallowed\n")
            return original(self, *arguments)

        update.Updater._terms = swallowing

    child = start(write_recipe(tmp_path, "gkd"), tmp_path / "log", plant)
    assert child.wait(ENOUGH) == 75
    assert "swallowed" in child.said


@pytest.mark.parametrize("delay", [0.0, 2.0, 4.0])
def test_the_real_command_can_be_told_to_stop_while_it_imports(tmp_path, delay):
    words = [sys.executable, "-m", "tutelage", *write_recipe(tmp_path, "gkd", train={"steps": 100_000})]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until(lambda: listens(child.pid, signal.SIGTERM))
    time.sleep(delay)
    child.send_signal(signal.SIGTERM)
    said, _ = child.communicate(timeout=150)
    assert child.returncode == 75, said
    assert "Traceback" not in said


def listens(process: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


def test_generate_keeps_what_it_has_written(tmp_path):
    recipe = write_recipe(tmp_path, "gkd")[1]
    out = tmp_path / "text.jsonl"
    words = ["generate", recipe, "--out", str(out), "--decoding.max-new-tokens", "4", "--decoding.batch-size", "8"]
    run([*words[:3], str(tmp_path / "whole.jsonl"), *words[4:]], tmp_path / "log")
    child = start(words, tmp_path / "log", told_to_stop(generate, "_answers", 3))
    assert child.wait(ENOUGH) == 75, child.said
    assert "wrote 16 of 30 rows" in child.said
    run(words, tmp_path / "log")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
