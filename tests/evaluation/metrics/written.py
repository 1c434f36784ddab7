"""A subject that has written given texts, for metrics that look at text alone."""

from collections.abc import Sequence
from typing import Any

from tests.tiny import tokenizer

from tutelage.evaluation.items import Item
from tutelage.evaluation.subject import Subject
from tutelage.evaluation.task import Task
from tutelage.recipe import checked

STOP = 1


class Writer:
    """Stands for a model of which only the ids that end a response are asked."""

    stop_ids = (STOP,)


def task(**sections: Any) -> Task:
    """A task of any kind."""
    whole = {"name": "toy", "description": "", "data": {"source": "toy.jsonl"}, "metrics": [{"name": "loss"}]}
    return checked(Task, {**whole, **sections}, "toy")


def subject(
    texts: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]] | None = None,
    *,
    prompts: Sequence[str] | None = None,
    rollouts: Sequence[Any] = (),
    kind: type[Subject] = Subject,
    **sections: Any,
) -> Subject:
    """A subject that wrote `texts[seed][item]`."""
    count = len(texts[0])
    items = [
        Item(f"toy.jsonl:{n + 1}", prompts[n] if prompts else f"prompt {n}", tuple(references[n]) if references else ())
        for n in range(count)
    ]
    whole = task(seeds=list(range(len(texts))), **sections)
    return kind(whole, Writer(), tokenizer(), items, [], rollouts, texts)  # pyright: ignore[reportArgumentType]
