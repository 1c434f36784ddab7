"""Choices by likelihood, against transformers' own logits for each choice on its own."""

import math
from dataclasses import replace

import pytest
import torch
from tests.evaluation.metrics.subjects import ITEMS, subject
from tests.tiny import WORDS
from tests.tiny_models import EXACT, own_logits
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tutelage.errors import InputError
from tutelage.evaluation.metrics.choices import Choices, choice_scores


def _defined(looked_at) -> list[list[float]]:
    """Σ log q of each choice, from a softmax over transformers' logits."""
    found = []
    for item, example in zip(looked_at.items, looked_at.examples, strict=True):
        found.append([])
        for choice in item.choices:
            ids = tuple(WORDS.index(word) for word in choice.split())
            with torch.no_grad():
                logp = own_logits(looked_at.student.network, example.prompt, ids).double().log_softmax(-1)
            found[-1].append(sum(logp[at, token].item() for at, token in enumerate(ids)))
    return found


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("micro_batch_tokens", [1, 24, 1000])
def test_scores_are_sums_of_log_probabilities(kind: str, micro_batch_tokens: int) -> None:
    looked_at = subject(Choices(), kind, micro_batch_tokens=micro_batch_tokens)
    found, defined = choice_scores(looked_at), _defined(looked_at)
    assert [len(scores) for scores in found] == [3, 2, 4, 2, 3]
    for scores, wanted in zip(found, defined, strict=True):
        assert scores == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("normalise", ["none", "tokens", "characters"])
def test_accuracy(normalise) -> None:
    looked_at = subject(Choices(normalise=normalise))
    size = {"none": lambda c: 1, "tokens": lambda c: len(c.split()), "characters": len}[normalise]
    right = 0
    for item, scores in zip(ITEMS, _defined(looked_at), strict=True):
        means = [score / size(choice) for score, choice in zip(scores, item.choices, strict=True)]
        right += max(range(len(means)), key=means.__getitem__) == item.answer
    score = Choices(normalise=normalise).measure(looked_at).scores["accuracy"]
    assert score.measurement().value == pytest.approx(100 * right / 5)
    assert (score.unit, score.better, len(score.rows)) == ("%", "higher", 5)


def test_normalisation_can_turn_the_choice() -> None:
    looked_at = subject(Choices(), items=[replace(ITEMS[0], choices=("d e f g h i j k", "d"), answer=0)])
    long, short = choice_scores(looked_at)[0]
    assert long < short
    per_token = choice_scores(looked_at, normalise="tokens")[0]
    assert per_token == pytest.approx([long / 8, short])
    assert choice_scores(looked_at, normalise="characters")[0] == pytest.approx([long / 15, short])


@pytest.mark.parametrize(("answer", "value"), [(0, 0.0), (1, 100.0)])
def test_one_item(answer: int, value: float) -> None:
    item = replace(ITEMS[0], choices=("d e f g h i j k", "d"), answer=answer)
    found = Choices().measure(subject(Choices(), items=[item])).scores["accuracy"].measurement()
    assert (found.value, found.n) == (value, 1)


def _spaced_tokenizer() -> PreTrainedTokenizerFast:
    """Letters and spaces are tokens of their own."""
    words = Tokenizer(models.WordLevel({" ": 21, **{word: i for i, word in enumerate(WORDS[:21])}}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>")


@pytest.mark.parametrize(
    ("kind", "setting", "prompt", "choice", "ids"),
    [
        ("gpt2", "auto", "a", "b", (21, 3)),
        ("gpt2", "auto", "a ", "b", (3,)),
        ("gpt2", "auto", "a\n", "b", (3,)),
        ("gpt2", "auto", "a", " b", (21, 3)),
        ("gpt2", "always", "a ", "b", (21, 3)),
        ("gpt2", "never", "a", "b", (3,)),
        ("bart", "auto", "a", "b", (3,)),
        ("bart", "always", "a", "b", (21, 3)),
    ],
)
def test_leading_space(kind: str, setting, prompt: str, choice: str, ids: tuple[int, ...]) -> None:
    looked_at = subject(Choices(), kind, items=[replace(ITEMS[0], choices=(choice, "c"))])
    example = replace(looked_at.examples[0], prompt_text=prompt)
    looked_at = replace(looked_at, tokenizer=_spaced_tokenizer(), examples=[example])
    with torch.no_grad():
        logp = own_logits(looked_at.student.network, example.prompt, ids).log_softmax(-1)
    wanted = sum(logp[at, token].item() for at, token in enumerate(ids))
    assert math.isclose(choice_scores(looked_at, setting)[0][0], wanted, rel_tol=1e-6)


def test_a_choice_without_tokens_is_refused() -> None:
    looked_at = subject(Choices(), items=[replace(ITEMS[0], choices=("d", " "))])
    with pytest.raises(InputError, match="a:1: the choice ' ' has no tokens"):
        Choices().measure(looked_at)


def test_choices_that_differ_in_their_last_token_are_read_once(monkeypatch) -> None:
    items = [replace(ITEMS[0], choices=("d", "e", "f", "g h", "g i", "h h")), ITEMS[4]]
    looked_at = subject(Choices(), items=items)
    read = []
    hidden = looked_at.student.hidden
    monkeypatch.setattr(looked_at.student, "hidden", lambda part: [read.append(len(part)), hidden(part)][1])
    told = []
    looked_at = replace(looked_at, advance=lambda what, more, total: told.append((more, total)))
    for scores, wanted in zip(choice_scores(looked_at), _defined(looked_at), strict=True):
        assert scores == pytest.approx(wanted, rel=1e-6)
    assert sum(read) == 3 + 3
    assert sum(more for more, _ in told) == told[0][1] == 9
