"""What a model answers to a task's items: written to a file as it comes, so an interruption costs one batch."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.evaluation.record import FOLDER, protocol_id
from tutelage.evaluation.subject import Advance, cut
from tutelage.rollouts.decoding import decode
from tutelage.rollouts.rollout import Rollout

if TYPE_CHECKING:
    from tutelage.data import Example
    from tutelage.evaluation.items import Item
    from tutelage.evaluation.task import Task
    from tutelage.models.language_model import LanguageModel

Line = Mapping[str, Any]


def responses_path(folder: Path, task: str) -> Path:
    """Where the responses to a task are, in the folder of a run or of an evaluated model."""
    return folder / FOLDER / f"{task}.responses.jsonl"


def answered(
    path: Path,
    task: "Task",
    student: "LanguageModel",
    tokenizer: Any,
    items: Sequence["Item"],
    examples: Sequence["Example"],
    *,
    key: Mapping[str, Any],
    advance: Advance,
) -> tuple[list[Rollout], list[list[str]]]:
    """Have a model answer every item once for each seed; answers that the file holds are not written again.

    Args:
        path: the file; its first line says what it was written with, and another one is begun anew.
        task: decoding, seeds and stop texts.
        student: who answers.
        tokenizer: turns ids into text.
        items: the items.
        examples: the same as ids, in the same order.
        key: what the answers depend on besides the task: the model, the items.
        advance: told what is done.

    Returns:
        For each seed the answers as a rollout in the order of the items, and as text.
    """
    header = {"written_with": protocol_id({**key, "decoding": task.decoding.law, "stop": task.stop})}
    known = _known(path, header)
    rollouts, texts = [], []
    for seed in task.seeds:
        missing = [row for row, item in enumerate(items) if (seed, item.place) not in known]
        advance("answering", len(items) - len(missing), len(items) * len(task.seeds))
        for rows in _batches(missing, task.decoding.batch_size * _BATCHES):
            written = decode(
                student,
                [examples[row].prompt for row in rows],
                task.decoding,
                seed=seed,
                places=[(row,) for row in rows],
                items=rows,
                on_progress=lambda more: advance("answering", more, len(items) * len(task.seeds)),
            )
            lines = [_line(seed, items[row], ids, student, tokenizer, task) for row, ids in
                     zip(rows, written.responses, strict=True)]  # fmt: skip
            _append(path, lines)
            known |= {(seed, line["item"]): line for line in lines}
        found = [known[seed, item.place] for item in items]
        rollouts.append(Rollout.of([e.prompt for e in examples], [line["ids"] for line in found], writer="student"))
        texts.append([line["response"] for line in found])
    return rollouts, texts


_BATCHES = 4
"""Batches between two writings to the file: enough that rows which end early make room for others."""


def _batches(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _line(seed: int, item: "Item", ids: Sequence[int], student: "LanguageModel", tokenizer: Any, task: "Task") -> Line:
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
    return {
        "item": item.place,
        "seed": seed,
        "prompt": item.prompt,
        "references": list(item.references),
        "response": cut(text, task.stop),
        "tokens": len(ids),
        "ended": ids[-1] in student.stop_ids,
        "ids": list(ids),
    }


def _append(path: Path, lines: Sequence[Line]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _known(path: Path, header: Mapping[str, Any]) -> dict[tuple[int, str], Line]:
    """The answers in the file, which is made anew where it was written with something else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [""]
    if lines[0] != json.dumps(header):
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return {}
    *whole, rest = lines[1:]
    if rest:  # cut short by a kill
        path.write_text("".join(f"{line}\n" for line in lines[:-1]), encoding="utf-8")
    found = [json.loads(line) for line in whole]
    return {(line["seed"], line["item"]): line for line in found}
