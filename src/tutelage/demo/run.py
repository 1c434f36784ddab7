"""`tutelage demo`: distil the courier's knowledge of the island into a student fourteen times smaller."""

import json
import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tutelage.config import Decoding, Model
from tutelage.data import Examples, encode, read_rows
from tutelage.demo import task
from tutelage.demo.teacher import HERE, SHIPPED
from tutelage.evaluation.generated import exact_answer
from tutelage.evaluation.intervals import Measurement
from tutelage.models.language_model import LanguageModel
from tutelage.models.loading import load_model, load_tokenizer, stop_ids
from tutelage.recipe import Recipe, load_recipe
from tutelage.reports.comparison_report import write_comparison
from tutelage.reports.page import Cell
from tutelage.reports.page import Table as PageTable
from tutelage.reports.run_files import read_run
from tutelage.reports.wording import size
from tutelage.rollouts.decoding import decode
from tutelage.rollouts.texts import response_texts
from tutelage.training.run import train

LABELS, PROMPTS, TESTS = 350, 8000, 500
START = {"start": ("start", "The student begins: fresh weights, fine-tuned on the 350 labelled rows")}
CONTINUATIONS = {
    "sft": ("more fine-tuning", "First way on: fine-tuning goes on, on the same 350 rows"),
    "supervised-kd": ("supervised KD", "Second way on: the teacher is matched on the same 350 rows"),
    "gkd": ("on-policy GKD", "Third way on: the student answers new prompts, the teacher is matched on what it wrote"),
}
"""The three ways on from the start: the name in the table, and the headline of the run."""
CONTROL = {"teacher-text": ("teacher's text", "Control: the teacher answers the new prompts, and is matched on that")}
ANSWER = "tutelage.demo.task:answer"


@dataclass(frozen=True)
class Line:
    """One line of the closing table."""

    name: str
    parameters: int
    greedy: Measurement
    sampled: Measurement
    seconds: float | None


def prepare(folder: Path, seed: int) -> None:
    """Write the demo's data and its teacher into a folder."""
    task.write(folder / "data", seed, labels=LABELS, prompts=PROMPTS, tests=TESTS)
    shutil.copytree(SHIPPED, folder / "teacher", dirs_exist_ok=True)


def demo_recipe(name: str, folder: Path, seed: int) -> Recipe:
    """One of the demo's recipes, with its paths in another folder than runs/demo."""
    recipe = load_recipe(HERE / "recipes" / f"{name}.yaml", ["--seed", str(seed)])

    def moved(path: str) -> str:
        return str(folder / Path(path).relative_to("runs/demo"))

    student = recipe.student
    return replace(
        recipe,
        student=replace(
            student,
            model=student.model and moved(student.model),
            tokenizer=student.tokenizer and moved(student.tokenizer),
        ),
        teacher=recipe.teacher and replace(recipe.teacher, model=moved(str(recipe.teacher.model))),
        data=replace(recipe.data, train=moved(recipe.data.train), validation=moved(str(recipe.data.validation))),
        output=moved(recipe.output),
    )


def run_demo(folder: str, seed: int, *, prepare_only: bool = False, control: bool = False) -> list[Line]:
    """Run the demo and print what came of it.

    Args:
        folder: where data, teacher and runs go; what is finished there is not done again.
        seed: of labels, prompts, weights and samples.
        prepare_only: write data and teacher and stop.
        control: also train on text that the teacher writes for the same prompts.
    """
    console, root = Console(highlight=False), Path(folder)
    torch.set_num_threads(1)  # for models this small, more threads only wait for each other
    prepare(root, seed)
    if prepare_only:
        console.print(Text(f"data in {root / 'data'}, teacher in {root / 'teacher'}"))
        return []
    _introduce(console)
    names = {**START, **CONTINUATIONS, **(CONTROL if control else {})}
    seconds = {}
    for name, (_, headline) in names.items():
        console.print(Text(f"\n{headline}", style="bold"))
        begin = time.perf_counter()
        train(demo_recipe(name, root, seed), title=name, report=lambda line: None)
        seconds[name] = time.perf_counter() - begin
    console.print(Text("\nMeasuring all of them on 500 unseen problems", style="bold"))
    lines = [_measured("teacher", root / "teacher", root, seed, None)]
    lines += [_measured(short, root / name / "model", root, seed, seconds[name]) for name, (short, _) in names.items()]
    console.print(_table(lines))
    report = _report(root, {name: short for name, (short, _) in names.items()}, lines)
    _conclude(console, root, lines, report)
    return lines


def _introduce(console: Console) -> None:
    console.print(Text("The courier knows this island by heart. The student has to learn it.\n", style="bold"))
    console.print(Text(task.MAP))
    row = task.labelled(task.problems(1, random.Random(7)), random.Random(7))[0]
    console.print(Text.assemble(("prompt    ", "dim"), row["prompt"], ("\nresponse  ", "dim"), row["completion"]))
    console.print(
        Text(
            "\nNo prompt shows the roads. 350 prompts have a response, 8,000 have none. Any walk along real roads that "
            "delivers at the three addresses in order is right; one step along a road that is not there is wrong."
        )
    )


def _measured(name: str, model: Path, root: Path, seed: int, seconds: float | None) -> Line:
    spec = Model(model=str(model))
    tokenizer = load_tokenizer(spec, "student")
    network = load_model(spec, "student", seed=seed)
    writer = LanguageModel(network, stop_ids(network, tokenizer))
    rows = read_rows(str(root / "data" / "test.jsonl"))
    examples: Examples = encode(
        rows, tokenizer, max_prompt_tokens=64, max_tokens=128, stop_ids=frozenset(writer.stop_ids)
    )

    def accuracy(strategy: str) -> Measurement:
        decoding = Decoding(strategy=strategy, max_new_tokens=36, batch_size=250)  # type: ignore[arg-type]
        rollout = decode(writer, [e.prompt for e in examples], decoding, seed=seed)
        return exact_answer(response_texts(rollout, tokenizer), [e.reference for e in examples], ANSWER)

    parameters = sum(p.numel() for p in network.parameters())
    return Line(name, parameters, accuracy("greedy"), accuracy("sample"), seconds)


def _table(lines: list[Line]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    for title in ("weights", "% right, greedy", "% right, sampled", "seconds"):
        table.add_column(title, justify="right")
    for line in lines:
        table.add_row(
            line.name,
            f"{line.parameters:,}",
            _percent(line.greedy),
            _percent(line.sampled),
            "" if line.seconds is None else f"{line.seconds:.0f}",
        )
    return table


def _percent(m: Measurement) -> str:
    return f"{100 * m.value:.1f} ({100 * m.low:.1f}–{100 * m.high:.1f})"


def _report(root: Path, names: Mapping[str, str], lines: list[Line]) -> Path:
    """Write the page that compares the runs; return it."""
    runs = [read_run(root / name, short) for name, short in names.items()]
    rows = [
        [Cell(line.name), Cell(f"{line.parameters:,}"), _cell(line.greedy), _cell(line.sampled),
         Cell(f"{line.seconds:.0f}" if line.seconds and line.seconds >= 1 else "–")]
        for line in lines
    ]  # fmt: skip
    note = f"Over {lines[0].greedy.n} problems that no training row holds; in brackets: 95 % intervals."
    table = PageTable(("", "weights", "right, greedy", "right, sampled", "seconds"), rows, note=note)
    best = max(lines[1:], key=lambda line: line.greedy.value)
    others = ", ".join(f"{line.name} {_share(line.greedy)}" for line in lines[1:] if line is not best)
    sentence = (
        f"{best.name} gets {_share(best.greedy)} of the problems right with {size(best.parameters)} weights, its "
        f"teacher {_share(lines[0].greedy)} with {size(lines[0].parameters)}; {others}."
    )
    return write_comparison(runs, root / "report.html", [table], sentence[:1].upper() + sentence[1:])


def _cell(m: Measurement) -> Cell:
    return Cell(_share(m), f"({100 * m.low:.1f}–{100 * m.high:.1f})")


def _share(m: Measurement) -> str:
    return f"{100 * m.value:.1f}\u00a0%"


def _conclude(console: Console, root: Path, lines: list[Line], report: Path) -> None:
    figures = [
        {"name": line.name, "parameters": line.parameters, "greedy": line.greedy.as_dict(),
         "sampled": line.sampled.as_dict(), "seconds": line.seconds}
        for line in lines
    ]  # fmt: skip
    (root / "demo.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    console.print(
        Text(
            "\n95 % intervals in brackets, over 500 problems that no training row holds. Everything lies in "
            f"{root}: data/, teacher/, and for each run a folder with config.yaml, metrics.jsonl and model/."
            f"\nThe runs side by side, with what the student still gets wrong, token by token: {report}"
            f"\nAgain from there:  tutelage train {root}/gkd/config.yaml --output runs/mine --train.steps 500"
        )
    )
