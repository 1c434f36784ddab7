"""Where a student still differs from its teacher: both models' opinions of each token of a text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tutelage import divergences
from tutelage.losses import map_vocabulary
from tutelage.models.language_model import LanguageModel
from tutelage.models.teachers import Teacher
from tutelage.rollouts.decoding import evaluating
from tutelage.rollouts.rollout import Ids, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOP = 5
"""Tokens that are shown of each model."""
DIVERGENCES = ("reverse_kl", "forward_kl", "total_variation")
FIGURES = (*DIVERGENCES, "student_logp", "teacher_logp")
UNFINISHED = "\ufffd"
"""What decoders write for bytes that are no whole character (yet)."""
_CONTEXT = 4  # tokens before one that decide how it is written: white space, the rest of a character


@dataclass(frozen=True)
class Choice:
    """A token that a model might have written."""

    text: str
    """As it would read at that place."""
    probability: float


@dataclass(frozen=True)
class Token:
    """One token of a response, as both models see it."""

    text: str
    """Its part of the response's text; the parts join to the whole. Empty for a token that does not show, such as
    the one that ends the response, and for all but the last token of a character that takes several."""
    name: str
    """How the token reads by itself."""
    reverse_kl: float
    """KL(student‖teacher) at this position, nats."""
    forward_kl: float
    """KL(teacher‖student), nats."""
    total_variation: float
    """In [0, 1]."""
    student_logp: float
    """Log-probability of the token, nats."""
    teacher_logp: float
    student_top: tuple[Choice, ...]
    """The student's most probable tokens at this position, the most probable one first."""
    teacher_top: tuple[Choice, ...]


def token_views(
    student: LanguageModel,
    teacher: Teacher,
    rollout: Rollout,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    micro_batch_tokens: int = 4096,
    vocabulary: int | None = None,
) -> list[list[Token]]:
    """Compare student and teacher at each token of some responses, whoever wrote them.

    Use it on the student's own text to see what it has not learnt: where the divergence is large, the two models'
    most probable tokens say what the teacher would have written.

    Args:
        student: put into evaluation mode meanwhile.
        teacher: any that can read new text.
        rollout: prompts and responses; every token of a response is looked at.
        tokenizer: turns ids into text.
        micro_batch_tokens: tokens in one forward pass.
        vocabulary: number of leading ids that both vocabularies share; both distributions are over these.

    Returns:
        For each response its tokens.

    Raises:
        InputError: a response has an id that only the student knows.
    """
    rollout = Rollout.of(rollout.prompts, rollout.responses)
    views: list[list[Token]] = [[] for _ in rollout.responses]
    with evaluating(student):
        for rows in rollout.micro_batch_rows(micro_batch_tokens):
            part = rollout.select([row for row in rows if rollout.responses[row]])
            if not len(part):
                continue
            figures = _figures(student, teacher, part, vocabulary).double().cpu().split(list(part.positions_of))
            for row, response, table in zip(
                (row for row in rows if rollout.responses[row]), part.responses, figures, strict=True
            ):
                views[row] = list(_tokens(response, table, tokenizer))
    return views


def _figures(student: LanguageModel, teacher: Teacher, part: Rollout, vocabulary: int | None) -> Tensor:
    """Divergences, the token's log-probabilities, and each model's top tokens: `[positions, 5 + 4 · TOP]`."""
    targets = student.targets(part, vocabulary)
    heads = (student.head, teacher.head)
    size = vocabulary or min(head.vocabulary for head in heads)
    done = 0

    def look(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
        nonlocal done  # chunks come in the order of the positions
        wanted = targets[done : done + len(student_logp), None]
        done += len(student_logp)
        compared = [getattr(divergences, name)(student_logp, teacher_logp)[:, None] for name in DIVERGENCES]
        own = [logp.gather(-1, wanted) for logp in (student_logp, teacher_logp)]
        tops = [logp.topk(min(TOP, size)) for logp in (student_logp, teacher_logp)]
        best = [part for top in tops for part in (top.values.exp(), top.indices.to(student_logp.dtype))]
        return torch.cat([*compared, *own, *best], dim=-1)

    return map_vocabulary(
        look, student.hidden(part), student.head, teacher.hidden(part), teacher.head, vocabulary=vocabulary
    )


def _tokens(response: Ids, table: Tensor, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Token]:
    for position, (text, row) in enumerate(zip(pieces(response, tokenizer), table, strict=True)):
        tops = row[len(FIGURES) :].view(2, 2, -1).tolist()
        before = response[max(0, position - _CONTEXT) : position]
        student_top, teacher_top = (
            tuple(
                Choice(_reading(before, int(token), tokenizer), probability)
                for probability, token in zip(probabilities, ids, strict=True)
            )
            for probabilities, ids in tops
        )
        name = _reading(before, response[position], tokenizer)
        figures = dict(zip(FIGURES, row.tolist(), strict=False))
        yield Token(text, name, student_top=student_top, teacher_top=teacher_top, **figures)


def pieces(response: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Cut a response's text into one piece a token; together they are the text, special tokens left out.

    Where a character takes several tokens, the last of them has it.

    Args:
        response: ids.
        tokenizer: turns them into text.
    """

    def text_of(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    whole, found, end = text_of(response), [], 0
    for count in range(1, len(response) + 1):
        reached = len(whole) if count == len(response) else _in_common(text_of(response[:count]), whole)
        found.append(whole[end:reached])
        end = max(end, reached)
    return found


def _in_common(text: str, whole: str) -> int:
    """Characters at the start of a text that are certain to stay: those of the whole, none unfinished at its end."""
    pairs = zip(text.rstrip(UNFINISHED), whole, strict=False)
    return next((at for at, (own, other) in enumerate(pairs) if own != other), len(text.rstrip(UNFINISHED)))


def _reading(before: Sequence[int], token: int, tokenizer: "PreTrainedTokenizerBase") -> str:
    """A token as it would read behind others; by its name where it is no whole character."""
    context = str(tokenizer.decode(list(before)))
    text = str(tokenizer.decode([*before, token]))
    own = text.removeprefix(context)
    if own and text.startswith(context) and UNFINISHED not in own:
        return own
    return str(tokenizer.convert_ids_to_tokens(token))
