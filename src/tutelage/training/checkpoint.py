"""Checkpoints: written aside, synced, sealed with their checksums, and only then given their name.

A checkpoint is `checkpoints/step-00000100/`: a Hugging Face folder of the student, the optimisers' state, the
method's own modules, the loop's state, and `MANIFEST.json` with size and SHA-256 of every file. The newest one is
found by looking, never by a pointer, and in the order of steps, never of clocks. Nothing in it is a pickle.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tutelage.errors import CheckpointError, InputError, Stopped
from tutelage.sealing import sync
from tutelage.training.disk import is_full, no_space
from tutelage.training.manifest import faults, seal

OPTIMIZER = "optimizer.safetensors"
MODULES = "modules.safetensors"
STATE = "state.json"
_STAGING = ".staging"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Contents:
    """What a checkpoint is made of."""

    write_model: Callable[[Path], None]
    """Writes the student as a Hugging Face folder."""
    optimizer: Mapping[str, Tensor]
    """The optimisers' state."""
    modules: Mapping[str, Tensor]
    """The weights of the method's own modules."""
    state: Mapping[str, Any]
    """What the loop remembers, for JSON."""
    size: int
    """About how many bytes it all takes."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that verified."""

    folder: Path
    step: int
    """Optimiser steps done."""

    @cached_property
    def state(self) -> dict[str, Any]:
        """What the loop remembers besides weights."""
        try:
            return json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        except ValueError as error:
            raise self._unreadable(STATE, error) from error

    def optimizer(self) -> dict[str, Tensor]:
        """The optimisers' state."""
        return self._tensors(OPTIMIZER)

    def modules(self) -> dict[str, Tensor]:
        """The weights of the method's own modules."""
        return self._tensors(MODULES)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        try:
            return load_file(self.folder / name)
        except (SafetensorError, OSError) as error:
            raise self._unreadable(name, error) from error

    def _unreadable(self, name: str, error: Exception) -> CheckpointError:  # only where nothing was verified
        return CheckpointError(f"{self.folder / name} cannot be read ({error}); leave --no-verify out")


def save_checkpoint(folder: Path, step: int, contents: Contents, keep: int, spare: Collection[int] = ()) -> Checkpoint:
    """Write a checkpoint and drop the oldest ones. Where the disk is full, what is superseded makes room once.

    Args:
        folder: the run's `checkpoints`.
        step: optimiser steps done.
        contents: what is written.
        keep: how many of the newest checkpoints stay.
        spare: steps of checkpoints that stay besides.

    Raises:
        Stopped: the disk is full. Nothing half written is left, and the older checkpoints are as they were.
    """
    final = folder / f"step-{step:08d}"
    try:
        staging = _write(folder, final.name, contents)
    except Exception as error:
        if not is_full(error):
            raise
        tidy(folder)
        staging = _write_or_leave(folder, final.name, contents)
    staging.rename(final)
    sync(folder)
    sync(staging.parent)
    for old in _superseded(folder, keep, spare):
        _discard(old)
    _empty(folder, ".damaged-*")
    return Checkpoint(final, step)


def newest_checkpoint(
    folder: Path, report: Callable[[str], None], *, verify: bool = True, reset_optimizer: bool = False
) -> Checkpoint | None:
    """Return the newest checkpoint that verifies; say which newer ones were passed over and why.

    Args:
        folder: the run's `checkpoints`.
        report: told in one line each what was passed over.
        verify: compare checksums; sizes are compared in any case.
        reset_optimizer: accept one whose optimiser state is missing or damaged.

    Raises:
        CheckpointError: there are checkpoints, but none of them verifies.
    """
    candidates = _numbered(folder)
    reasons = []
    for candidate in reversed(candidates):
        found = faults(candidate, contents=verify)
        if not found or (reset_optimizer and found.keys() == {OPTIMIZER}):
            return Checkpoint(candidate, _step(candidate))
        way_out = " (--reset-optimizer would go on from it with a fresh optimiser)" if set(found) == {OPTIMIZER} else ""
        reasons.append(f"{candidate.name}: {next(iter(found.values()))}{way_out}")
        report(f"skipped {reasons[-1]}")
    if candidates:
        raise CheckpointError(
            f"none of the {len(candidates)} checkpoints in {folder} verifies (the newest, {reasons[0]}); "
            "move the run away to start anew"
        )
    return None


def tidy(folder: Path) -> None:
    """Remove what an interrupted save or deletion left behind.

    Raises:
        InputError: it is a symbolic link, which we never make.
    """
    if (folder / _STAGING).is_symlink():
        raise InputError(f"{folder / _STAGING} is a symbolic link, which may lead out of the run; remove it")
    for pattern in (_STAGING, ".trash-*", ".damaged-*"):
        _empty(folder, pattern)


def set_aside(folder: Path, after: int) -> None:
    """Rename the checkpoints of later steps, which did not verify; the next good one is the end of them."""
    for path in _numbered(folder):
        if _step(path) > after:
            aside = path.with_name(f".damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def steps_kept(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, oldest first; their contents are not compared."""
    return [_step(path) for path in _numbered(folder) if not faults(path, contents=False)]


def _write(folder: Path, name: str, contents: Contents) -> Path:
    """Write a checkpoint beside the others, under a name that is not one's."""
    staging = folder / _STAGING / name
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    sync(folder.parent)
    sync(folder)
    contents.write_model(staging)
    save_file({key: value.contiguous() for key, value in contents.optimizer.items()}, staging / OPTIMIZER)
    save_file({key: value.contiguous() for key, value in contents.modules.items()}, staging / MODULES)
    (staging / STATE).write_text(json.dumps(contents.state, indent=1), encoding="utf-8")
    seal(staging)
    return staging


def _write_or_leave(folder: Path, name: str, contents: Contents) -> Path:
    try:
        return _write(folder, name, contents)
    except Exception as error:
        if not is_full(error):
            raise
        tidy(folder)
        kept = steps_kept(folder)
        newest = f"the checkpoint of step {kept[-1]} is kept" if kept else "nothing was saved before"
        raise Stopped(
            f"{no_space(folder, contents.size)}; {newest}; free some space, and the same command goes on from there"
        ) from error


def _superseded(folder: Path, keep: int, spare: Collection[int]) -> list[Path]:
    """The checkpoints to drop. Only complete ones count as kept."""
    kept = {*steps_kept(folder)[-keep:], *spare}
    return [path for path in _numbered(folder) if _step(path) not in kept]


def _numbered(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()), key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _discard(folder: Path) -> None:
    """Delete a checkpoint so that a kill in between leaves nothing that looks like one."""
    trash = folder.with_name(f".trash-{folder.name}")
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(folder, trash)
    shutil.rmtree(trash, ignore_errors=True)


def _empty(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
