"""How long a user waits before anything happens: help, a mistake in a recipe, imports, a check, encoding.

    python benchmarks/startup.py [--rounds 5] [--toy]
    python benchmarks/startup.py --tokenizer FOLDER --rows FILE     the time of encoding alone

Each command runs in a fresh process. `transformers` is there for comparison: training needs its model classes,
and importing those is what a run's start-up consists of.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from task import TINY, sections
from timing import in_turn, machine, save
from transformers import AutoTokenizer

from tutelage.data import encode, read_rows
from tutelage.recipe import dump_recipe, recipe_of
from tutelage.training.quiet import quiet_transformers

MISTAKE = "a mistake in a recipe"
PYTHON = [sys.executable, "-c"]
COMMANDS: dict[str, list[str]] = {
    "python": [*PYTHON, "pass"],
    "import tutelage": [*PYTHON, "import tutelage"],
    "tutelage --help": [sys.executable, "-m", "tutelage", "--help"],
    "import torch": [*PYTHON, "import torch"],
    "tutelage.linear_divergence": [*PYTHON, "import tutelage; tutelage.linear_divergence"],
    "transformers' models": [*PYTHON, "from transformers import PreTrainedModel"],
    "tutelage.train": [*PYTHON, "import tutelage; tutelage.train"],
}


def commands(folder: Path, toy: bool) -> dict[str, list[str]]:
    """The commands, with those that need a recipe."""
    task = sections(folder, 512, TINY, TINY, "cpu")
    recipe = dump_recipe(recipe_of({**task, "method": {"name": "on-policy-kd"}, "train": {"steps": 1}}))
    (folder / "right.yaml").write_text(recipe, encoding="utf-8")
    (folder / "wrong.yaml").write_text(recipe.replace("batch_size", "batch_sise", 1), encoding="utf-8")
    mistake = {MISTAKE: [sys.executable, "-m", "tutelage", "train", str(folder / "wrong.yaml")]}
    quick = dict(list(COMMANDS.items())[:3]) if toy else COMMANDS
    check = {"tutelage check": [sys.executable, "-m", "tutelage", "check", str(folder / "right.yaml")]}
    return {**quick, **mistake, **({} if toy else check)}


def seconds_to_encode(tokenizer: str, rows: str, rounds: int) -> list[float]:
    """Read rows, then encode them some times."""
    loaded, read = AutoTokenizer.from_pretrained(tokenizer), read_rows(rows)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        examples = encode(read, loaded, max_prompt_tokens=10**9, max_tokens=10**9)
        seconds.append(time.perf_counter() - start)
    tokens = sum(len(example.prompt) + len(example.response) for example in examples.kept)
    median = statistics.median(seconds)
    print(f"{len(read):,} rows, {tokens:,} tokens: {median:.2f} s ({min(seconds):.2f}–{max(seconds):.2f})")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokenizer", help="folder of a tokenizer")
    parser.add_argument("--rows", help="file of rows to encode with it")
    parser.add_argument("--toy", action="store_true", help="the quick commands only")
    options = parser.parse_args()
    quiet_transformers()
    print(f"{machine()}\n")
    if options.tokenizer:
        save("encoding", {"encoding": seconds_to_encode(options.tokenizer, options.rows, options.rounds)})
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: lambda name=name, words=words: run(words, status=2 if name == MISTAKE else 0)
            for name, words in commands(Path(folder), options.toy).items()
        }
        seconds = in_turn(runs, options.rounds)
    print("| | median s | spread |\n|---|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {statistics.median(times):.2f} | {min(times):.2f}–{max(times):.2f} |")
    save("startup", seconds)


def run(words: list[str], status: int) -> None:
    """Run a command, which has to end with the given status."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != status:
        raise SystemExit(f"{words} ended with status {done.returncode}, not {status}: {done.stderr}")


if __name__ == "__main__":
    main()
