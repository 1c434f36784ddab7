"""Supervised distillation on data that do not change, with and without the teacher's cache, against TRL's `GKDTrainer`.

    python benchmarks/static_data.py [--steps 6] [--divergence forward_kl] [--toy]

Student 4 × 256, teacher 8 × 576, random Llamas with 49,152 ids, float32; 64 rows of 32 tokens of prompt and 64 of
response, 16 rows a step, so that an epoch is four steps; the same AdamW, clipping, divergence, rows and order of rows.
TRL runs with `lmbda` 0 and without recomputing activations. Each runs its own real loop: whenever TRL's trainer has
finished a step, ours makes one with the teacher, one from a cache of exact hidden states, and one from a cache of the
64 most probable tokens. What the captures took is printed above the table; they are made once for all epochs.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from task import PROMPT_TOKENS, STUDENT, TEACHER, TINY, Sizes, sections, write_tokenizer
from timing import machine, save, table

from tutelage.errors import InputError
from tutelage.models.language_model import pad
from tutelage.models.loading import load_model, load_tokenizer
from tutelage.recipe import Recipe, recipe_of
from tutelage.training.loop import Loop
from tutelage.training.progress import PlainDisplay
from tutelage.training.quiet import quiet_transformers
from tutelage.training.setup import Setup, prepare
from tutelage.training.signals import StopRequest

ROWS, BATCH, RESPONSE_TOKENS = 64, 16, 64
CACHES = {
    "tutelage": {},
    "tutelage, hidden states cached": {"kind": "hidden"},
    "tutelage, 64 tokens cached": {"kind": "top-k", "max_k": 64, "mass": 1.0},
}
BETAS = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd(0.5)": 0.5}
LEARNING_RATE = 1e-4


def recipe_for(task: dict[str, Any], divergence: str, cache: dict[str, Any]) -> Recipe:
    """Supervised distillation of a task, with or without a cache, in a folder of its own."""
    output = Path(task["output"]) / str(cache.get("kind"))
    return recipe_of(
        {
            **task,
            "method": {"name": "supervised-kd", "divergence": divergence},
            "train": {
                "steps": 1000, "batch_size": BATCH, "micro_batch_tokens": 4096, "learning_rate": LEARNING_RATE,
                "schedule": "constant",
            },
            "teacher_cache": cache,
            "output": str(output),
        }
    )  # fmt: skip


def task_in(folder: Path, vocabulary: int, student: Sizes, teacher: Sizes) -> dict[str, Any]:
    """The task, with responses of one length; the token that ends them is the last of the vocabulary."""
    task = sections(folder, vocabulary, student, teacher, "cpu")
    for role in ("student", "teacher"):
        write_tokenizer(folder / role, vocabulary - 1)
    path = Path(task["data"]["train"])
    ids = np.random.default_rng(1).integers(1, vocabulary - 1, size=(ROWS, RESPONSE_TOKENS - 1))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row, response in zip(rows, ids, strict=True):
        row["completion"] = " ".join(f"w{number}" for number in response)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return task


def our_step(setup: Setup) -> Callable[[], float]:
    """Our loop, one step a call; returns the loss."""
    setup.folder.mkdir(parents=True, exist_ok=True)
    loop = Loop(setup, PlainDisplay("", setup.steps, 0, Console(quiet=True)), StopRequest())
    done = iter(range(setup.steps))
    return lambda: loop.step(next(done))["loss"]


def with_trl(setup: Setup, steps: int, after: Callable[[], None]) -> tuple[list[float], list[float]]:
    """Run TRL's trainer; return the seconds and the losses of its steps."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    seconds, losses = [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            seconds.append(time.perf_counter() - self.start)
            after()

    recipe = setup.recipe
    assert recipe.teacher is not None
    tokenizer = load_tokenizer(recipe.student, "student")
    order = [row for step in range(steps) for row in setup.order.batch(step, BATCH)]
    examples = [setup.texts.train[row] for row in order]
    settings = GKDConfig(
        output_dir=str(setup.folder.parent / "trl"), per_device_train_batch_size=BATCH, num_train_epochs=1,
        gradient_accumulation_steps=1, lmbda=0.0, beta=BETAS[recipe.method.divergence], seq_kd=False,
        learning_rate=LEARNING_RATE, lr_scheduler_type="constant", weight_decay=0.01, max_grad_norm=1.0,
        gradient_checkpointing=False, bf16=False, use_cpu=True, report_to="none", logging_strategy="no",
        save_strategy="no", disable_tqdm=True, train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = GKDTrainer(
        model=load_model(recipe.student, "student", seed=0, tokenizer=tokenizer),
        teacher_model=load_model(recipe.teacher, "teacher", seed=0, tokenizer=tokenizer),
        args=settings,
        data_collator=collated,
        train_dataset=Dataset.from_dict(
            {"prompt_ids": [e.prompt for e in examples], "response_ids": [e.response for e in examples]}
        ),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.remove_callback(PrinterCallback)
    plain = trainer.training_step

    def watched(*arguments: Any, **options: Any) -> torch.Tensor:
        loss = plain(*arguments, **options)
        losses.append(loss.item())
        return loss

    trainer.training_step = watched
    trainer.train()
    return seconds, losses


def collated(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A batch as TRL's own collator makes it: the prompt is not in the labels."""
    ids, mask = pad([(*row["prompt_ids"], *row["response_ids"]) for row in rows], "right", torch.device("cpu"))
    labels = ids.masked_fill(mask == 0, -100)
    for row, tokens in zip(labels, rows, strict=True):
        row[: len(tokens["prompt_ids"])] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def time_in_turn(task: dict[str, Any], divergence: str, steps: int) -> dict[str, list[float]]:
    """A step of TRL's, one of each of ours, and so on; the first one of each warms up."""
    setups = {name: prepare(recipe_for(task, divergence, cache), note_capture) for name, cache in CACHES.items()}
    ours = {name: our_step(setup) for name, setup in setups.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ours}
    losses: dict[str, list[float]] = {name: [] for name in ours}

    def after() -> None:
        for name, step in ours.items():
            start = time.perf_counter()
            losses[name].append(step())
            seconds[name].append(time.perf_counter() - start)

    seconds["trl"], losses["trl"] = with_trl(setups["tutelage"], steps + 1, after)
    for name, found in losses.items():
        print(f"losses, {name}: {', '.join(f'{loss:.5f}' for loss in found)}")
        if "tokens" not in name and not np.allclose(found, losses["trl"], rtol=1e-2):
            raise InputError("they did not do the same work")
    return {name: times[1:] for name, times in seconds.items()}


def note_capture(line: str) -> None:
    """Print what is said about the cache."""
    if line.startswith("teacher cache"):
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="steps that are timed, after one to warm up")
    parser.add_argument("--divergence", choices=tuple(BETAS), default="forward_kl")
    parser.add_argument("--toy", action="store_true", help="tiny models: whether it runs, not how fast")
    options = parser.parse_args()
    quiet_transformers()
    vocabulary, student, teacher = (512, TINY, TINY) if options.toy else (49152, STUDENT, TEACHER)
    with tempfile.TemporaryDirectory() as folder:
        task = task_in(Path(folder), vocabulary, student, teacher)
        print(f"{machine()}; {options.divergence}, {ROWS} rows of {PROMPT_TOKENS + RESPONSE_TOKENS} tokens\n")
        seconds = time_in_turn(task, options.divergence, options.steps)
    print(f"\nseconds a step of {BATCH} rows\n")
    for name in CACHES:
        print(f"{table(seconds, name)}\n")
    save("static_data", seconds)


if __name__ == "__main__":
    main()
