"""What metrics look at: a model, a task's items, and what the model wrote for them."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from tutelage.config import Decoding
from tutelage.data import Example
from tutelage.evaluation.items import Item
from tutelage.evaluation.task import Task
from tutelage.models.language_model import LanguageModel
from tutelage.models.teachers import LocalTeacher
from tutelage.rollouts.decoding import decode
from tutelage.rollouts.rollout import Rollout
from tutelage.rollouts.texts import response_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Subject:
    """A model under evaluation. Both models are in evaluation mode."""

    task: Task
    student: LanguageModel
    tokenizer: "PreTrainedTokenizerBase"
    items: Sequence[Item]
    examples: Sequence[Example]
    """The items as ids, in the same order; the response is the first reference (empty without one)."""
    rollouts: Sequence[Rollout]
    """What the student wrote by the task's decoding, one rollout a seed, each in the order of the items; empty where
    no metric uses text."""
    texts: Sequence[Sequence[str]]
    """The same as text, `[seed][item]`, ended at the task's stop texts."""
    teacher: LocalTeacher | None = None
    vocabulary: int | None = None
    """Leading ids that both vocabularies share; `None` without a teacher."""
    micro_batch_tokens: int = 4096
    """Tokens in one forward pass."""
    advance: Advance = lambda what, more, total: None
    """Told what is being done, how many more items are done, and of how many."""
    seed: int = 0
    """Of what metrics draw themselves."""
    _written: dict[Hashable, Rollout] = field(default_factory=dict)
    """What was written beyond the task's own decoding; several metrics look at the same text."""

    @cached_property
    def places(self) -> tuple[str, ...]:
        """The key of each item, by its position."""
        return tuple(item.place for item in self.items)

    @cached_property
    def references(self) -> Rollout:
        """The (first) references as a rollout, in the order of the items."""
        return Rollout.of([e.prompt for e in self.examples], [e.response for e in self.examples],
                          masks=[e.mask for e in self.examples])  # fmt: skip

    def write(
        self,
        what: str,
        decoding: Decoding | None = None,
        *,
        seed: int,
        by: LanguageModel | None = None,
        rows: Sequence[int] | None = None,
    ) -> Rollout:
        """Have a model write a response to each item, beyond what the task's own decoding gave, or find it written.

        Args:
            what: shown beside the progress bar.
            decoding: how; by default sampling at temperature 1 with the task's length and batch size.
            seed: of the draws; the same seed gives the same text whatever the batch size.
            by: who writes; the student by default.
            rows: which items, by position; all by default. The rollout's `items` are these.
        """
        own = self.task.decoding
        decoding = decoding or Decoding(max_new_tokens=own.max_new_tokens, batch_size=own.batch_size)
        rows = range(len(self.items)) if rows is None else rows
        writer = "student" if by is None or by is self.student else "teacher"
        key = (writer, replace(decoding, batch_size=1), seed, tuple(rows))
        if key not in self._written:
            self._written[key] = decode(
                by or self.student,
                [self.examples[row].prompt for row in rows],
                decoding,
                seed=seed,
                places=[(row,) for row in rows],
                items=list(rows),
                writer=writer,
                vocabulary=self.vocabulary,
                on_progress=lambda more: self.advance(what, more, len(rows)),
            )
        return self._written[key]

    def texts_of(self, rollout: Rollout) -> list[str]:
        """What a model wrote as text, ended at the task's stop texts."""
        return [cut(text, self.task.stop) for text in response_texts(rollout, self.tokenizer)]


def cut(text: str, stops: Sequence[str]) -> str:
    """End a text before the first of some texts in it.

    >>> cut("7. Q: and", ["Q:"])
    '7.'
    """
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)].strip() if ends else text
