"""Rows of text: read, checked, and named by file and line where they are wrong."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from textwrap import shorten
from typing import Any, Literal

from tutelage.data.notes import row_notes, skipped_note, unused_note
from tutelage.data.problems import Complaint, Problems, Record, kind_of, refuse
from tutelage.data.row import Row, Rows
from tutelage.data.sources import open_source
from tutelage.data.turns import SURROGATE, UNPAIRED, read_turns
from tutelage.errors import InputError

Kind = Literal["prompt", "completion", "messages"]
FIELDS = ("prompt", "completion", "messages")
LIKELY_COLUMNS = {
    "prompt": ("question", "instruction", "input", "query", "text"),
    "completion": ("answer", "response", "output", "target"),
    "messages": ("conversations", "conversation", "dialog", "chat", "turns"),
}


def read_rows(
    source: str,
    *,
    columns: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    replace_surrogates: bool = False,
) -> Rows:
    """Read and check rows of text.

    All rows are of one kind: prompts, prompts with completions, or conversations (`messages`). A
    conversation that ends in a user or tool turn is a prompt, one that ends in an assistant turn an
    example; a source has one sort of them.

    Args:
        source: JSONL, JSON, CSV, TSV or Parquet file (the text formats also as .gz), a folder of such
            files (read in the order of their names), or a hub id (`name`, `name:split` or
            `name[config]:split`).
        columns: maps `prompt`, `completion` and `messages` to the columns that hold them.
        roles: maps roles of the data to system, user, assistant and tool.
        limit: read only this many rows, from the start.
        skip_bad: leave wrong rows out and count them, instead of refusing the source.
        replace_surrogates: put U+FFFD for halves of UTF-16 pairs, which no tokenizer takes.

    Returns:
        The rows, in the order of the source.

    Raises:
        InputError: the source does not exist, or rows are wrong. The message names file and line of the
            first 20 problems of each file and counts the rest. A file that cannot be read to its end is
            refused in any case.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "train.jsonl"
    >>> _ = path.write_text('{"prompt": "2 + 2 =", "completion": " 4"}')
    >>> read_rows(str(path))
    [Row(where='train.jsonl:1', prompt='2 + 2 =', completion=' 4', messages=None)]
    """
    columns, roles = columns or {}, roles or {}
    _check_mapping(columns)
    rows = Rows()
    reports: list[Problems] = []
    checker: _Checker | None = None
    left = limit
    for problems, records in open_source(source):
        reports.append(problems)
        found = islice(records, left)
        first = next(found, None)
        if first is not None:
            checker = checker or _Checker.for_record(problems.name, first, columns, roles, replace_surrogates)
            rows += checker.rows(problems, chain([first], found))
        elif not problems.lines:
            problems.lose("", Complaint("empty", "is empty"))
        left = limit and limit - (checker.seen if checker else 0)
        if left == 0:
            break
    refuse(reports, skip_rows=skip_bad)
    for problems in reports:
        if problems.lines:
            rows.skipped.update(problems.kinds)
            rows.notes.append(skipped_note(problems))
    if checker and checker.ignored:
        rows.notes.append(unused_note(source, checker.ignored))
    rows.notes += row_notes(rows)
    return rows


def fingerprint(rows: list[Row]) -> str:
    """Hash the content of rows, wherever they were read from, to tell whether data changed.

    Args:
        rows: the rows, in order.

    Returns:
        16 hexadecimal digits.

    >>> fingerprint([Row("a.jsonl:1", prompt="Hi")]) == fingerprint([Row("b.csv:9", prompt="Hi")])
    True
    """
    state = hashlib.blake2b(digest_size=8)
    for row in rows:
        state.update(json.dumps([row.prompt, row.completion, row.messages], sort_keys=True).encode())
        state.update(b"\n")
    return state.hexdigest()


@dataclass
class _Checker:
    """Turns records into rows of the kind that the first record of the source has."""

    first: str
    kind: Kind
    names: dict[str, str]
    roles: Mapping[str, str]
    mend: bool
    """Whether lone surrogates are replaced."""
    ignored: tuple[str, ...] = ()
    """Columns that are not used."""
    is_example: bool | None = None
    seen: int = 0

    @classmethod
    def for_record(
        cls, file: str, record: Record, columns: Mapping[str, str], roles: Mapping[str, str], mend: bool
    ) -> "_Checker":
        names = {field: columns.get(field, field) for field in FIELDS}
        kind = _kind(file, record, columns, names)
        ignored = tuple(name for name in record.fields if name not in names.values())
        return cls(file + record.position, kind, names, roles, mend, ignored)

    def rows(self, problems: Problems, records: Iterable[Record]) -> list[Row]:
        """The rows of one file; what is wrong with others goes to `problems`."""
        rows: list[Row] = []
        for record in records:
            self.seen += 1
            row = self.row(problems.name, record)
            if isinstance(row, Row):
                rows.append(row)
            else:
                problems.add(record.position, row)
        return rows

    def row(self, file: str, record: Record) -> Row | Complaint:
        """The row of a record, or what is wrong with it."""
        where = file + record.position
        if self.mend:
            record = record._replace(fields={name: _mended(value) for name, value in record.fields.items()})
        if self.kind == "messages":
            return self._conversation(where, record)
        complaint = self._text_complaint(where, "prompt", record)
        if complaint is None and self.kind == "completion":
            complaint = self._text_complaint(where, "completion", record)
        elif complaint is None and record.fields.get(self.names["completion"]) is not None:
            text = f"has '{self.names['completion']}', {self.first} has none; one kind of rows per source"
            complaint = Complaint("mixed kinds", text)
        if complaint is not None:
            return complaint
        prompt = record.fields[self.names["prompt"]]
        completion = record.fields[self.names["completion"]] if self.kind == "completion" else None
        return Row(where, prompt, completion)

    def _text_complaint(self, where: str, field: str, record: Record) -> Complaint | None:
        name = self.names[field]
        if name not in record.fields:
            return Complaint("missing", f"'{name}' is missing ({self.first} has it)")
        value = record.fields[name]
        if value is None:
            return Complaint("null", f"'{name}' is null")
        if not isinstance(value, str):
            return self._not_text(where, field, value)
        if not value.strip() and field == "completion":
            text = f"'{name}' is empty: an example that teaches only to stop; fill it in or drop the row"
            return Complaint("empty", text)
        if not value.strip():
            return Complaint("empty", f"'{name}' is empty; fill it in or drop the row")
        if SURROGATE.search(value):
            return Complaint("invalid Unicode", f"'{name}': {UNPAIRED}")
        return None

    def _not_text(self, where: str, field: str, value: object) -> Complaint:
        name, kind = self.names[field], kind_of(value)
        if not isinstance(value, list | dict):
            return Complaint(kind, f"'{name}' is {kind}; quote it")
        if where != self.first:
            return Complaint(kind, f"'{name}' is {kind}, {self.first} has a string; one format per file")
        advice = f"write all turns as one list and map it with data.columns: {{messages: {name}}}"
        return Complaint(kind, f"'{name}' is {kind}; expected a string. For conversations, {advice}")

    def _conversation(self, where: str, record: Record) -> Row | Complaint:
        name = self.names["messages"]
        if name not in record.fields:
            return Complaint("missing", f"'{name}' is missing ({self.first} has it)")
        value = record.fields[name]
        if value is None:
            return Complaint("null", f"'{name}' is null")
        turns = read_turns(value, name, self.roles)
        if isinstance(turns, Complaint):
            return turns
        last = turns[-1]["role"]
        if self.is_example is None:
            self.is_example = last == "assistant"
        if self.is_example != (last == "assistant"):
            expected = "in an assistant turn" if self.is_example else "in a user or tool turn"
            text = f"'{name}' ends in '{last}', earlier rows end {expected}; one kind of rows per source"
            return Complaint("order of turns", text)
        return Row(where, messages=turns)


def _check_mapping(columns: Mapping[str, str]) -> None:
    unknown = [field for field in columns if field not in FIELDS]
    if unknown:
        raise InputError(
            f"data.columns: unknown key '{unknown[0]}'; expected {', '.join(FIELDS)}, "
            "each with the name of its column, as in {prompt: question}"
        )


def _kind(file: str, record: Record, columns: Mapping[str, str], names: Mapping[str, str]) -> Kind:
    columns_found = ", ".join(shorten(str(name), 40, placeholder="…") for name in record.fields)
    found = f"{file}: found columns [{columns_found}]"
    for field, name in columns.items():
        if name not in record.fields:
            raise InputError(f"{found}; data.columns maps {field} to '{name}', which is not among them")
    has = {field: names[field] in record.fields for field in FIELDS}
    if has["messages"] and has["prompt"] and ("messages" in columns) == ("prompt" in columns):
        raise InputError(
            f"{found}: both '{names['prompt']}' and '{names['messages']}'; choose with "
            "data.columns: {messages: messages} or {prompt: prompt}"
        )
    if has["messages"] and "prompt" not in columns:
        return "messages"
    if has["prompt"]:
        return "completion" if has["completion"] else "prompt"
    need = "need one of {prompt}, {prompt, completion}, {messages}"
    raise InputError(f"{found}; {need}; map with data.columns: {_suggestion(list(record.fields), names)}")


def _suggestion(found: list[str], names: Mapping[str, str]) -> str:
    likely = {field: next((n for n in LIKELY_COLUMNS[field] if n in found), None) for field in FIELDS}
    if likely["messages"]:
        return f"{{messages: {likely['messages']}}}"
    prompt = likely["prompt"] or next((n for n in found if n != names["completion"] and len(n) <= 40), "…")
    completion = None if names["completion"] in found else likely["completion"]
    return f"{{prompt: {prompt}, completion: {completion}}}" if completion else f"{{prompt: {prompt}}}"


def _mended(value: Any) -> Any:
    """A text, or the texts of a list of turns, with U+FFFD for lone surrogates.

    >>> _mended([{"role": "user", "content": "a\\ud800"}])
    [{'role': 'user', 'content': 'a�'}]
    """
    if isinstance(value, str):
        return SURROGATE.sub("\ufffd", value)
    if not isinstance(value, list):
        return value
    return [
        {key: SURROGATE.sub("\ufffd", text) if isinstance(text, str) else text for key, text in turn.items()}
        if isinstance(turn, dict)
        else turn
        for turn in value
    ]
