"""Accuracy on multiple-choice and yes/no questions, by the likelihood of each choice."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT
from tutelage.data.tokens import encode_continuations, encode_texts
from tutelage.errors import InputError
from tutelage.evaluation.metrics.base import Metric
from tutelage.evaluation.score import Findings, Score
from tutelage.evaluation.sequences import target_logps
from tutelage.rollouts.rollout import Ids, Rollout

if TYPE_CHECKING:
    from tutelage.evaluation.subject import Subject

LeadingSpace = Literal["auto", "always", "never"]
Normalise = Literal["none", "tokens", "characters"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Choices(Metric):
    """Share of items where the right choice is the most likely one (`accuracy`, %). Use it for MMLU, BBH and the like.

    Formula: the item counts where argmax_c Σ_t log q(c_t | x, c_<t) / n_c is the right choice; the first of equal
    ones is taken. n_c is 1, or by `normalise` the choice's tokens or its characters. A choice stands behind the
    prompt as a response does, without a stop token.

    Reference: lm-evaluation-harness, whose `acc` is `none` and whose `acc_norm` is `characters` (the leading space is
    not counted).
    Differs: prompt and choice are tokenised apart, as in training and generation; the harness tokenises both
    together and cuts.
    """

    name: Literal["choices"] = "choices"
    normalise: Normalise = "none"
    """By what a choice's log-probability is divided."""
    leading_space: LeadingSpace = "auto"
    """Whether a space goes before a choice that begins with none: `auto` where the prompt does not end in white
    space (encoder-decoder models need none, as the response is a text of its own)."""

    uses: ClassVar = frozenset({"choices"})

    def measure(self, subject) -> Findings:
        """Score every choice of every item."""
        right: dict[str, float] = {}
        for item, scores in zip(subject.items, choice_scores(subject, self.leading_space, self.normalise), strict=True):
            right[item.place] = 100.0 * (scores.index(max(scores)) == item.answer)
        return Findings({"accuracy": Score.of(right, unit="%", better="higher")})


def choice_scores(
    subject: "Subject", leading_space: LeadingSpace = "auto", normalise: Normalise = "none"
) -> list[list[float]]:
    """Return the log-probability of each choice of each item under the student, nats, divided as asked for.

    Raises:
        InputError: a choice has no tokens.
    """
    of_item = [row for row, item in enumerate(subject.items) for _ in item.choices]
    choices = [choice for item in subject.items for choice in item.choices]
    prompts = [subject.examples[row].prompt_text for row in of_item]
    ids = _encoded(subject, choices, prompts, leading_space)
    for row, choice, tokens in zip(of_item, choices, ids, strict=True):
        if not tokens:
            raise InputError(f"{subject.items[row].place}: the choice {choice!r} has no tokens; choices need a text")
    logps = _logps(subject, [subject.examples[row].prompt for row in of_item], list(map(tuple, ids)))
    size = _SIZES[normalise]
    found: list[list[float]] = [[] for _ in subject.items]
    for row, choice, tokens, logp in zip(of_item, choices, ids, logps, strict=True):
        found[row].append(logp / size(choice, len(tokens)))
    return found


_SIZES: dict[Normalise, Callable[[str, int], int]] = {
    "none": lambda choice, tokens: 1,
    "tokens": lambda choice, tokens: tokens,
    "characters": lambda choice, tokens: len(choice),
}


@torch.no_grad()
def _logps(subject: "Subject", prompts: Sequence[Ids], choices: Sequence[Ids]) -> list[float]:
    """Log-probability of each choice; those that differ in their last token only are read once."""
    sharing: dict[tuple[Ids, Ids], list[int]] = {}
    for at, (prompt, choice) in enumerate(zip(prompts, choices, strict=True)):
        sharing.setdefault((prompt, choice[:-1]), []).append(at)
    groups, student, found = list(sharing.values()), subject.student, [0.0] * len(choices)
    texts = Rollout.of([prompts[group[0]] for group in groups], [choices[group[0]] for group in groups],
                       items=range(len(groups)))  # fmt: skip
    for part in texts.micro_batches(subject.micro_batch_tokens):
        states = student.hidden(part).split(part.positions_of)
        members = [at for item in part.items for at in groups[item]]
        repeated = [of_text for item, of_text in zip(part.items, states, strict=True) for _ in groups[item]]
        targets = [token for at in members for token in choices[at]]
        logps = target_logps(torch.cat(repeated), student.head, targets).double().cpu()
        for at, values in zip(members, logps.split([len(choices[at]) for at in members]), strict=True):
            found[at] = values.sum().item()
        subject.advance("scoring choices", len(members), len(choices))
    return found


def _encoded(
    subject: "Subject", choices: Sequence[str], prompts: Sequence[str], leading_space: LeadingSpace
) -> list[list[int]]:
    auto = leading_space == "auto" and not subject.student.is_encoder_decoder
    texts = []
    for choice, prompt in zip(choices, prompts, strict=True):
        wanted = leading_space == "always" or (auto and not prompt[-1:].isspace())
        texts.append(f" {choice}" if wanted and not choice[:1].isspace() else choice)
    if subject.student.is_encoder_decoder:
        return encode_texts(subject.tokenizer, texts)
    return encode_continuations(subject.tokenizer, texts, prompts)
