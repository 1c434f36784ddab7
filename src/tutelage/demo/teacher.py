"""`make demo-teacher`: retrain the teacher that ships in this package, and put it in its place.

It is one `tutelage train` like any other, on rows that the task's generator writes. None of them is a held-out
problem. The numbers come out the same on the same kind of processor with the same number of threads.
"""

import shutil
from pathlib import Path

import torch

from tutelage.demo import task
from tutelage.recipe import load_recipe
from tutelage.training.quiet import quiet_transformers
from tutelage.training.run import train

HERE = Path(__file__).parent
SHIPPED = HERE / "teacher"
"""The teacher as it ships: a Hugging Face folder with its tokenizer."""
SEED = 1_000_000
"""Seed of the teacher's rows; the demo's own are small numbers."""
ROWS = 64_000


def retrain() -> None:
    """Write the rows, train, and replace the shipped weights."""
    torch.set_num_threads(1)  # the model is small, and sums come out the same on every machine of a kind
    quiet_transformers()
    folder = Path("runs/demo-teacher")
    task.tokenizer().save_pretrained(folder / "tokenizer")
    task.write(folder / "data", SEED, labels=ROWS, prompts=0, tests=500)
    run = train(load_recipe(HERE / "recipes" / "teacher.yaml"), title="teacher")
    shutil.rmtree(SHIPPED, ignore_errors=True)
    shutil.copytree(run.model, SHIPPED)
    print(f"the teacher in {SHIPPED} is new")


if __name__ == "__main__":
    retrain()
