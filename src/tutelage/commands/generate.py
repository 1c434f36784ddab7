"""`tutelage generate`: have a model answer a recipe's prompts, and write the answers as training data."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tutelage.commands.preflight import check_writable
from tutelage.config import Decoding
from tutelage.data import Example, Row
from tutelage.errors import InputError
from tutelage.models.language_model import LanguageModel
from tutelage.models.loading import load_model, load_tokenizer, stop_ids
from tutelage.models.pairing import positions
from tutelage.recipe import Recipe, check_section
from tutelage.rollouts.decoding import decode
from tutelage.rollouts.rollout import Rollout
from tutelage.rollouts.texts import response_texts
from tutelage.training.setup import student_tokenizer
from tutelage.training.signals import Abandoned, listening
from tutelage.training.texts import Reader, describe_counts, encoded, rows_of, token_notes


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
    check_writable(path.parent)
    read = rows_of(recipe, rows)
    model, tokenizer = _writer(recipe, by)
    reader = Reader(tokenizer, model.stop_ids, model.is_encoder_decoder, positions(model.model))
    examples = encoded(recipe, read, reader, decoding.max_new_tokens)
    print(f"data: {describe_counts(rows, examples)}")
    for note in [*read.notes, *token_notes(examples.kept, reader)]:
        print(f"note: {note}")
    row_of = {row.where: row for row in read}
    writer = recipe.teacher if by == "teacher" and recipe.teacher else recipe.student
    written = _already_written(
        path,
        {
            "model": asdict(writer),
            "rows": recipe.data.train if rows == "train" else recipe.data.validation,
            "decoding": decoding.law | {"batch_size": 0},
            "seed": recipe.seed,
        },
        defaults={"model": {field.name: field.default for field in fields(writer)}, "decoding": Decoding().law},
    )
    missing = [example for example in examples if example.where not in written]
    print(f"{len(written):,} of {len(examples):,} rows are in {path} already" if written else f"writing {path}")
    done, cut = len(written), 0
    with listening() as stop, _bar() as bar:
        task = bar.add_task("generating", total=len(examples), completed=len(written))
        for start in range(0, len(missing), decoding.batch_size):
            batch = missing[start : start + decoding.batch_size]
            try:
                with stop.abandonable():
                    rollout = _answers(model, batch, decoding, recipe.seed)
            except Abandoned:
                stop.leave(f"wrote {done} of {len(examples)} rows; the same command goes on from here")
            _append(path, batch, response_texts(rollout, tokenizer), row_of)
            cut += sum(not response or response[-1] not in model.stop_ids for response in rollout.responses)
            done += len(batch)
            bar.advance(task, len(batch))
    if cut:
        print(
            f"note: {cut:,} of the {len(missing):,} responses written now did not end within {decoding.max_new_tokens} "
            "tokens; a student that learns from them learns to stop there (raise decoding.max_new_tokens)"
        )


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


def _answers(model: LanguageModel, batch: Sequence[Example], decoding: Decoding, seed: int) -> Rollout:
    return decode(model, [e.prompt for e in batch], decoding, seed=seed, places=[(e.item,) for e in batch])


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


def _already_written(path: Path, settings: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return which rows the file holds, after checking that it was written with the same settings."""
    note = path.with_name(f"{path.name}.settings.json")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file with --out")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(settings), encoding="utf-8")
        return set()
    if not note.exists() or _completed(note, defaults) != json.loads(json.dumps(settings)):
        raise InputError(f"{path} exists and was not written with these settings (see {note.name}); name another --out")
    *lines, rest = path.read_text(encoding="utf-8", errors="replace").split("\n")
    if rest:  # cut short by a kill
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return {_row_of(line, path, number) for number, line in enumerate(lines, 1)}


def _completed(note: Path, defaults: Mapping[str, Mapping[str, Any]]) -> Any:
    """Noted settings with the defaults of keys that they are older than; `None` where the file is damaged."""
    try:
        noted = json.loads(note.read_text(encoding="utf-8", errors="replace"))
    except ValueError:
        return None
    if not isinstance(noted, dict):
        return None
    return {
        name: {**defaults[name], **value} if name in defaults and isinstance(value, dict) else value
        for name, value in noted.items()
    }


def _row_of(line: str, path: Path, number: int) -> str:
    try:
        return str(json.loads(line)["row"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{path}:{number} is no line of generated text; mend it, or name another --out") from None


def _bar() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
