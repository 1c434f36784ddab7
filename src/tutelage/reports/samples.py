"""Rows to look at: what the teacher and the student answer, and where along its answer the student differs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tutelage.config import Decoding
from tutelage.data import Example
from tutelage.models.language_model import LanguageModel
from tutelage.models.pairing import positions
from tutelage.models.teachers import Teacher
from tutelage.reports.token_view import Token, token_views
from tutelage.rollouts.decoding import decode
from tutelage.rollouts.rollout import Rollout
from tutelage.rollouts.texts import response_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sample:
    """One row with what the models make of it."""

    prompt: str
    """As the models read it."""
    reference: str
    student: str
    """The student's answer."""
    teacher: str | None = None
    """The teacher's answer; `None` where it was not at hand."""
    tokens: tuple[Token, ...] = ()
    """The student's answer token by token; empty without a teacher."""


@dataclass(frozen=True)
class Look:
    """How samples are made."""

    decoding: Decoding
    """How both models answer."""
    rows: int
    """How many, from the first row on that leaves room for an answer."""
    micro_batch_tokens: int = 4096
    """Tokens in one forward pass."""
    seed: int = 0
    """Of sampled text: the seed of a run's evaluations gives their text again."""
    vocabulary: int | None = None
    """Leading ids that both vocabularies share."""


def look_at(
    student: LanguageModel,
    teacher: Teacher | None,
    writer: LanguageModel | None,
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    look: Look,
) -> list[Sample]:
    """Have both models answer some rows, and compare them at each token of the student's answers.

    Args:
        student: the student.
        teacher: who is compared with, where there is one that reads new text.
        writer: the teacher as a model that writes.
        examples: the rows.
        tokenizer: the student's.
        look: how.
    """
    room = positions(student.model, None if writer is None else writer.model)
    most = float("inf") if room is None else room - look.decoding.max_new_tokens
    chosen = [example for example in examples if len(example.prompt) <= most][: look.rows]
    if not chosen:
        return []
    prompts, places = [example.prompt for example in chosen], [(example.item,) for example in chosen]

    def answers(model: LanguageModel) -> Rollout:
        decoding = replace(look.decoding, batch_size=min(look.decoding.batch_size, len(prompts)))
        return decode(model, prompts, decoding, seed=look.seed, places=places, vocabulary=look.vocabulary)

    own = answers(student)
    texts = response_texts(own, tokenizer)
    if teacher is None or writer is None:
        return [Sample(e.prompt_text, e.reference, text) for e, text in zip(chosen, texts, strict=True)]
    views = token_views(
        student, teacher, own, tokenizer, micro_batch_tokens=look.micro_batch_tokens, vocabulary=look.vocabulary
    )
    theirs = response_texts(answers(writer), tokenizer)
    return [
        Sample(example.prompt_text, example.reference, text, answer, tuple(view))
        for example, text, answer, view in zip(chosen, texts, theirs, views, strict=True)
    ]
