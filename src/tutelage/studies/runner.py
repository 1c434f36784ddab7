"""Making the runs of a study, one after another or in shares, and going on where they stopped."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tutelage.errors import DivergedError, InputError
from tutelage.evaluation.assess import assess
from tutelage.sealing import write_whole
from tutelage.studies.plan import Planned
from tutelage.studies.study import Study
from tutelage.training.run import train

STATE = "study.json"
"""In a run's folder: whether it finished, and how long it took."""
Report = Callable[[str], None]


def run_all(
    study: Study,
    runs: Sequence[Planned],
    *,
    shard: tuple[int, int] = (1, 1),
    report: Report = print,
) -> None:
    """Make and measure the runs of a share that are not there yet.

    Args:
        study: what they are part of.
        runs: all of its runs, from `planned`.
        shard: which share of how many, from 1. The shares may run at the same time, on machines with one file system.
        report: told in one line each what is done.

    Raises:
        Stopped: a signal asked for it; the same command goes on.
        InputError: something in the recipes, the data or the models is wrong.
    """
    mine = [run for run in runs if run.kind != "start"][shard[0] - 1 :: shard[1]]
    for number, run in enumerate(mine, 1):
        report(f"run {number} of {len(mine)}: {run.name}, seed {run.seed}{_left(mine)}")
        _prepare(study, [r for r in runs if r.kind == "start" and r.seed == run.seed], run, report)
        with held(run.folder.parent / f".{run.folder.name}.lock", wait=False) as free:
            if free:
                _make(run, report)
            else:
                report(f"{run.folder}: another process is at it; left out")


def state_of(run: Planned) -> dict[str, Any] | None:
    """What is known of a run: its `status` (finished or diverged), `seconds`, and `error`; `None` before it ended."""
    try:
        found = json.loads((run.folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "status" in found else None


def function_named(name: str, key: str) -> Callable[..., Any]:
    """Find `module:function`.

    Raises:
        InputError: it is not there.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{key}: cannot find {name} ({error})") from None


def _make(run: Planned, report: Report) -> None:
    """Train and measure a run; note how it went."""
    begin, before = time.perf_counter(), state_of(run)
    try:
        if run.recipe is not None:
            train(run.recipe, title=f"{run.name}, seed {run.seed}", report=_quiet)
    except DivergedError as error:
        report(f"{run.name}, seed {run.seed}: failed: {error}")
        _note(run, {"status": "diverged", "seconds": time.perf_counter() - begin, "error": str(error)})
        return
    if run.tasks:
        data = run.folder.parent
        assess(
            run.tasks,
            student=run.student,
            teacher=run.teacher,
            name=run.name,
            data_folder=data,
            out=run.folder,
            report=_quiet,
        )
    if before is None or before["status"] != "finished":
        _note(run, {"status": "finished", "seconds": time.perf_counter() - begin})


def _prepare(study: Study, starts: Sequence[Planned], run: Planned, report: Report) -> None:
    """Data, models and starts of a seed, made once; other shares wait for them."""
    here = run.folder.parent
    ready = here / "prepared.json"
    if ready.exists() and all(state_of(start) for start in starts):
        return
    here.mkdir(parents=True, exist_ok=True)
    with held(here / ".prepare.lock", wait=True):
        if study.prepare is not None and not ready.exists():
            function_named(study.prepare, "prepare")(here, run.seed)
            write_whole(ready, lambda path: path.write_text(json.dumps({"prepare": study.prepare}), encoding="utf-8"))
        for start in starts:
            if state_of(start) is None:
                report(f"start: {start.name}, seed {start.seed}")
                _make(start, report)


@contextmanager
def held(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a file against other processes; without waiting, say whether that could be done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _note(run: Planned, state: Mapping[str, Any]) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    write_whole(run.folder / STATE, lambda path: path.write_text(json.dumps(state, indent=1), encoding="utf-8"))


def _left(runs: Sequence[Planned]) -> str:
    """How long the runs that are not done will take, going by those that are."""
    states = [state_of(run) for run in runs]
    done = [state["seconds"] for state in states if state is not None]
    left = len(states) - len(done)
    if not done or not left:
        return ""
    return f" ({len(done)} done, about {_time(left * sum(done) / len(done))} left)"


def _time(seconds: float) -> str:
    """A duration in words.

    >>> _time(90), _time(5), _time(7300)
    ('2 min', '5 s', '2.0 h')
    """
    return (
        f"{seconds:.0f} s"
        if seconds < 60
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def _quiet(line: str) -> None:
    """What the parts of a run say is too much beside many runs."""
