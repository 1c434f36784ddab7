"""`tutelage study`: a grid of runs, and the tables and figures that it ends in."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from tutelage.errors import DivergedError, InputError
from tutelage.studies.figures import Outcome
from tutelage.studies.gather import Entry, gathered, outcome
from tutelage.studies.page import write_results
from tutelage.studies.plan import Planned, planned
from tutelage.studies.runner import function_named, held, run_all, state_of
from tutelage.studies.study import Study, load_study
from tutelage.training.quiet import quiet_transformers


def study(
    path: str,
    *,
    overrides: Sequence[str] = (),
    folder: str | None = None,
    seeds: Sequence[int] = (),
    shard: str | None = None,
    collect_only: bool = False,
    dry_run: bool = False,
) -> None:
    """Run a study, or go on with it, and collect its tables and figures.

    Args:
        path: of its YAML file.
        overrides: recipe keys for every run.
        folder: where the runs go; by default `runs/studies/NAME`, of the study whose runs it takes if it takes some.
        seeds: in place of the study's own.
        shard: `i/n`: make the i-th of n shares of the runs.
        collect_only: make no run.
        dry_run: only list the runs, once all recipes and tasks are checked.

    Raises:
        InputError: the study, a recipe, a task, the data or the models are wrong.
        DivergedError: everything was done, and some runs diverged.
        Stopped: a signal asked for it; the same command goes on.
    """
    found, beside = load_study(path), Path(path).parent
    place, share = Path(folder or f"runs/studies/{found.folder or found.name}"), _share(shard)
    runs = planned(found, beside, place, seeds=seeds, overrides=overrides)
    if dry_run:
        _list(found, runs)
        return
    quiet_transformers()
    if found.threads is not None:
        torch.set_num_threads(found.threads)
    if not collect_only:
        run_all(found, runs, shard=share)
    missing = [run for run in runs if run.tasks and state_of(run) is None]
    if missing and not collect_only:
        print(f"{len(missing)} of {len(runs)} runs are still to be made by other shares; --collect when they are there")
        return
    entries = gathered(runs)
    with held(place / ".results.lock", wait=True):  # two shares may end at once
        print(f"results in {write_results(found, entries, _outcomes(found, entries), place)}")
    failed = [entry for entry in entries if entry.status == "diverged"]
    if failed:
        names = ", ".join(f"{entry.name} (seed {entry.seed})" for entry in failed)
        raise DivergedError(f"{len(failed)} of {len(entries)} runs diverged: {names}; the others are in the results")


def _outcomes(study: Study, entries: Sequence[Entry]) -> list[Outcome]:
    if study.function is not None:
        return list(function_named(study.function, "function")(study.settings))
    return [outcome(output, entries) for output in study.collect]


def _share(text: str | None) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text or "1/1")
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--shard {text}: expected the number of a share and how many there are, such as 1/4")
    return int(match[1]), int(match[2])


def _list(study: Study, runs: Sequence[Planned]) -> None:
    print(study.title)
    for run in runs:
        state = "not yet" if (known := state_of(run)) is None else known["status"]
        print(f"{state:9} {run.kind:5} {run.name}, seed {run.seed}: {run.folder}")
    minutes = "" if study.minutes is None else f"; about {study.minutes:g} min with one process"
    print(f"{len(runs)} runs{minutes}")
