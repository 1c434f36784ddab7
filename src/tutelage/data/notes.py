"""What is not wrong about rows, and yet worth a line: each function returns sentences for the user."""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence

from tutelage.data.problems import Problems
from tutelage.data.row import Row
from tutelage.data.turns import out_of_turn

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def skipped_note(problems: Problems) -> str:
    """Say which rows of a file were passed over, and where the first one stands."""
    count = problems.kinds.total()
    kinds = ", ".join(f"{kind} {number}" for kind, number in problems.kinds.most_common())
    return f"skipped {count:,} bad {'row' if count == 1 else 'rows'}: {kinds} (first: {problems.lines[0]})"


def unused_note(source: str, columns: Sequence[str]) -> str:
    """Say which columns are not read.

    >>> unused_note("train.jsonl", ["id", "source"])
    'train.jsonl: columns [id, source] are not used'
    """
    return f"{source}: columns [{', '.join(columns)}] are not used"


def row_notes(rows: Sequence[Row]) -> list[str]:
    """Look at each row by itself: turns out of order, and control characters.

    >>> row_notes([Row("a.jsonl:1", prompt="bell\\x07")])
    ["1 of 1 rows hold control characters (first: a.jsonl:1, '\\\\x07'); they are trained on as they are"]
    """
    notes = []
    odd = [row.where for row in rows if row.messages and out_of_turn(row.messages)]
    if odd:
        notes.append(
            f"{len(odd):,} of {len(rows):,} conversations have two user or two assistant turns in a row "
            f"(first: {odd[0]})"
        )
    controls = [(row.where, match) for row in rows if (match := CONTROL.search("\n".join(row.texts)))]
    if controls:
        where, match = controls[0]
        notes.append(
            f"{len(controls):,} of {len(rows):,} rows hold control characters (first: {where}, {match.group()!r}); "
            "they are trained on as they are"
        )
    return notes


def repeat_notes(train: Sequence[Row], validation: Sequence[Row] = ()) -> list[str]:
    """Find rows that come twice, and validation prompts that are trained on.

    Each is looked for letter by letter, and once more without regard to case, spaces and the punctuation that
    ends words.

    Args:
        train: the training rows.
        validation: the validation rows.

    Returns:
        A line each for repeated training rows, repeated validation rows, and prompts in both.

    >>> for note in repeat_notes([Row("a:1", "Hi"), Row("a:2", "Hi"), Row("a:3", "hi!")], [Row("b:1", "HI")]):
    ...     print(note)
    training rows that repeat an earlier one: 2 of 3 (1 letter by letter; first: a:2 repeats a:1)
    validation prompts that are trained on: 1 of 1 (0 letter by letter; first: b:1 repeats a:1)
    """
    notes = []
    for name, rows in (("training", train), ("validation", validation)):
        repeats = _repeats(rows, _whole)
        if repeats:
            notes.append(f"{name} rows that repeat an earlier one: {_counted(repeats, rows)}")
    shared = _repeats(validation, _prompt, train)
    if shared:
        notes.append(f"validation prompts that are trained on: {_counted(shared, validation)}")
    return notes


Repeat = tuple[Row, Row, bool]
"""A row, the earlier one that it repeats, and whether it does so letter by letter."""


def _repeats(rows: Sequence[Row], key: Callable[[Row], str], others: Iterable[Row] | None = None) -> list[Repeat]:
    """The rows whose key came before: among the rows themselves, or among others."""
    exact: dict[bytes, Row] = {}
    near: dict[bytes, Row] = {}

    def digests(row: Row) -> tuple[bytes, bytes]:
        return _digest(key(row)), _digest(_bare(key(row)))

    for other in others or ():
        by_letter, bare = digests(other)
        exact.setdefault(by_letter, other)
        near.setdefault(bare, other)
    found: list[Repeat] = []
    for row in rows:
        by_letter, bare = digests(row)
        if bare in near:
            found.append((row, exact.get(by_letter, near[bare]), by_letter in exact))
        if others is None:
            exact.setdefault(by_letter, row)
            near.setdefault(bare, row)
    return found


def _counted(repeats: Sequence[Repeat], rows: Sequence[Row]) -> str:
    row, earlier, _ = repeats[0]
    exact = sum(by_letter for *_, by_letter in repeats)
    return f"{len(repeats):,} of {len(rows):,} ({exact:,} letter by letter; first: {row.where} repeats {earlier.where})"


def _whole(row: Row) -> str:
    return "\0".join(row.texts)


def _prompt(row: Row) -> str:
    """What the student is given: the prompt, or the turns before the last of the assistant's."""
    if row.messages is None:
        return row.prompt or ""
    turns = row.messages[:-1] if row.messages[-1]["role"] == "assistant" else row.messages
    return "\0".join(turn["content"] for turn in turns)


def _bare(text: str) -> str:
    """A text in one case, with single spaces, and without the punctuation that ends its words.

    >>> _bare("What is  2 + 2?"), _bare("what is 2 + 2")
    ('what is 2 + 2', 'what is 2 + 2')
    """
    return re.sub(r"[.,;:!?'\"…]+(?=\s|\0|$)", "", " ".join(text.casefold().split()))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
