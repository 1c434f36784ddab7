"""Records as they are read, and the problems found in them: collected per file, told together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tutelage.errors import InputError

SHOWN = 20


class Complaint(NamedTuple):
    """What is wrong with one row: a short kind to count by, and the sentence that the user reads."""

    kind: str
    text: str


class Record(NamedTuple):
    """The fields of one row as they stand in the file, and where they stand (`:17`, ` item 3`)."""

    position: str
    fields: dict[str, Any]


def kind_of(value: object) -> str:
    """Name the type of a value in the words of a data file.

    >>> kind_of([1]), kind_of(1.5), kind_of(None)
    ('a list', 'a number', 'null')
    """
    names = {str: "a string", list: "a list", tuple: "a list", dict: "an object", bool: "true or false"}
    names |= {int: "a number", float: "a number", bytes: "binary data"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


@dataclass(frozen=True)
class Problems:
    """The problems of one file.

    >>> problems = Problems("train.jsonl")
    >>> problems.add(":2", Complaint("null", "'prompt' is null"))
    >>> problems.message()
    "train.jsonl:2 'prompt' is null"
    """

    name: str
    lines: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    """The lines that tell of more than one row: nothing behind them could be read."""

    def add(self, position: str, complaint: Complaint) -> None:
        """Note a complaint about the row at `position` (`:17`, ` item 3`)."""
        self.kinds[complaint.kind] += 1
        if len(self.lines) < SHOWN:
            self.lines.append(f"{self.name}{position} {complaint.text}")

    def lose(self, position: str, complaint: Complaint) -> None:
        """Note a complaint that costs the file, or the rest of it behind `position`; no option passes over it."""
        self.add(position, complaint)
        self.lost.append(f"{self.name}{position} {complaint.text}")

    def message(self) -> str:
        """All lines to show, and, where there are several problems, how many there are of each kind."""
        count = self.kinds.total()
        if count <= 1:
            return "".join(self.lines)
        more = [f"and {count - SHOWN} more"] if count > SHOWN else []
        place = f" in {self.name}" if self.name else ""
        summary = ", ".join(f"{kind} {number}" for kind, number in self.kinds.most_common())
        return "\n".join([*self.lines, *more, f"{count} problems{place}: {summary}"])


def refuse(reports: Sequence[Problems], *, skip_rows: bool = False) -> None:
    """Raise one `InputError` with every problem of every file; return where there is none.

    Args:
        reports: the problems of each file.
        skip_rows: pass over files in which only single rows are wrong.

    Raises:
        InputError: at least one of them has a problem.

    >>> refuse([Problems("train.jsonl")])
    """
    messages = [report.message() for report in reports if (report.lost if skip_rows else report.lines)]
    if messages:
        raise InputError("\n".join(messages))
