"""What a source of text is read into: rows, each with the place where it stands."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tutelage.data.turns import Turns


@dataclass(frozen=True)
class Row:
    """One row: a prompt, a prompt with its completion, or a conversation."""

    where: str
    """File and line, as in `train.jsonl:17`."""
    prompt: str | None = None
    completion: str | None = None
    messages: Turns | None = None
    """Turns with `role` (system, user, assistant or tool) and `content`."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All text of the row, in order."""
        turns = tuple(turn["content"] for turn in self.messages or ())
        return (*(text for text in (self.prompt, self.completion) if text is not None), *turns)


class Rows(list[Row]):
    """The rows of one source in order, with what was left out of it and what is worth knowing about it."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        super().__init__(rows)
        self.skipped: Counter[str] = Counter()
        """Wrong rows that were passed over, by kind."""
        self.notes: list[str] = []
        """What a user should know, a line each."""
