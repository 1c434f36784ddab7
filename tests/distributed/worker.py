"""What a process of a distributed test does: `torchrun … worker.py JOBS.json`, each job a recipe to run.

A job may say after which step process `rank` gets a signal, as from a machine that is taken away; in which process
memory runs out once in the first step (`short`); how large the shards of a teacher's cache are, in which case each
process lists those that it writes in `shards-RANK` beside the jobs; how large a file of a checkpoint may be
(`file_bytes`), in which case each process notes in `OUTPUT-RANK.json` how much it has of each trained module; and that
process `rank` finds the disk full, or is killed, when it writes some of these files (`writes`, counted from 1; `do`).
Where a job names a folder for each process (`folders`), the process works there from then on.
"""

import errno
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from tutelage.errors import TutelageError
from tutelage.models import gathering
from tutelage.models.capture import plan_capture
from tutelage.models.score_store import ScoreStore
from tutelage.recipe import recipe_of
from tutelage.training import loop as loop_module
from tutelage.training import run as run_module
from tutelage.training import teacher_cache as cache_module
from tutelage.training.run import train
from tutelage.training.update import Updater
from tutelage.world import joined, leave


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


def in_small_files(size: int, parts: Path) -> None:
    gathering.FILE_BYTES = size
    original = loop_module.Loop._save

    def save(self):
        counts = {
            name: [sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in module.parameters()),
                   sum(p.numel() for p in module.parameters())]
            for name, module in self._updater.modules.items()
        }  # fmt: skip
        parts.write_text(json.dumps(counts))
        original(self)

    loop_module.Loop._save = save


def fails_to_write(calls: list[int], how: str) -> None:
    original, made = gathering.save_file, 0

    def save_file(tensors, path, metadata):
        nonlocal made
        made += 1
        if made in calls:
            path.write_bytes(b"half")
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(tensors, path, metadata)

    gathering.save_file = save_file


def main() -> None:
    torch.set_num_threads(1)
    plain, save, save_file = loop_module.Loop.step, loop_module.Loop._save, gathering.save_file
    with joined() as everyone:
        for job in json.loads(Path(sys.argv[1]).read_text()):
            loop_module.Loop.step, loop_module.Loop._save, gathering.save_file = plain, save, save_file
            if "file_bytes" in job:
                in_small_files(job["file_bytes"], Path(f"{job['recipe']['output']}-{everyone.rank}.json"))
            if "writes" in job and job["rank"] == everyone.rank:
                fails_to_write(job["writes"], job["do"])
            if "folders" in job:
                os.chdir(job["folders"][everyone.rank])
                run_module.LATE = 0.0
            if "shard_bytes" in job:
                in_small_shards(job["shard_bytes"], Path(sys.argv[1]).with_name(f"shards-{everyone.rank}"))
            if job.get("short") == everyone.rank:
                short_of_memory_once()
            if "step" in job:
                signalled_after(job["step"], job["rank"], getattr(signal, job["signal"]))
            try:
                train(recipe_of(job["recipe"]), report=lambda line: None)
                outcome = "finished"
            except TutelageError as error:
                outcome = str(error)
            outcomes = everyone.gather(outcome)
            if everyone.is_main:
                print(json.dumps(outcomes), flush=True)


if __name__ == "__main__":
    main()
    leave(0)
