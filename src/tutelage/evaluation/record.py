"""What is kept of an evaluation: one record a task in a folder's `evaluations/`, and its items for paired tests.

evaluations/<task>.json             the record: model, protocols, numbers, curves
evaluations/<task>.items.json       for each number, each item's figures
evaluations/<task>.responses.jsonl  every response: item, seed, prompt, references, response, tokens, ended
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tutelage.errors import InputError
from tutelage.evaluation.score import Score
from tutelage.sealing import write_whole

FOLDER = "evaluations"


@dataclass(frozen=True)
class Record:
    """Everything one evaluation of one model on one task found."""

    task: str
    """The task's name."""
    description: str
    """The task's own sentence."""
    model: Mapping[str, Any]
    """`name` (for tables), `path`, `identity` (a fingerprint of the weights), `parameters`."""
    teacher: Mapping[str, Any] | None
    """The same of the teacher, where one was looked at."""
    metrics: Mapping[str, Mapping[str, Any]]
    """For each number: `value`, `low`, `high` (95 % bootstrap), `n`, `unit`, `better` (higher, lower or neither),
    `reduction` (how items' rows become the value), `by_seed` (where there are several), and `protocol`."""
    protocols: Mapping[str, Mapping[str, Any]]
    """What each `protocol` stands for: only numbers of equal protocols may be compared."""
    curves: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """To draw: `x`, `y`, `x_title`, `y_title`, and `low`, `high`, `n` where known."""
    notes: Sequence[str] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Items left out, by reason."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Versions and device."""
    seconds: float = 0.0
    """How long it took."""


def protocol_id(protocol: Mapping[str, Any]) -> str:
    """A short name for a protocol: 12 hexadecimal digits of its content.

    >>> protocol_id({"a": 1, "b": 2}) == protocol_id({"b": 2, "a": 1})
    True
    """
    content = json.dumps(protocol, sort_keys=True, default=list).encode()
    return hashlib.blake2b(content, digest_size=6).hexdigest()


def save_record(folder: Path, record: Record, scores: Mapping[str, Score]) -> Path:
    """Write a record and its items into a folder's `evaluations/`; return the record's path."""
    where = folder / FOLDER
    where.mkdir(parents=True, exist_ok=True)
    items = {name: {place: list(row) for place, row in score.rows.items()} for name, score in scores.items()}
    texts = {
        f"{record.task}.items.json": json.dumps(items),
        f"{record.task}.json": json.dumps(asdict(record), indent=1, ensure_ascii=False),
    }
    for name, text in texts.items():
        write_whole(where / name, lambda path, text=text: path.write_text(text, encoding="utf-8"))
    return where / f"{record.task}.json"


def load_records(folder: Path) -> dict[str, Record]:
    """The records in a folder's `evaluations/`, by task; none where nothing was evaluated.

    Raises:
        InputError: a record is damaged.
    """
    records = {}
    for path in sorted((folder / FOLDER).glob("*.json")):
        if path.name.endswith(".items.json"):
            continue
        try:
            records[path.stem] = Record(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError):
            raise InputError(f"{path} is no record of an evaluation; evaluate again") from None
    return records


def load_scores(folder: Path, record: Record) -> dict[str, Score]:
    """The scores of a record with their items, for tests on the same items.

    Raises:
        InputError: the file with the items is missing or damaged.
    """
    path = folder / FOLDER / f"{record.task}.items.json"
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: Score(items[name], found["unit"], found["better"], found["reduction"], found.get("by_seed", ()))
            for name, found in record.metrics.items()
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{path} does not hold the items of {record.task}; evaluate again") from None
