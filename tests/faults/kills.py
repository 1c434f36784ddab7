"""Random kills of a family of methods until enough of them have hit, with the count of what they cost."""

import itertools
import random
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.runs import assert_same_results, run, start, write_recipe


@dataclass
class Tally:
    """What a series of kills came to."""

    kills: int = 0
    resumes: int = 0
    """Starts that went on from a checkpoint."""
    finished: int = 0
    """Runs that came to their end, each compared with the uninterrupted one."""
    lost: int = 0
    """Runs that could not go on, or ended as something else."""
    redone: int = 0
    """Steps made more than once."""
    seconds: float = 0.0
    duration: float = 0.0
    """Seconds of the fastest run in one piece."""


def kill_at_random(folder: Path, method: str, kills: int, seed: int = 0) -> Tally:
    """Kill runs of a method with SIGKILL at random moments, go on with each until it is finished, and compare.

    Args:
        folder: an empty folder.
        method: one of `FAMILIES`.
        kills: how many have to hit a run that is going on.
        seed: of the moments.
    """
    begun = time.monotonic()
    words = write_recipe(folder, method, "whole")
    run(words, folder / "log")  # the first one pays for what is set up lazily
    shutil.rmtree(folder / "whole")
    start_of_whole = time.monotonic()
    run(words, folder / "log")
    tally, moments = Tally(duration=time.monotonic() - start_of_whole), random.Random(seed)
    for number in itertools.count():
        if tally.kills >= kills:
            break
        words = write_recipe(folder, method, f"run-{number}")
        _to_the_end(folder, f"run-{number}", words, moments, kills, tally)
        shutil.rmtree(folder / f"run-{number}")
    tally.seconds = time.monotonic() - begun
    return tally


def _to_the_end(folder: Path, name: str, words: list[str], moments: random.Random, kills: int, tally: Tally) -> None:
    furthest = 0
    for attempt in itertools.count():
        begun = time.monotonic()
        child = start(words, folder / "log")
        kill_after = moments.uniform(0, tally.duration) if tally.kills < kills else 60.0
        status = child.poll()
        while status is None and time.monotonic() < begun + kill_after:
            time.sleep(0.001)
            status = child.poll()
        if status is None:
            child.kill()
            status = child.wait()
        resumed = re.search(r"resuming from step (\d+)", child.said)
        if resumed:
            tally.resumes += 1
            tally.redone += max(0, furthest - int(resumed.group(1)))
        furthest = max(furthest, _steps_logged(folder / name))
        if status == -9:
            tally.kills += 1
            continue
        if status == 0:
            if attempt == 0:
                tally.duration = min(tally.duration, time.monotonic() - begun)
            assert_same_results(folder / name, folder / "whole")
            tally.finished += 1
        else:
            tally.lost += 1
            print(f"{' '.join(words)}: exit status {status}\n{child.said}")
        return


def _steps_logged(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    if not path.exists():
        return 0
    found = re.findall(r'^\{"step": (\d+), "loss"', path.read_text(encoding="utf-8"), re.MULTILINE)
    return max(map(int, found), default=0)
