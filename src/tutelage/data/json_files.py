"""JSON lines, and JSON arrays of objects, to records; whichever of them a file turns out to hold."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.data.lines import decode, read_lines, read_text
from tutelage.data.problems import Complaint, Problems, Record, kind_of


class _Parsed(NamedTuple):
    value: Any
    complaint: Complaint | None


class _JsonReader:
    """The standard decoder, and a list of the keys that it met twice in the text read last."""

    def __init__(self) -> None:
        self.twice: list[str] = []
        self.decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            self.twice.extend(key for key, count in counts.items() if count > 1)
        return fields

    def read(self, text: str) -> _Parsed:
        """Parse one line."""
        self.twice.clear()
        try:
            value = self.decoder.decode(text)
        except json.JSONDecodeError as error:
            return _Parsed(None, _broken(error, text))
        except (ValueError, RecursionError) as error:
            return _Parsed(None, Complaint("not valid JSON", f"not valid JSON: {error}"))
        if self.twice:
            return _Parsed(None, Complaint("key twice", f"key '{self.twice[0]}' appears twice"))
        return _Parsed(value, None)


def _broken(error: json.JSONDecodeError, text: str) -> Complaint:
    cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
    if cut:
        return Complaint("truncated", "ends in the middle of a JSON object (file truncated?)")
    reason = error.msg.replace("Expecting", "expected").removesuffix(" enclosed in double quotes")
    return Complaint("not valid JSON", f"not valid JSON: {reason} at column {error.colno}")


def read_json(path: Path, problems: Problems) -> Iterator[Record]:
    """Read one object a line, or the objects of one array.

    Args:
        path: the file; its content decides, not its name.
        problems: takes what is wrong with lines or items.

    Yields:
        The objects, in order.
    """
    start = next((line.lstrip() for _, line in read_lines(path, Problems(path.name))), b"")
    if start.startswith(b"["):
        yield from _json_array(path, problems)
    elif start.strip() == b"{":
        text = "holds one JSON object over several lines; expected an array of objects or one object a line"
        problems.lose("", Complaint("not rows", text))
    else:
        yield from _json_lines(path, problems)


def _json_lines(path: Path, problems: Problems) -> Iterator[Record]:
    reader = _JsonReader()
    for number, line in read_lines(path, problems):
        text = decode(line)
        if isinstance(text, Complaint):
            problems.add(f":{number}", text)
            continue
        yield from _checked(f":{number}", reader.read(text), problems)


def _json_array(path: Path, problems: Problems) -> Iterator[Record]:
    text = read_text(path, problems)
    if text is None:
        return
    reader = _JsonReader()
    try:
        items = reader.decoder.decode(text)
    except json.JSONDecodeError as error:
        problems.lose(f":{error.lineno}", _broken(error, text))
        return
    except (ValueError, RecursionError) as error:
        problems.lose("", Complaint("not valid JSON", f"not valid JSON: {error}"))
        return
    if reader.twice:
        problems.lose("", Complaint("key twice", f"has an object in which key '{reader.twice[0]}' appears twice"))
    for number, item in enumerate(items, 1):
        yield from _checked(f" item {number}", _Parsed(item, None), problems)


def _checked(position: str, parsed: _Parsed, problems: Problems) -> Iterator[Record]:
    complaint = parsed.complaint
    if complaint is None and not isinstance(parsed.value, dict):
        text = f'is {kind_of(parsed.value)}; expected an object such as {{"prompt": "…"}}'
        complaint = Complaint("not an object", text)
    if complaint is None:
        yield Record(position, parsed.value)
    else:
        problems.add(position, complaint)
