"""A whole run: the folder, the resuming, the loop, and what is left behind."""

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from tutelage.errors import InputError
from tutelage.recipe import Recipe, dump_recipe, parse_yaml
from tutelage.training.checkpoint import Checkpoint, newest_checkpoint
from tutelage.training.loop import Loop
from tutelage.training.progress import display
from tutelage.training.setup import Setup, prepare
from tutelage.training.signals import StopRequest

CHANGEABLE = ("train.steps", "train.epochs", "train.save_every", "train.log_every", "train.keep_checkpoints",
              "train.trackers", "train.micro_batch_tokens", "evaluation", "output")  # fmt: skip
"""Keys that may differ when a run is resumed: they do not change what is learnt at a step."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    evaluations: list[dict[str, Any]]
    """Step and metrics of each evaluation, the untrained student's first."""

    @property
    def model(self) -> Path:
        """The student as a Hugging Face folder."""
        return self.folder / "model"


def train(
    recipe: Recipe,
    *,
    resume: Literal["auto", "never"] = "auto",
    title: str | None = None,
    report: Callable[[str], None] = print,
) -> Run:
    """Run a recipe to its end, or go on with a run that was interrupted.

    Writes into the folder `recipe.output`: `config.yaml` (runs again as it is), `environment.json`,
    `metrics.jsonl`, `samples.jsonl`, `evaluation.json`, `checkpoints/` and `model/`, a plain Hugging Face
    folder.

    Args:
        recipe: what to run, from `load_recipe` or `recipe_of`.
        resume: `auto` goes on from the newest good checkpoint in the folder; `never` refuses a folder that
            holds a run.
        title: shown beside the progress bar; the method's name by default.
        report: told in one line each what is loaded and done.

    Returns:
        The finished run.

    Raises:
        InputError: recipe, data or models are wrong, or the folder holds another recipe's run.
        DivergedError: a loss or gradient was not finite.
        Stopped: a signal asked for it; the run has saved and can be resumed.
    """
    folder = Path(recipe.output)
    checkpoint = _resumable(recipe, folder, resume, report)
    finished = _finished(recipe, folder, checkpoint)
    if finished is not None:
        report(f"{folder} is finished already; its model is in {finished.model}")
        return finished
    setup = prepare(recipe, report, None if checkpoint is None else checkpoint.folder)
    if checkpoint is not None and checkpoint.state["data"] != setup.texts.fingerprint:
        raise InputError(
            f"the training rows in {recipe.data.train} are not those that {folder} began with; name another output, "
            "or put the rows back"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _describe(setup)
    if checkpoint is not None:
        report(f"resuming from step {checkpoint.step}")
    done = 0 if checkpoint is None else checkpoint.step
    with StopRequest() as stop, display(title or recipe.method.name, setup.steps, done) as shown:
        loop = Loop(setup, shown, stop, checkpoint)
        evaluations = loop.run()
    (folder / "evaluation.json").write_text(json.dumps(evaluations, indent=1), encoding="utf-8")
    loop.write_model(folder / "model")
    return Run(folder, evaluations)


def _resumable(recipe: Recipe, folder: Path, resume: str, report: Callable[[str], None]) -> Checkpoint | None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output: {folder} is a file; name a folder")
    if not (folder / "config.yaml").exists():
        return None
    if resume == "never":
        raise InputError(
            f"{folder} holds a run already; name another output, or leave out --resume never to go on with it"
        )
    changes = changed_keys(recipe, folder / "config.yaml")
    if changes:
        raise InputError(
            f"{folder} holds a run of another recipe ({'; '.join(changes)}); name another output, or undo the changes"
        )
    return newest_checkpoint(folder / "checkpoints", report)


def _finished(recipe: Recipe, folder: Path, checkpoint: Checkpoint | None) -> Run | None:
    if checkpoint is None:
        return None
    stored = parse_yaml((folder / "config.yaml").read_text(encoding="utf-8"), str(folder / "config.yaml"))["train"]
    same_epochs = recipe.train.epochs is not None and stored["epochs"] == recipe.train.epochs
    wanted = checkpoint.state["steps"] if same_epochs else recipe.train.steps
    if wanted is None or checkpoint.step < wanted:
        return None
    if not (folder / "evaluation.json").exists() or not (folder / "model" / "config.json").exists():
        return None
    return Run(folder, checkpoint.state["evaluations"])


def changed_keys(recipe: Recipe, stored: Path) -> list[str]:
    """Say which keys differ from a stored recipe, beyond those that may: `train.learning_rate: 0.1 → 0.2`."""
    before = _flat(parse_yaml(stored.read_text(encoding="utf-8"), str(stored)))
    after = _flat(parse_yaml(dump_recipe(recipe), "recipe"))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    kept = [key for key in keys if not any(key == free or key.startswith(f"{free}.") for free in CHANGEABLE)]
    return [f"{key}: {before.get(key)} → {after.get(key)}" for key in kept]


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _describe(setup: Setup) -> None:
    """Write down what the run is and what it runs on."""
    (setup.folder / "config.yaml").write_text(dump_recipe(setup.recipe), encoding="utf-8")
    packages = {name: version(name) for name in ("tutelage", "torch", "transformers", "tokenizers", "numpy")}
    environment = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(setup.student.device),
        "packages": packages,
        "data": setup.texts.fingerprint,
    }
    (setup.folder / "environment.json").write_text(json.dumps(environment, indent=1), encoding="utf-8")
