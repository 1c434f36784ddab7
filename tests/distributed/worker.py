"""What a process of a distributed test does: `torchrun … worker.py JOBS.json`, each job a recipe to run.

A job may say after which step process `rank` gets a signal, as from a machine that is taken away.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from tutelage.errors import Stopped
from tutelage.recipe import recipe_of
from tutelage.training import loop as loop_module
from tutelage.training.run import train
from tutelage.world import joined


def signalled_after(step: int, rank: int, number: int) -> None:
    original = loop_module.Loop.step

    def step_then_signal(self, done):
        metrics = original(self, done)
        if done + 1 == step and int(os.environ["RANK"]) == rank:
            os.kill(os.getpid(), number)
        return metrics

    loop_module.Loop.step = step_then_signal


def main() -> None:
    torch.set_num_threads(1)
    plain = loop_module.Loop.step
    with joined() as everyone:
        for job in json.loads(Path(sys.argv[1]).read_text()):
            loop_module.Loop.step = plain
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
