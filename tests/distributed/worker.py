"""What a process of a distributed test does: `torchrun … worker.py JOBS.json`, each job a recipe to run.

A job may say after which step process `rank` gets a signal, as from a machine that is taken away; in which process
memory runs out once in the first step (`short`); and how large the
shards of a teacher's cache are, in which case each process lists those that it writes in `shards-RANK` beside the jobs.
"""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch

from tutelage.errors import Stopped
from tutelage.models.capture import plan_capture
from tutelage.models.score_store import ScoreStore
from tutelage.recipe import recipe_of
from tutelage.training import loop as loop_module
from tutelage.training import teacher_cache as cache_module
from tutelage.training.run import train
from tutelage.training.update import Updater
from tutelage.world import joined


def signalled_after(step: int, rank: int, number: int) -> None:
    original = loop_module.Loop.step

    def step_then_signal(self, done):
        metrics = original(self, done)
        if done + 1 == step and int(os.environ["RANK"]) == rank:
            os.kill(os.getpid(), number)
        return metrics

    loop_module.Loop.step = step_then_signal


def short_of_memory_once() -> None:
    original = Updater._own_gradients

    def runs_out(self, *arguments):
        Updater._own_gradients = original
        raise torch.OutOfMemoryError("out of memory")

    Updater._own_gradients = runs_out


def in_small_shards(size: int, listed: Path) -> None:
    cache_module.plan_capture = partial(plan_capture, shard_bytes=size)
    original = ScoreStore.write

    def write(self, keys, records):
        name, seal = original(self, keys, records)
        with listed.open("a") as file:
            file.write(f"{name}\n")
        return name, seal

    ScoreStore.write = write


def main() -> None:
    torch.set_num_threads(1)
    plain = loop_module.Loop.step
    with joined() as everyone:
        for job in json.loads(Path(sys.argv[1]).read_text()):
            loop_module.Loop.step = plain
            if "shard_bytes" in job:
                in_small_shards(job["shard_bytes"], Path(sys.argv[1]).with_name(f"shards-{everyone.rank}"))
            if job.get("short") == everyone.rank:
                short_of_memory_once()
            if "step" in job:
                signalled_after(job["step"], job["rank"], getattr(signal, job["signal"]))
            try:
                train(recipe_of(job["recipe"]), report=lambda line: None)
                outcome = "finished"
            except Stopped as stopped:
                outcome = str(stopped)
            outcomes = everyone.gather(outcome)
            if everyone.is_main:
                print(json.dumps(outcomes), flush=True)


if __name__ == "__main__":
    main()
