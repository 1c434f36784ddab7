"""The items of a task: prompts rendered from any columns, with their references and choices."""

import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.data.problems import Complaint, Record, refuse
from tutelage.data.sources import looks_like_path, open_source
from tutelage.errors import InputError

if TYPE_CHECKING:
    from tutelage.evaluation.task import TaskData


@dataclass(frozen=True)
class Item:
    """One thing that a model is asked."""

    place: str
    """File and line, as in `valid.jsonl:17`."""
    prompt: str
    """What it is asked, before any chat template."""
    references: tuple[str, ...]
    """Responses that are right; empty where the task has none."""
    choices: tuple[str, ...] = ()
    """Texts to choose from."""
    answer: int | None = None
    """Which choice is right, from 0."""


class Columns(string.Formatter):
    """Columns in braces, and nothing behind a dot: `{question}`, `{instances[0][input]}`."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Find what a pair of braces names."""
        if "." in field_name:
            raise KeyError(field_name)
        return super().get_field(field_name, args, kwargs)


_COLUMNS = Columns()


def read_items(data: "TaskData", folder: Path) -> list[Item]:
    """Read and render the items of a task.

    Args:
        data: the task's section.
        folder: where a source is looked for that is not found as it is written.

    Raises:
        InputError: the source does not exist, or rows lack what the templates name.
    """
    preamble = data.preamble + _shots(data, folder)
    items: list[Item] = []
    reports = []
    for problems, records in _opened(data.source, folder):
        reports.append(problems)
        for record in _expanded(records, data.records):
            if data.limit is not None and len(items) == data.limit:
                break
            item = _item(problems.name + record.position, record.fields, data, preamble)
            if isinstance(item, Item):
                items.append(item)
            else:
                problems.add(record.position, item)
    refuse(reports)
    if not items:
        raise InputError(f"{data.source} holds no items")
    return items


def fingerprint(items: Sequence[Item]) -> str:
    """A short name for the content of items: 16 hexadecimal digits."""
    content = json.dumps([{**asdict(item), "place": ""} for item in items], sort_keys=True).encode()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _opened(source: str, folder: Path):
    beside = folder / source
    if not Path(source).expanduser().exists():
        if beside.exists():
            return open_source(str(beside))
        if looks_like_path(source):
            raise InputError(
                f"no such file: {source}, nor {beside}; name the folder that holds it with --data-folder, "
                "or another file with --data.source"
            )
    return open_source(source)


def _expanded(records, column: str | None):
    """The records themselves, or those in a list that one of their columns holds."""
    for record in records:
        if column is None:
            yield record
            continue
        inner = record.fields.get(column)
        if not isinstance(inner, list):
            raise InputError(f"data.records: no list in column '{column}'; found [{', '.join(record.fields)}]")
        for number, fields in enumerate(inner, 1):
            yield Record(f"{record.position} item {number}", fields)


def _shots(data: "TaskData", folder: Path) -> str:
    """The worked examples that stand before each prompt."""
    if data.few_shot is None:
        return ""
    shots = data.few_shot
    records = [record for _, found in _opened(shots.source, folder) for record in _expanded(found, data.records)]
    beyond = [row for row in shots.rows if row >= len(records)]
    if beyond:
        raise InputError(f"data.few_shot.rows: {shots.source} has {len(records)} rows, no row {beyond[0]}")
    answer = shots.reference or data.reference or ""
    texts = []
    for row in shots.rows:
        parts = [_rendered(template, records[row].fields) for template in (data.prompt, answer)]
        wrong = next((part for part in parts if isinstance(part, Complaint)), None)
        if wrong is not None:
            raise InputError(f"{shots.source}, row {row}: {wrong.text}")
        texts.append("".join(map(str, parts)) + shots.separator)
    return "".join(texts)


def _item(place: str, fields: Mapping[str, Any], data: "TaskData", preamble: str) -> Item | Complaint:
    prompt = _rendered(data.prompt, fields)
    if isinstance(prompt, Complaint):
        return prompt
    references = _references(data.reference, fields)
    if isinstance(references, Complaint):
        return references
    choices = data.choices if not isinstance(data.choices, str) else fields.get(data.choices)
    if data.choices is None:
        return Item(place, preamble + prompt, references)
    if not isinstance(choices, list | tuple) or not all(isinstance(choice, str) for choice in choices):
        return Complaint("choices", f"no list of texts in column '{data.choices}'")
    if data.answer is None or data.answer not in fields:
        return Complaint("answer", f"no column '{data.answer}' with the right choice (data.answer)")
    answer = which(fields[data.answer], choices)
    if answer is None:
        return Complaint("answer", f"'{data.answer}' is {fields[data.answer]!r}, none of the choices {list(choices)}")
    return Item(place, preamble + prompt, references, tuple(choices), answer)


def which(answer: object, choices: Sequence[str]) -> int | None:
    """Find the right choice, given as its text, its index from 0, or its letter.

    >>> which("no", ["yes", "no"]), which(1, ["yes", "no"]), which("B", ["yes", "no"]), which("maybe", ["yes", "no"])
    (1, 1, 1, None)
    """
    texts = [choice.strip() for choice in choices]
    if isinstance(answer, bool):
        words = {"yes": True, "true": True, "no": False, "false": False}
        return next((at for at, text in enumerate(texts) if words.get(text.lower()) is answer), None)
    if isinstance(answer, int):
        return answer if 0 <= answer < len(choices) else None
    if str(answer).strip() in texts:
        return texts.index(str(answer).strip())
    letter = str(answer).strip(" ().")
    at = ord(letter) - ord("A") if len(letter) == 1 else -1
    return at if 0 <= at < len(choices) else None


def _references(template: str | None, fields: Mapping[str, Any]) -> tuple[str, ...] | Complaint:
    if template is None:
        return ()
    column = template[1:-1]
    if template == f"{{{column}}}" and isinstance(fields.get(column), list):
        texts = fields[column]
        right = texts and all(isinstance(text, str) for text in texts)
        return tuple(texts) if right else Complaint("reference", f"'{column}' is no list of texts")
    reference = _rendered(template, fields)
    return reference if isinstance(reference, Complaint) else (reference,)


def _rendered(template: str, fields: Mapping[str, Any]) -> str | Complaint:
    try:
        return _COLUMNS.vformat(template, (), fields)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        found = ", ".join(fields)
        return Complaint("template", f"template {template!r} does not fit ({error}); found columns [{found}]")
