"""`tutelage generate`: have a model answer a recipe's prompts, and write the answers as training data."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tutelage.config import Decoding
from tutelage.data import Example, Row, encode, read_rows
from tutelage.errors import InputError
from tutelage.models.language_model import LanguageModel
from tutelage.models.loading import load_model, load_tokenizer, stop_ids
from tutelage.recipe import Recipe, check_section
from tutelage.rollouts.decoding import decode
from tutelage.rollouts.texts import response_texts
from tutelage.training.setup import student_tokenizer
from tutelage.training.signals import StopRequest


def generate(
    recipe: Recipe,
    settings: Mapping[str, Any],
    *,
    by: Literal["teacher", "student"],
    rows: Literal["train", "validation"],
    out: str,
) -> None:
    """Write one response to each prompt into a JSONL file that can be trained on.

    Rows with `prompt` (or `messages`) and `completion` (or one more message) come out in the order of their
    batches; those that the file already holds are kept.

    Args:
        recipe: whose data and models.
        settings: keys of `Decoding`; the recipe's defaults otherwise.
        by: who writes.
        rows: whose prompts.
        out: the file.

    Raises:
        InputError: the settings are wrong, or the file was written with other settings.
        Stopped: a signal asked for it; what was written is in the file.
    """
    decoding = check_section(Decoding, settings, "decoding")
    path = Path(out)
    model, tokenizer = _writer(recipe, by)
    source = recipe.data.train if rows == "train" else recipe.data.validation
    if source is None:
        raise InputError("--rows validation: the recipe has no data.validation")
    limit = recipe.data.limit if rows == "train" else recipe.data.validation_limit
    read = read_rows(source, columns=recipe.data.columns, roles=recipe.data.roles, limit=limit)
    examples = encode(
        read, tokenizer, template=recipe.data.template, max_prompt_tokens=recipe.data.max_prompt_tokens,
        max_tokens=recipe.data.max_tokens, stop_ids=frozenset(model.stop_ids), encoder_decoder=model.is_encoder_decoder,
    )  # fmt: skip
    row_of = {row.where: row for row in read}
    written = _already_written(
        path,
        {
            "model": asdict(recipe.teacher if by == "teacher" and recipe.teacher else recipe.student),
            "rows": source,
            "decoding": asdict(decoding) | {"batch_size": 0},
            "seed": recipe.seed,
        },
    )
    missing = [example for example in examples if example.where not in written]
    print(f"{len(written):,} of {len(examples):,} rows are in {path} already" if written else f"writing {path}")
    with StopRequest() as stop, _bar() as bar:
        task = bar.add_task("generating", total=len(examples), completed=len(written))
        for start in range(0, len(missing), decoding.batch_size):
            batch = missing[start : start + decoding.batch_size]
            _append(path, batch, _answers(model, tokenizer, batch, decoding, recipe.seed), row_of)
            bar.advance(task, len(batch))
            if stop.requested and start + len(batch) < len(missing):
                done = len(written) + start + len(batch)
                stop.leave(f"wrote {done} of {len(examples)} rows; the same command goes on from here")


def _writer(recipe: Recipe, by: str):
    if by == "student":
        tokenizer = student_tokenizer(recipe)
        teacher = None
        if recipe.student.from_teacher is not None and recipe.teacher is not None:
            teacher = load_model(recipe.teacher, "teacher", seed=recipe.seed)
        model = load_model(recipe.student, "student", seed=recipe.seed, tokenizer=tokenizer, teacher=teacher)
    elif recipe.teacher is None:
        raise InputError("--by teacher: the recipe has no teacher; add teacher.model or write with --by student")
    else:
        tokenizer = load_tokenizer(recipe.teacher, "teacher")
        model = load_model(recipe.teacher, "teacher", seed=recipe.seed)
    return LanguageModel(model, stop_ids(model, tokenizer)), tokenizer


def _answers(model: LanguageModel, tokenizer, batch: Sequence[Example], decoding: Decoding, seed: int) -> list[str]:
    rollout = decode(model, [e.prompt for e in batch], decoding, seed=seed, places=[(e.item,) for e in batch])
    return response_texts(rollout, tokenizer)


def _append(path: Path, batch: Sequence[Example], answers: Sequence[str], row_of: Mapping[str, Row]) -> None:
    """Append finished rows; they are handed to the system before the next batch begins."""
    with path.open("a", encoding="utf-8") as file:
        for example, answer in zip(batch, answers, strict=True):
            row = row_of[example.where]
            if row.messages is not None:
                turns = list(row.messages)
                while turns and turns[-1]["role"] == "assistant":
                    turns.pop()
                content: dict[str, Any] = {"messages": [*turns, {"role": "assistant", "content": answer}]}
            else:
                content = {"prompt": row.prompt, "completion": answer}
            file.write(json.dumps({**content, "row": example.where}, ensure_ascii=False) + "\n")


def _already_written(path: Path, settings: Mapping[str, Any]) -> set[str]:
    """Return which rows the file holds, after checking that it was written with the same settings."""
    note = path.with_name(f"{path.name}.settings.json")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(settings), encoding="utf-8")
        return set()
    if not note.exists() or json.loads(note.read_text(encoding="utf-8")) != json.loads(json.dumps(settings)):
        raise InputError(f"{path} exists and was not written with these settings (see {note.name}); name another --out")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):  # cut short by a kill
        lines.pop()
        path.write_text("".join(lines), encoding="utf-8")
    return {json.loads(line)["row"] for line in lines}


def _bar() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
