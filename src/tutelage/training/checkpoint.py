"""Checkpoints: written aside, synced, sealed with their checksums, and only then given their name.

A checkpoint is `checkpoints/step-00000100/`: a Hugging Face folder of the student, the optimisers' state, the
method's own modules, the loop's state, and `MANIFEST.json` with size and SHA-256 of every file. The newest one is
found by looking, never by a pointer, and in the order of steps, never of clocks. Nothing in it is a pickle.

What is large is written by all processes of a run, each some of the files (`tutelage.models.gathering`).
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tutelage.errors import CheckpointError, InputError, Stopped
from tutelage.models.gathering import Written, write_tensors
from tutelage.sealing import sync
from tutelage.training.disk import is_full, no_space
from tutelage.training.manifest import faults, seal
from tutelage.world import world

OPTIMIZER = "optimizer"
MODULES = "modules"
STATE = "state.json"
_STAGING = ".staging"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Contents:
    """What a checkpoint is made of."""

    write_model: Callable[[Path], list[Written]]
    """Writes the student as a Hugging Face folder, all processes together; gives the files that are on the disk."""
    optimizer: Mapping[str, Mapping[str, Tensor]]
    """The optimisers' state, by the names of the modules."""
    modules: Mapping[str, Mapping[str, Tensor]]
    """The weights of the method's own modules, likewise."""
    state: Mapping[str, Any]
    """What the loop remembers, for JSON; that of the first process is written."""
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

    def optimizer(self, module: str) -> Mapping[str, Tensor]:
        """The optimiser's state of a module, read tensor by tensor as it is asked for."""
        return self._tensors(OPTIMIZER, module)

    def module(self, module: str) -> Mapping[str, Tensor]:
        """The weights of one of the method's own modules, likewise."""
        return self._tensors(MODULES, module)

    def _tensors(self, stem: str, module: str) -> Mapping[str, Tensor]:
        paths = sorted(path for path in self.folder.glob("*.safetensors") if _holds(path.name, stem))
        try:
            return _Stored(paths or [self.folder / f"{stem}.safetensors"], f"{module}/")
        except (SafetensorError, OSError) as error:
            raise self._unreadable(f"{stem}.safetensors", error) from error

    def _unreadable(self, name: str, error: Exception) -> CheckpointError:  # only where nothing was verified
        return CheckpointError(f"{self.folder / name} cannot be read ({error}); leave --no-verify out")


class _Stored(Mapping[str, Tensor]):
    """The tensors of some files whose names begin with a prefix, by the rest of their names."""

    def __init__(self, paths: Collection[Path], prefix: str) -> None:
        files, self._prefix = [safe_open(path, framework="pt") for path in paths], prefix
        names = [(name, file) for file in files for name in file.keys()]  # noqa: SIM118 (it is no dict)
        self._files = {name.removeprefix(prefix): file for name, file in names if name.startswith(prefix)}

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(self._prefix + name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _holds(name: str, stem: str) -> bool:
    """Whether a file of a checkpoint is one of those that begin with a stem.

    >>> _holds("optimizer.safetensors", "optimizer"), _holds("optimizer-00002-of-00003.safetensors", "optimizer")
    (True, True)
    >>> _holds("model.safetensors", "optimizer")
    False
    """
    return re.fullmatch(rf"{stem}(-\d+-of-\d+)?\.safetensors", name) is not None


def save_checkpoint(folder: Path, step: int, contents: Contents, keep: int, spare: Collection[int] = ()) -> Checkpoint:
    """Write a checkpoint and drop the oldest ones. Where the disk is full, what is superseded makes room once.

    Every process of the run calls it.

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
        world().main_does(lambda: tidy(folder))
        staging = _write_or_leave(folder, final.name, contents)
    world().main_does(lambda: _name(staging, final, keep, spare))
    return Checkpoint(final, step)


def _name(staging: Path, final: Path, keep: int, spare: Collection[int]) -> None:
    """Give a checkpoint that is on the disk its name, and drop those that it supersedes."""
    staging.rename(final)
    sync(final.parent)
    sync(staging.parent)
    for old in _superseded(final.parent, keep, spare):
        _discard(old)
    _empty(final.parent, ".damaged-*")


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
        only_optimizer = all(_holds(name, OPTIMIZER) for name in found)
        if not found or (reset_optimizer and only_optimizer):
            return Checkpoint(candidate, _step(candidate))
        way_out = " (--reset-optimizer would go on from it with a fresh optimiser)" if only_optimizer else ""
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
    world().main_does(lambda: _make(staging))
    files = [
        *contents.write_model(staging),
        *write_tensors(staging, OPTIMIZER, _named(contents.optimizer)),
        *write_tensors(staging, MODULES, _named(contents.modules)),
    ]

    def finish() -> None:
        (staging / STATE).write_text(json.dumps(contents.state, indent=1), encoding="utf-8")
        seal(staging, files)

    world().main_does(finish)
    return staging


def _named(modules: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of several modules, the module's name before each one's."""
    return {f"{module}/{name}": tensor for module, tensors in modules.items() for name, tensor in tensors.items()}


def _make(staging: Path) -> None:
    """Make an empty folder beside the checkpoints."""
    folder = staging.parent.parent
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    sync(folder.parent)
    sync(folder)


def _write_or_leave(folder: Path, name: str, contents: Contents) -> Path:
    try:
        return _write(folder, name, contents)
    except Exception as error:
        if not is_full(error):
            raise
        kept = world().main_does(lambda: tidy(folder) or steps_kept(folder))
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
