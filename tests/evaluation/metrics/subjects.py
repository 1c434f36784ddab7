"""Subjects made by hand: tiny random models in float64, a tokenizer of one-letter words, and a few items."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tests.tiny import WORDS, tokenizer
from tests.tiny_models import STOP, build

from tutelage.data import Row, encode
from tutelage.evaluation.items import Item
from tutelage.evaluation.subject import Subject
from tutelage.evaluation.task import Task
from tutelage.models.language_model import LanguageModel
from tutelage.models.teachers import LocalTeacher

ITEMS = (
    Item("a:1", "a b c", ("d e f g",), ("d", "e f", "g h i"), 1),
    Item("a:2", "b", ("c",), ("c", "d"), 0),
    Item("a:3", "c d e f g", ("h i",), ("h", "i j", "k", "l"), 3),
    Item("a:4", "d e", ("f g h i j k l",), ("m n", "o"), 0),
    Item("a:5", "e", ("s t",), ("s t", "t s", "s"), 2),
)


def model(kind: str, seed: int, **sizes: Any) -> LanguageModel:
    """A language model over the words of the tiny tokenizer."""
    return LanguageModel(build(kind, seed, vocabulary=len(WORDS), **sizes), stop_ids=(STOP,))


def subject(
    metric: Any,
    kind: str = "gpt2",
    *,
    items: Sequence[Item] = ITEMS,
    student: LanguageModel | None = None,
    teacher: LanguageModel | None = None,
    micro_batch_tokens: int = 24,
    max_new_tokens: int = 6,
    batch_size: int = 64,
    references: bool = True,
) -> Subject:
    """What a metric looks at, with a student and a wider teacher of one architecture."""
    student = student or model(kind, 1)
    task = Task(
        name="toy",
        description="A toy.",
        data={"source": "toy.jsonl", "choices": "choices", "answer": "answer"},  # pyright: ignore
        decoding={"max_new_tokens": max_new_tokens, "batch_size": batch_size},  # pyright: ignore
        metrics=(metric,),
    )
    items = items if references else [replace(item, references=()) for item in items]
    rows = [Row(str(at), item.prompt, item.references[0] if item.references else None) for at, item in enumerate(items)]
    examples = encode(
        rows,
        tokenizer(),
        template="plain",
        max_prompt_tokens=50,
        max_tokens=100,
        stop_ids=frozenset({STOP}),
        encoder_decoder=student.is_encoder_decoder,
    )
    return Subject(
        task,
        student,
        tokenizer(),
        items,
        examples.kept,
        rollouts=(),
        texts=(),
        teacher=LocalTeacher(teacher or model(kind, 2, width=24)),
        vocabulary=len(WORDS),
        micro_batch_tokens=micro_batch_tokens,
    )
