"""What studies on the demo's task need besides its own data: labels, choices, plain text, rows for teachers."""

import json
import random
from itertools import pairwise
from pathlib import Path

from tutelage.demo import task
from tutelage.demo.run import prepare as prepare_demo

CHOICES, TEACHER_ROWS = 500, 32_000


def prepare(folder: Path, seed: int) -> None:
    """Write the demo's data and teacher, and beside them what studies use.

    `data/labelled-prompts.jsonl` has a right completion for each of the 8,000 prompts; `data/choices.jsonl` asks at a
    crossing of a test problem which town comes next, where only one is on a shortest way; `data/text.txt` is the 350
    labelled rows as running text.

    Args:
        folder: of the seed.
        seed: the same seed writes the same bytes.
    """
    prepare_demo(folder, seed)
    data = folder / "data"
    prompts = [tuple(row["prompt"].split()[1::2]) for row in _read(data / "prompts.jsonl")]
    _write(data / "labelled-prompts.jsonl", task.labelled(prompts, random.Random(seed + 2)))
    tests = [tuple(row["prompt"].split()[1::2]) for row in _read(data / "test.jsonl")]
    _write(data / "choices.jsonl", crossings(tests, random.Random(seed + 3))[:CHOICES])
    texts = [f"{row['prompt']} {row['completion']}" for row in _read(data / "labels.jsonl")]
    (data / "text.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8", newline="\n")


def prepare_teachers(folder: Path, seed: int) -> None:
    """Write the same and `data/teacher-rows.jsonl`, labelled rows to train teachers on.

    Args:
        folder: of the seed.
        seed: the same seed writes the same bytes.
    """
    prepare(folder, seed)
    draws = random.Random(seed + 4)
    _write(folder / "data" / "teacher-rows.jsonl", task.labelled(task.problems(TEACHER_ROWS, draws), draws))


def crossings(problems: list[task.Problem], rng: random.Random) -> list[dict]:
    """One question a problem: at a town on the way, which of its neighbours is next on a shortest way.

    Problems without a crossing where only one neighbour is right are left out.

    >>> crossings([("Cod", "Elm", "Rye", "Ivy")], random.Random(0))[0]
    {'prompt': 'from ... Ivy towns Cod Kay Elm drop Rye drop', 'choices': ['Dell', 'Elm', 'Ivy'], 'answer': 'Ivy'}
    """
    found = []
    for problem in problems:
        asked = []
        walked = f"{task.prompt_of(problem)} towns {problem[0]}"
        for town, goal in pairwise(problem):
            while town != goal:
                nearby = sorted(task.ROADS[town].values(), key=task.TOWNS.index)
                right = [near for near in nearby if _away(goal, near) < _away(goal, town)]
                if len(nearby) > 1 and len(right) == 1:
                    asked.append({"prompt": walked, "choices": nearby, "answer": right[0]})
                town = right[0]
                walked += f" {town}"
            walked += " drop"
        found += [rng.choice(asked)] if asked else []
    return found


def _away(goal: str, town: str) -> int:
    return task.distances(goal)[town]


def _read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
