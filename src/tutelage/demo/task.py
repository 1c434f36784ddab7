"""The courier: walk an island from town to town and drop a parcel at each address, in order.

The island is the map below and never changes, so its roads are facts that a model has to know by heart:
they are in no prompt. A prompt names the start and three addresses. A completion tells the walk, in one
of two styles: `towns` lists the towns passed, `roads` also says which way each road leaves. Where two
roads are equally short, either is right, so the teacher has several good ways to go on, and a step along
a road that is not there spoils the rest.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAP = """\
Nut---Tor---Fir---Wye---Yew
|     |     |           |
Quay--Hay---Zeal--Jet   Glen
            |     |     |
Pea---Ash---Sea   Ivy---Oak
|     |           |     |
Vale--Lea   Dell--Rye   Cod
      |           |     |
Bay---Urn---Moor--Elm---Kay
"""
CELL = 6
STOPS = 3
SHORTEST, LONGEST = 5, 12
STYLES = ("roads", "towns")
LONGEST_COMPLETION = 2 + 2 * LONGEST + STOPS
"""Words of the longest completion, without the end-of-sequence token."""
PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"

Problem = tuple[str, ...]
"""The start and the addresses, in order."""
Row = dict[str, str]


def _roads() -> dict[str, dict[str, str]]:
    lines = [line.ljust(5 * CELL) for line in MAP.splitlines()]
    grid = [[line[x : x + CELL].strip(" -") for x in range(0, 5 * CELL, CELL)] for line in lines[::2]]
    roads: dict[str, dict[str, str]] = {town: {} for row in grid for town in row}
    for y, row in enumerate(grid):
        for x, town in enumerate(row):
            if lines[2 * y][x * CELL + CELL - 1] == "-":
                roads[town]["e"], roads[row[x + 1]]["w"] = row[x + 1], town
            if y + 1 < len(grid) and lines[2 * y + 1][x * CELL] == "|":
                roads[town]["s"], roads[grid[y + 1][x]]["n"] = grid[y + 1][x], town
    return roads


ROADS = _roads()
"""For each town the roads that leave it: direction (n, e, s, w) to the next town."""
TOWNS = tuple(sorted(ROADS))


@cache
def distances(goal: str) -> dict[str, int]:
    """Roads on the shortest way from each town to `goal`."""
    away = {goal: 0}
    reached = [goal]
    for town in reached:
        for nearby in ROADS[town].values():
            if nearby not in away:
                away[nearby] = away[town] + 1
                reached.append(nearby)
    return away


def _held_out(problem: Problem) -> bool:
    """Whether a problem belongs to the test: decided by its hash, so no seed can move it into training."""
    return hashlib.sha256(" ".join(problem).encode()).digest()[0] < 32


def problems(count: int, rng: random.Random, *, test: bool = False) -> list[Problem]:
    """Draws different problems, all from the training side or all from the test side.

    Args:
        count: How many problems.
        rng: Where the chance comes from.
        test: Whether to draw from the eighth of all problems that is held out.

    Returns:
        Starts with their addresses, in the order drawn.

    >>> problems(1, random.Random(0), test=True) == problems(1, random.Random(0))
    False
    """
    if count < 0 or count > (10_000 if test else 100_000):
        raise InputError(
            f"cannot draw {count} different {'test' if test else 'training'} problems; "
            f"ask for 0 to {10_000 if test else 100_000}"
        )
    found: dict[Problem, None] = {}
    while len(found) < count:
        problem = tuple(rng.sample(TOWNS, STOPS + 1))
        length = sum(distances(goal)[town] for town, goal in pairwise(problem))
        if SHORTEST <= length <= LONGEST and _held_out(problem) == test:
            found[problem] = None
    return list(found)


def prompt_of(problem: Problem) -> str:
    """Says a problem in words.

    >>> prompt_of(("Elm", "Sea", "Zeal", "Cod"))
    'from Elm to Sea then Zeal then Cod'
    """
    start, *addresses = problem
    return f"from {start} to " + " then ".join(addresses)


def completion_of(problem: Problem, rng: random.Random, style: str | None = None) -> str:
    """Walks a shortest way through all addresses, ties and style by chance.

    >>> completion_of(("Cod", "Elm", "Rye", "Ivy"), random.Random(0), "roads")
    'roads Cod s Kay w Elm drop n Rye drop n Ivy drop'
    >>> completion_of(("Cod", "Elm", "Rye", "Ivy"), random.Random(0), "towns")
    'towns Cod Kay Elm drop Rye drop Ivy drop'
    """
    style = style or rng.choice(STYLES)
    town = problem[0]
    words = [style, town]
    for goal in problem[1:]:
        away = distances(goal)
        while town != goal:
            road, town = rng.choice([(r, t) for r, t in ROADS[town].items() if away[t] < away[town]])
            words += [road, town] if style == "roads" else [town]
        words.append("drop")
    return " ".join(words)


def answer(text: str) -> str | None:
    """Reads the answer out of a completion: the start and the towns where a parcel was dropped.

    Every step is checked against the map; a way need not be the shortest to be right.

    Returns:
        The towns, parted by blanks, or None where the text is not a walk along the roads.

    >>> answer("towns Cod Kay Elm drop Rye drop Ivy drop")
    'Cod Elm Rye Ivy'
    >>> answer("towns Cod Elm drop Rye drop Ivy drop") is None  # no road leads from Cod to Elm
    True
    """
    words = iter(text.split())
    style, town = next(words, ""), next(words, "")
    if style not in STYLES or town not in ROADS:
        return None
    drops = [town]
    for word in words:
        if word == "drop":
            drops.append(town)
        elif style == "towns" and word in ROADS[town].values():
            town = word
        elif style == "roads" and word in ROADS[town] and next(words, None) == ROADS[town][word]:
            town = ROADS[town][word]
        else:
            return None
    return " ".join(drops)


def is_correct(prompt: str, response: str) -> bool:
    """Whether a response walks along roads and drops at all addresses of the prompt, in order.

    >>> is_correct("from Cod to Elm then Rye then Ivy", "towns Cod Kay Elm drop Rye drop Ivy drop")
    True
    >>> is_correct("from Cod to Rye then Elm then Ivy", "towns Cod Kay Elm drop Rye drop Ivy drop")
    False
    """
    return answer(response) == " ".join(prompt.split()[1::2])


def rewards(prompts: Sequence[str], responses: Sequence[str], references: Sequence[str]) -> list[float]:
    """A reward for methods that take one: 1 for a right response, 0 for a wrong one.

    >>> rewards(["from Cod to Elm then Rye then Ivy"], ["towns Cod Kay Elm drop Rye drop Ivy drop"], [""])
    [1.0]
    """
    return [float(is_correct(prompt, response)) for prompt, response in zip(prompts, responses, strict=True)]


def labelled(drawn: list[Problem], rng: random.Random) -> list[Row]:
    """Rows with prompt and completion.

    >>> labelled([("Cod", "Oak", "Glen", "Yew")], random.Random(0))[0]["prompt"]
    'from Cod to Oak then Glen then Yew'
    """
    return [{"prompt": prompt_of(problem), "completion": completion_of(problem, rng)} for problem in drawn]


def unlabelled(drawn: list[Problem]) -> list[Row]:
    """Rows with a prompt alone.

    >>> unlabelled([("Cod", "Oak", "Glen", "Yew")])
    [{'prompt': 'from Cod to Oak then Glen then Yew'}]
    """
    return [{"prompt": prompt_of(problem)} for problem in drawn]


def write(folder: Path | str, seed: int, *, labels: int, prompts: int, tests: int) -> dict[str, Path]:
    """Writes `labels.jsonl`, `prompts.jsonl` and `test.jsonl`; no problem is in two of them.

    Args:
        folder: Where to; made if it is not there.
        seed: The same seed writes the same bytes.
        labels: Rows with prompt and completion.
        prompts: Rows with a prompt alone.
        tests: Held-out rows with prompt and one of the right completions.

    Returns:
        The three files by name, without the ending.
    """
    rng = random.Random(seed)
    drawn = problems(labels + prompts, rng)
    held_out = problems(tests, rng, test=True)
    texts = random.Random(seed + 1)
    rows = {
        "labels": labelled(drawn[:labels], texts),
        "prompts": unlabelled(drawn[labels:]),
        "test": labelled(held_out, texts),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.jsonl" for name in rows}
    for name, file in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows[name])
        file.write_text(lines, encoding="utf-8", newline="\n")
    return files


def tokenizer() -> "PreTrainedTokenizerFast":
    """One token a word: towns, directions, styles and a few small words, with pad and end-of-sequence.

    >>> coder = tokenizer()
    >>> coder.decode(coder("from Elm to Sea then Zeal then Cod").input_ids)
    'from Elm to Sea then Zeal then Cod'
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = [PAD, EOS, UNKNOWN, *TOWNS, "n", "e", "s", "w", "from", "to", "then", "drop", *STYLES]
    plain = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    plain.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )
