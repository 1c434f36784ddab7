"""A whole run: the folder, the resuming, the loop, and what is left behind."""

import json
import os
import platform
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tutelage.errors import InputError, Stopped
from tutelage.recipe import Recipe, dump_recipe, parse_yaml
from tutelage.redaction import redacted
from tutelage.sealing import write_whole
from tutelage.training.checkpoint import Checkpoint, newest_checkpoint
from tutelage.training.disk import is_full, model_bytes, no_space
from tutelage.training.export import is_exported, name_export, write_export
from tutelage.training.identity import changed_keys, check_parts, identity_of
from tutelage.training.lock import only_writer
from tutelage.training.loop import Loop
from tutelage.training.progress import display
from tutelage.training.setup import Setup, prepare
from tutelage.training.signals import Abandoned, StopRequest, listening
from tutelage.world import joined, world

ENVIRONMENT = "environment.json"
LATE = 60.0
"""Seconds until all hosts see a new file of a folder that they share."""


@dataclass(frozen=True)
class Resuming:
    """How a run goes on with what its folder holds; `train` says what each means."""

    resume: Literal["auto", "never"]
    allow_change: Collection[str]
    reset_optimizer: bool
    verify: bool


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

    @property
    def report(self) -> Path:
        """The page that tells what happened."""
        return self.folder / "report.html"


def train(
    recipe: Recipe,
    *,
    resume: Literal["auto", "never"] = "auto",
    allow_change: Collection[str] = (),
    reset_optimizer: bool = False,
    verify: bool = True,
    title: str | None = None,
    report: Callable[[str], None] = print,
) -> Run:
    """Run a recipe to its end, or go on with a run that was interrupted.

    Writes into the folder `recipe.output`: `config.yaml` (runs again as it is), `environment.json`,
    `metrics.jsonl`, `samples.jsonl`, `evaluation.json`, `checkpoints/`, `model/`, a plain Hugging Face folder, and
    `report.html`. SIGTERM, SIGINT and SIGUSR1 have it save and leave.

    Args:
        recipe: what to run, from `load_recipe` or `recipe_of`.
        resume: `auto` goes on from the newest good checkpoint in the folder; `never` refuses a folder that
            holds a run.
        allow_change: keys and sections of the recipe that may differ from those that the run began with, such as
            `train.learning_rate`; `data`, `tokenizer`, `chat_template` and `teacher` let these differ in themselves.
        reset_optimizer: begin with a fresh optimiser; a checkpoint without its state will do.
        verify: compare the checksums of a checkpoint's files, not their sizes alone.
        title: shown beside the progress bar; the method's name by default.
        report: told in one line each what is loaded and done.

    Returns:
        The finished run.

    Raises:
        InputError: recipe, data or models are wrong, the folder holds another recipe's run or one that is going on,
            or the disk is too small.
        CheckpointError: the folder has checkpoints, and none is good.
        DivergedError: a loss or gradient was not finite.
        Stopped: a signal asked for it; the run has saved and can be resumed.
    """
    resuming = Resuming(resume, allow_change, reset_optimizer, verify)
    folder = Path(recipe.output)
    with joined() as everyone, listening() as stop, one_writer(folder):
        if not everyone.is_main:
            report = _silent
        try:
            with stop.abandonable():
                begun = _begin(recipe, resuming, report)
        except Abandoned:
            stop.leave("stopped before the first step; nothing is lost: the same command begins again")
        if isinstance(begun, Run):
            return begun
        setup, identity, checkpoint = begun
        everyone.main_does(lambda: _describe(setup, identity))
        _is_there(folder / ENVIRONMENT)
        done = 0 if checkpoint is None else checkpoint.step
        with display(title or recipe.method.name, setup.steps, done) as shown:
            # Not bound to a name: what the optimisers hold makes room for the model that is loaded in the end.
            evaluations = Loop(setup, shown, stop, checkpoint, identity=identity, reset_optimizer=reset_optimizer).run()
        run = _finish(setup, evaluations, stop)
        _report(setup, stop, report)
        return run


Begun = tuple[Setup, dict[str, Any], Checkpoint | None]


def _begin(recipe: Recipe, resuming: Resuming, report: Callable[[str], None]) -> Begun | Run:
    """Read and load everything; or find the run finished."""
    folder = Path(recipe.output)
    checkpoint = _resumable(recipe, folder, resuming, report)
    finished = _finished(recipe, folder, checkpoint)
    if finished is not None:
        report(f"{folder} is finished already; its model is in {finished.model}")
        if not finished.report.exists():
            from tutelage.reports.run_report import write_report  # brings the libraries of pages along

            report(f"report in {world().main_does(lambda: write_report(folder))}")
        return finished
    setup = prepare(recipe, report, None if checkpoint is None else checkpoint.folder)
    identity = identity_of(setup)
    if checkpoint is not None:
        for note in check_parts(identity, checkpoint.state["identity"], setup, resuming.allow_change):
            report(f"note: {note}")
        report(f"resuming from step {checkpoint.step}")
    return setup, identity, checkpoint


def _finish(setup: Setup, evaluations: list[dict[str, Any]], stop: StopRequest) -> Run:
    """Leave the evaluations and the model behind; the run is finished when both have their names."""
    try:
        with stop.abandonable():
            staging = write_export(setup, setup.steps, evaluations)
    except Abandoned:
        stop.leave(f"all {setup.steps} steps are done and saved; the same command writes the model")
    except Exception as error:
        if not is_full(error):
            raise
        raise Stopped(
            f"{no_space(setup.folder, model_bytes(setup.student.model))}; all {setup.steps} steps are done and saved; "
            "free some space, and the same command writes the model"
        ) from error
    world().main_does(lambda: _name(staging, evaluations))
    return Run(setup.folder, evaluations)


def _name(staging: Path, evaluations: list[dict[str, Any]]) -> None:
    text = json.dumps(evaluations, indent=1)
    write_whole(staging.with_name("evaluation.json"), lambda path: path.write_text(text, encoding="utf-8"))
    name_export(staging)


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """`only_writer` for the first process of a run, on behalf of all of them."""
    with ExitStack() as held:
        world().main_does(lambda: held.enter_context(only_writer(folder)) and None)
        yield


def _silent(line: str) -> None:
    """What every process has to say, the first one says."""


def _report(setup: Setup, stop: StopRequest, report: Callable[[str], None]) -> None:
    """Leave the report behind. It is the last thing: the run is finished, and stays so whatever happens here."""
    from tutelage.reports.run_report import report_run  # brings the libraries of pages along

    try:
        with stop.abandonable():
            report_run(setup)
    except Abandoned:
        report("note: stopped before the report was written; the same command writes it")
    except OSError as error:
        if not is_full(error):
            raise
        report(f"note: the report was not written ({error}); free some space, and the same command writes it")


def _resumable(recipe: Recipe, folder: Path, resuming: Resuming, report: Callable[[str], None]) -> Checkpoint | None:
    """Find the checkpoint to go on from, after comparing the recipe with the one that it was made with."""
    stored = folder / "config.yaml"
    if not _is_there(stored):
        return None
    if resuming.resume == "never":
        raise InputError(
            f"{folder} holds a run already; name another output, or leave out --resume never to go on with it"
        )
    checkpoint = world().main_does(
        lambda: newest_checkpoint(
            folder / "checkpoints", report, verify=resuming.verify, reset_optimizer=resuming.reset_optimizer
        )
    )
    if checkpoint is None:
        before = parse_yaml(stored.read_text(encoding="utf-8"), str(stored))
    else:
        before = checkpoint.state["identity"]["recipe"]
    changes = changed_keys(recipe, before, resuming.allow_change)
    if changes:
        keys = ",".join(change.partition(":")[0] for change in changes)
        raise InputError(
            f"{folder} holds a run of another recipe ({'; '.join(changes)}); name another output, undo the changes, "
            f"or go on all the same with --allow-change {keys}"
        )
    return checkpoint


def _is_there(path: Path) -> bool:
    """Whether a file of the run is there, as all processes see it; network file systems show what is new with delay.

    Raises:
        InputError: some of them see it, and others do not.
    """
    everyone, waited_until = world(), time.monotonic() + LATE
    seen = everyone.gather(path.exists())
    while any(seen) and not all(seen) and everyone.main_does(lambda: time.monotonic() < waited_until):
        time.sleep(0.5)
        seen = everyone.gather(path.exists())
    if any(seen) and not all(seen):
        raise InputError(
            f"only {sum(seen)} of the run's {len(seen)} processes see {path}; all of them write checkpoints and read "
            "them, so name an output on a file system that all hosts share, by the same path"
        )
    return seen[0]


def _finished(recipe: Recipe, folder: Path, checkpoint: Checkpoint | None) -> Run | None:
    if checkpoint is None:
        return None
    same_epochs = recipe.train.epochs is not None and (
        checkpoint.state["identity"]["recipe"]["train"]["epochs"] == recipe.train.epochs
    )
    wanted = checkpoint.state["steps"] if same_epochs else recipe.train.steps
    if wanted is None or checkpoint.step < wanted:
        return None
    evaluations = _evaluations(folder / "evaluation.json")
    if evaluations is None or not is_exported(folder / "model", checkpoint.step):
        return None
    return Run(folder, evaluations)


def _evaluations(path: Path) -> list[dict[str, Any]] | None:
    """What a finished run left behind; `None` where it is missing or damaged, and is written anew."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(entry, dict) for entry in found) else None


def _describe(setup: Setup, identity: dict[str, Any]) -> None:
    """Write down what the run is and what it runs on."""
    environment = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(setup.student.device),
        **{name: part for name, part in identity.items() if name != "recipe"},
    }
    texts = {"config.yaml": dump_recipe(setup.recipe), ENVIRONMENT: json.dumps(redacted(environment), indent=1)}
    for name, text in texts.items():
        write_whole(setup.folder / name, lambda path, text=text: path.write_text(text, encoding="utf-8"))
