"""Where metrics go: always to metrics.jsonl, and to trackers that the recipe names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tutelage.errors import InputError


class Tracker(Protocol):
    """A place that metrics go to."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take the numbers of one step."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class JsonLines:
    """A file with one JSON object a line, each with its step; a resumed run first cuts what it will write again.

    Args:
        path: the file.
        done: optimiser steps done; lines of later ones are dropped from an existing file.
    """

    def __init__(self, path: Path, done: int) -> None:
        kept = []
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _belongs(line, done)]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append a line; it is handed to the system at once."""
        self._file.write(json.dumps({"step": step, **metrics}, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Event files for TensorBoard, in the run's folder `tensorboard`."""

    def __init__(self, folder: Path, done: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                "train.trackers names tensorboard, which is not installed: pip install 'tutelage[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write each number as a scalar."""
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


def trackers(folder: Path, names: tuple[str, ...], done: int) -> list[Tracker]:
    """Return the run's trackers, metrics.jsonl first."""
    extra: list[Tracker] = [TensorBoard(folder, done) for name in names if name == "tensorboard"]
    return [JsonLines(folder / "metrics.jsonl", done), *extra]


def _belongs(line: str, done: int) -> bool:
    try:
        return json.loads(line)["step"] <= done
    except (ValueError, KeyError, TypeError):
        return False  # a line that a kill cut short
