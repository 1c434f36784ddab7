"""Checkpoints: written aside, synced, listed with their checksums, and only then given their name.

A checkpoint is `checkpoints/step-00000100/`: a Hugging Face folder of the student, the optimisers' state and
the loop's, and `MANIFEST.json` with size and SHA-256 of every file. The newest one is found by looking, never
by a pointer. Nothing in it is a pickle.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from tutelage.errors import CheckpointError

MANIFEST = "MANIFEST.json"
_NAME = re.compile(r"step-(\d{8,})")
_SCHEMA = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that verified."""

    folder: Path
    step: int
    """Optimiser steps done."""

    @property
    def state(self) -> dict[str, Any]:
        """What the loop remembers besides weights."""
        return json.loads((self.folder / "state.json").read_text(encoding="utf-8"))

    def tensors(self) -> dict[str, Tensor]:
        """The optimisers' state."""
        return load_file(self.folder / "optimizer.safetensors")


def save_checkpoint(
    folder: Path,
    step: int,
    write_model: Callable[[Path], None],
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int,
) -> Checkpoint:
    """Write a checkpoint and drop the oldest ones.

    Args:
        folder: the run's `checkpoints`.
        step: optimiser steps done.
        write_model: writes the student as a Hugging Face folder.
        tensors: the optimisers' state.
        state: the loop's, for JSON.
        keep: how many of the newest checkpoints stay.
    """
    name = f"step-{step:08d}"
    staging = folder / ".staging" / name
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    write_model(staging)
    save_file({key: value.contiguous() for key, value in tensors.items()}, staging / "optimizer.safetensors")
    (staging / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    _seal(staging)
    final = folder / name
    if final.exists():  # one that did not verify
        _discard(final)
    staging.rename(final)
    _sync(folder)
    for old in _numbered(folder)[:-keep]:
        _discard(old)
    return Checkpoint(final, step)


def newest_checkpoint(folder: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest checkpoint that verifies; say which newer ones were passed over and why.

    Raises:
        CheckpointError: there are checkpoints, but none of them verifies.
    """
    candidates = _numbered(folder)
    for candidate in reversed(candidates):
        fault = _fault(candidate)
        if fault is None:
            return Checkpoint(candidate, _step(candidate))
        report(f"skipped {candidate.name}: {fault}")
    if candidates:
        raise CheckpointError(
            f"none of the {len(candidates)} checkpoints in {folder} verifies; move the run away to start anew"
        )
    return None


def _numbered(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _discard(folder: Path) -> None:
    """Delete a checkpoint so that a kill in between leaves nothing that looks like one."""
    trash = folder.with_name(f".trash-{folder.name}")
    shutil.rmtree(trash, ignore_errors=True)
    folder.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)


def _seal(folder: Path) -> None:
    """Sync every file, then write the manifest, then sync it and the folders."""
    files = {}
    for path in _files(folder):
        _sync(path)
        files[str(path.relative_to(folder))] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"schema": _SCHEMA, "files": files}, indent=1), encoding="utf-8")
    _sync(manifest)
    _sync(folder)


def _fault(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint, `None` if nothing is."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return f"incomplete (no {MANIFEST})"
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is damaged"
    for name, expected in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes, the manifest says {expected['size']}"
        if _sha256(path) != expected["sha256"]:
            return f"{name} does not match its checksum"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
