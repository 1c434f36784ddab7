"""Two steps of a run with the real weights, in a folder that is taken away again: memory and time of a run."""

import json
import math
import resource
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tutelage.recipe import Recipe, with_changes
from tutelage.training.run import train

_STEPS = 2
_VALIDATION_ROWS = 4


@dataclass(frozen=True)
class DryRun:
    """What two steps took."""

    seconds: tuple[Mapping[str, float], ...]
    """Of each step, by phase. The first one also warms up, and writes the text of a whole collection."""
    step_seconds: float
    """What a later step will take on average, evaluations and saves left out."""
    peak_bytes: int
    """Most memory in use: of the GPU where there is one, else of the process."""


def dry_run(recipe: Recipe) -> DryRun:
    """Train two steps as the recipe says, evaluate on four rows, save, and leave nothing behind.

    The folder for it is made where the run's own would be, so that what fails there fails now.

    Raises:
        TutelageError: what the run would raise.
    """
    output = Path(recipe.output).absolute()
    place = next(part for part in (output.parent, *output.parents) if part.is_dir())
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory(prefix=".dry-run-", dir=place) as folder:
        train(_shortened(recipe, folder), title="dry run", report=_say_nothing)
        lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    seconds = [line["seconds"] for line in map(json.loads, lines) if "seconds" in line]
    return DryRun(tuple(seconds), step_seconds(recipe, seconds), _peak_bytes())


def step_seconds(recipe: Recipe, seconds: Sequence[Mapping[str, float]]) -> float:
    """Estimate an average step from the first two.

    The second step stands for all, but for sampling. Where a method samples a collection for several steps, all of
    that is in the first, and is spread over the steps of the collection; else both count, as one may have drawn rows of
    the data and the other text of a model.
    """
    first, second = seconds
    plan, batch = recipe.method.plan, recipe.train.batch_size
    of_collection = math.ceil((plan.collection or batch) / batch) * plan.inner_epochs
    both = (first["sampling"] + second["sampling"]) / 2
    sampling = first["sampling"] / of_collection if of_collection > 1 else both
    return sampling + sum(value for phase, value in second.items() if phase != "sampling")


def _shortened(recipe: Recipe, folder: str) -> Recipe:
    rows = min(recipe.data.validation_limit or _VALIDATION_ROWS, _VALIDATION_ROWS)
    short = with_changes(
        replace(recipe, output=folder),
        data={"validation_limit": rows},
        train={"steps": _STEPS, "epochs": None, "save_every": None, "log_every": 1, "trackers": ()},
    )
    every = _STEPS if recipe.method.plan.follows_loss else None
    # A cache would be filled for the whole text before the first step, so the teacher itself is run.
    return with_changes(short, evaluation={"every": every, "samples": 0}, teacher_cache={"kind": None})


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes but for macOS


def _say_nothing(line: str) -> None:
    """The lines of the setup were printed by the check already."""
