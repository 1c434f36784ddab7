"""A step of on-policy distillation, and its memory, against TRL's `DistillationTrainer`.

    python benchmarks/on_policy_step.py [--rounds 5] [--divergence reverse_kl] [--checkpointing] [--toy]

Student 4 × 256, teacher 8 × 576, random Llamas with 49,152 ids, float32; 16 prompts of 32 tokens, 64 new tokens
each; the same AdamW, clipping and divergence. Each runs its own real loop: ours takes a step whenever TRL's trainer
has finished one. Stop tokens are never drawn, so both write and learn from the same number of tokens.

Memory is the peak of resident memory over three steps in a process of its own, less what was resident once models
and trainer were in place. TRL recomputes activations by default (gradient checkpointing): its memory is measured
both ways, its time without, which is faster, unless `--checkpointing` is given.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memory import forget_peak, peak
from task import STUDENT, TEACHER, TINY, sections
from timing import machine, save, table

from tutelage.errors import InputError
from tutelage.methods.gkd import GKD
from tutelage.models.loading import load_model, load_tokenizer
from tutelage.recipe import Recipe, recipe_of
from tutelage.training.loop import Loop
from tutelage.training.progress import PlainDisplay
from tutelage.training.quiet import quiet_transformers
from tutelage.training.setup import prepare
from tutelage.training.signals import StopRequest

ROWS, STEPS_FOR_MEMORY, MEBIBYTE = 16, 3, 2**20
BETAS = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd(0.5)": 0.5}
LEARNING_RATE = 1e-4


def recipe_for(task: dict[str, Any], divergence: str, tokens: int, precision: str = "float32") -> Recipe:
    """On-policy distillation of a task, whose steps write so many tokens for each prompt."""
    decoding = {"max_new_tokens": tokens, "batch_size": ROWS}
    return recipe_of(
        {
            **task,
            "method": {
                "name": "gkd", "student_fraction": 1.0, "divergence": divergence, "student_decoding": decoding
            },
            "train": {
                "steps": 1000, "batch_size": ROWS, "micro_batch_tokens": 4096, "learning_rate": LEARNING_RATE,
                "schedule": "constant", "precision": precision,
            },
        }
    )  # fmt: skip


def our_step(recipe: Recipe) -> Callable[[], int]:
    """Our loop, one step a call; returns the number of tokens written."""
    setup = prepare(recipe, report=lambda line: None)
    setup.folder.mkdir(exist_ok=True)
    loop = Loop(setup, PlainDisplay("", recipe.train.steps or 1, 0, _silent()), StopRequest())
    done = iter(range(recipe.train.steps or 1))
    return lambda: loop.step(next(done))["tokens"]


def trl_trainer(recipe: Recipe, steps: int, checkpointing: bool, callback: Any) -> Any:
    """TRL's trainer with the same models, prompts, optimiser and divergence."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    assert recipe.teacher is not None
    assert isinstance(recipe.method, GKD)
    tokenizer = load_tokenizer(recipe.student, "student")
    prompts = [json.loads(line)["prompt"] for line in Path(recipe.data.train).read_text().splitlines()]
    settings = DistillationConfig(
        output_dir=str(Path(recipe.output).parent / "trl"), per_device_train_batch_size=ROWS, max_steps=steps,
        gradient_accumulation_steps=1, max_completion_length=recipe.method.student_decoding.max_new_tokens,
        beta=BETAS[recipe.method.divergence], learning_rate=LEARNING_RATE, lr_scheduler_type="constant",
        weight_decay=0.01, max_grad_norm=1.0, gradient_checkpointing=checkpointing, bf16=False, use_cpu=True,
        report_to="none", logging_strategy="no", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    return DistillationTrainer(
        model=load_model(recipe.student, "student", seed=0, tokenizer=tokenizer),
        teacher_model=load_model(recipe.teacher, "teacher", seed=0, tokenizer=tokenizer),
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        callbacks=[callback],
    )


def with_trl(recipe: Recipe, rounds: int, checkpointing: bool, after: Callable[[], None], ready: Callable[[], None]):
    """Run TRL's trainer for `rounds` steps and one to warm up; return the seconds and the tokens of each step.

    Args:
        recipe: the task.
        rounds: steps that are timed.
        checkpointing: whether activations are recomputed.
        after: called after each step, out of the time.
        ready: called once the trainer is in place.
    """
    from transformers import PrinterCallback, TrainerCallback

    seconds, tokens = [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            seconds.append(time.perf_counter() - self.start)
            after()

    trainer = trl_trainer(recipe, rounds + 1, checkpointing, Clock())
    trainer.remove_callback(PrinterCallback)
    plain = trainer._generate_single_turn

    def counted(*arguments: Any, **options: Any):
        written = plain(*arguments, **options)
        tokens.append(sum(map(len, written)))
        return written

    trainer._generate_single_turn = counted
    ready()
    trainer.train()
    return seconds[1:], tokens


def time_in_turn(recipe: Recipe, rounds: int, checkpointing: bool) -> dict[str, list[float]]:
    """One step of TRL's, one of ours, and so on."""
    step, ours, written = our_step(recipe), [], []

    def after() -> None:
        start = time.perf_counter()
        written.append(step())
        ours.append(time.perf_counter() - start)

    theirs, their_tokens = with_trl(recipe, rounds, checkpointing, after=after, ready=lambda: None)
    print(f"tokens written in each step: tutelage {sorted(set(written))}, TRL {sorted(set(their_tokens))}\n")
    if set(written) != set(their_tokens):
        raise InputError("the two did not do the same work")
    return {"tutelage": ours[1:], "trl, checkpointing" if checkpointing else "trl": theirs}


def peak_of(who: str, recipe: Recipe) -> int:
    """Bytes that the steps of one of them need beyond the models."""
    if who == "tutelage":
        step = our_step(recipe)
        before = forget_peak()
        for _ in range(STEPS_FOR_MEMORY):
            step()
        return peak() - before
    before = []
    with_trl(
        recipe, STEPS_FOR_MEMORY - 1, who.endswith("checkpointing"), lambda: None, lambda: before.append(forget_peak())
    )
    return peak() - before[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--divergence", choices=tuple(BETAS), default="reverse_kl")
    parser.add_argument("--checkpointing", action="store_true", help="time TRL with its default, recomputation")
    parser.add_argument("--only", choices=("time", "memory"), help="measure one of the two")
    parser.add_argument("--toy", action="store_true", help="tiny models: whether it runs, not how fast")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # how it calls itself in a fresh process
    options = parser.parse_args()
    quiet_transformers()
    with tempfile.TemporaryDirectory() as folder:
        if options.toy:
            recipe = recipe_for(sections(Path(folder), 512, TINY, TINY, "cpu"), options.divergence, tokens=4)
        else:
            recipe = recipe_for(sections(Path(folder), 49152, STUDENT, TEACHER, "cpu"), options.divergence, tokens=64)
        if options.memory_of:
            print(peak_of(options.memory_of, recipe))
            return
        print(f"{machine()}; {options.divergence}\n")
        found = {}
        if options.only != "memory":
            found["seconds"] = time_in_turn(recipe, options.rounds, options.checkpointing)
            print(table(found["seconds"], "tutelage"))
    if options.only != "time":
        found["memory"] = {who: memory_in_fresh_process(who) for who in ("tutelage", "trl", "trl, checkpointing")}
        print(memory_table(found["memory"]))
    save("on_policy_step", found)


def memory_table(memory: dict[str, int]) -> str:
    """A table of peaks, with the ratio of ours to each."""
    lines = ["\n| | peak memory MiB | tutelage / this |", "|---|---|---|"]
    for who, needed in memory.items():
        lines.append(f"| {who} | {needed / MEBIBYTE:,.0f} | {memory['tutelage'] / needed:.2f} |")
    return "\n".join(lines)


def memory_in_fresh_process(who: str) -> int:
    """Run this script again for the memory of one of them."""
    command = [sys.executable, *sys.argv, "--memory-of", who]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def _silent() -> Any:
    from rich.console import Console

    return Console(quiet=True)


if __name__ == "__main__":
    main()
