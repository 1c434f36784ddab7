"""The memory that `tutelage check` predicts, against the peak of a run of four steps in a process of its own.

    python benchmarks/predicted_memory.py [--toy]

Llamas of random weights: a student of 4 × 256, a teacher of 8 × 576, 49,152 ids; 32 sequences of 32 + 224 tokens.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from task import STUDENT, TEACHER, TINY, sections
from timing import machine, save

from tutelage import cli
from tutelage.commands.preflight import look
from tutelage.recipe import dump_recipe, load_recipe, recipe_of
from tutelage.training.memory import estimate, resident

TOLERANCE = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="a size of seconds")
    parser.add_argument("--predict", type=Path, help=argparse.SUPPRESS)  # how it calls itself in fresh processes,
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # whose memory nothing else has touched
    options = parser.parse_args()
    if options.predict is not None:
        print(_predicted(options.predict))
        return
    if options.measure is not None:
        cli.main(["train", str(options.measure)])
        print(resident())
        return
    print(f"{machine()}\n")
    print("| run | predicted GiB | measured GiB | predicted / measured | within 15 % |\n|---|---|---|---|---|")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, recipe in _recipes(Path(folder), toy=options.toy).items():
            path = Path(folder) / "recipe.yaml"
            path.write_text(recipe, encoding="utf-8")
            predicted, measured = _apart("--predict", path), _apart("--measure", path)
            found[name] = {"predicted": predicted, "measured": measured}
            within = abs(predicted / measured - 1) <= TOLERANCE
            figures = f"{predicted / 2**30:.2f} | {measured / 2**30:.2f} | {predicted / measured:.2f}"
            print(f"| {name} | {figures} | {'yes' if within else 'no'} |", flush=True)
    save("predicted_memory", found)


def _recipes(folder: Path, *, toy: bool) -> dict[str, str]:
    vocabulary, student, teacher = (1024, TINY, TINY) if toy else (49152, STUDENT, TEACHER)
    written = {"max_new_tokens": 8 if toy else 224, "batch_size": 32}
    common = sections(folder, vocabulary, student, teacher, "cpu")
    adapted = {**common["teacher"], "adapter": {"rank": 16}}
    variants: dict[str, dict[str, Any]] = {
        "micro-batches of 1,024 tokens": {"micro_batch_tokens": 1024},
        "of 4,096": {"micro_batch_tokens": 4096},
        "of 8,192": {"micro_batch_tokens": 8192},
        "of 8,192, activations recomputed": {"micro_batch_tokens": 8192, "gradient_checkpointing": True},
        "of 8,192, bfloat16": {"micro_batch_tokens": 8192, "precision": "bfloat16"},
    }
    students = {"of 4,096, an adapter on the teacher": adapted}
    variants |= {name: {"micro_batch_tokens": 4096} for name in students}
    recipes = {}
    for number, (name, changes) in enumerate(list(variants.items())[: 1 if toy else None]):
        mapping = {
            **common,
            "student": students.get(name, common["student"]),
            "method": {"name": "on-policy-kd", "student_decoding": written},
            "train": {"steps": 1 if toy else 4, "batch_size": 32, **changes},
            "output": str(folder / f"run-{number}"),
        }
        recipes[name] = dump_recipe(recipe_of(mapping))
    return recipes


def _predicted(path: Path) -> int:
    recipe = load_recipe(path)
    found = look(recipe)
    return int(estimate(recipe, found.student, found.teacher, found.texts.train)[-1].gibibytes * 2**30)


def _apart(option: str, path: Path) -> int:
    command = [sys.executable, __file__, option, str(path)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


if __name__ == "__main__":
    main()
