"""Runs of the real command line in children that can be killed, and what is left of them.

A child is a fork of this process: what was imported need not be imported again, so that a kill costs a fraction of a
second. Its recipe is a tiny one that saves after every step.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from tests.tiny import mapping

import tutelage.training.run  # noqa: F401  (what children would import)
from tutelage.cli import main

FAMILIES: dict[str, dict[str, Any]] = {
    "sft": {},
    "seqkd": {},
    "supervised-kd": {},
    "gkd": {"method": {"student_fraction": 0.5}},
    "minillm": {"method": {"collection": 12}},
    "moment-matching": {},
    # A loss that rises, so that evaluations change what is sampled.
    "distillm": {"method": {"student_fraction": 0.3, "increase": 0.7}, "train": {"learning_rate": 0.5}},
    "distillm-2": {},
}
"""One method of each family, by what it keeps: nothing, stored text, mixture draws, collections, critics, a buffer."""


def write_recipe(folder: Path, method: str, name: str = "run", /, **sections: Any) -> list[str]:
    """Write a tiny recipe whose run goes into `folder/name`; return the words that train it."""
    folder.mkdir(parents=True, exist_ok=True)
    every = {"evaluation": {"every": 2, "metrics": ["loss", "exact_answer"], "decoding": {"max_new_tokens": 4}}}
    whole = mapping(folder, method, **every, output=str(folder / name))
    for section, keys in (("train", {"save_every": 1}), *FAMILIES.get(method, {}).items(), *sections.items()):
        whole[section] = {**whole[section], **keys}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return ["train", str(path)]


@dataclass(frozen=True)
class Child:
    """A command line that runs in a forked process."""

    pid: int
    log: Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, seconds: float = 60.0) -> int:
        """Return its exit status, −n if signal n ended it; the test fails where it takes longer."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if (status := self.poll()) is not None:
                return status
            time.sleep(0.002)
        self.kill()
        os.waitpid(self.pid, 0)
        raise AssertionError(f"still running after {seconds} s; it said:\n{self.said}")

    def poll(self) -> int | None:
        """Its exit status, `None` while it runs. To be asked until it is not `None`, and no longer."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def start(words: list[str], log: Path, hook: Callable[[], object] = lambda: None) -> Child:
    """Fork a child that runs a command line.

    Args:
        words: of the command line.
        log: file for what it prints.
        hook: called in the child before anything else, to plant a fault.
    """
    pid = os.fork()
    if pid:
        return Child(pid, log)
    status = 1
    try:
        out = log.open("w", encoding="utf-8", buffering=1)
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        sys.stdout = sys.stderr = out
        hook()
        status = main(words)
    except BaseException:  # the traceback belongs into the log, and nothing into the test that was forked
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def run(words: list[str], log: Path, hook: Callable[[], object] = lambda: None) -> Child:
    """Run a command line to its end, which has to be a good one."""
    child = start(words, log, hook)
    status = child.wait()
    assert status == 0, f"exit status {status}:\n{child.said}"
    return child


def results(folder: Path) -> dict[str, Any]:
    """What must not differ between a run that was interrupted and one that was not."""
    weights = load_file(folder / "model" / "model.safetensors")
    return {
        "weights": {name: tensor.clone() for name, tensor in weights.items()},
        "metrics": _lines(folder / "metrics.jsonl"),
        "samples": _lines(folder / "samples.jsonl"),
        "evaluation": json.loads((folder / "evaluation.json").read_text(encoding="utf-8")),
    }


def assert_same_results(folder: Path, whole: Path) -> None:
    """Compare two finished runs, weights bit for bit."""
    one, other = results(folder), results(whole)
    for part in ("metrics", "samples", "evaluation"):
        assert one[part] == other[part], part
    assert one["weights"].keys() == other["weights"].keys()
    for name, tensor in one["weights"].items():
        assert torch.equal(tensor, other["weights"][name]), name


def leftovers(folder: Path) -> list[str]:
    """What an interrupted save, deletion or export left in a run's folder."""
    return sorted(
        str(path.relative_to(folder))
        for pattern in (".staging*", "checkpoints/.*/*", "checkpoints/.trash*", "checkpoints/.damaged*", ".trash*")
        for path in folder.glob(pattern)
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
