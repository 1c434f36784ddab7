"""The loss against transformers' own loss, one sequence at a time and unpadded."""

import math

import pytest
import torch
from tests.evaluation.metrics.subjects import ITEMS, subject
from tests.tiny_models import ARCHITECTURES, EXACT

from tutelage.errors import InputError
from tutelage.evaluation.metrics.loss import Loss


def _own_losses(looked_at) -> list[tuple[float, int]]:
    """Mean loss by transformers, and the number of tokens, of each reference."""
    network = looked_at.student.network
    found = []
    for example in looked_at.examples:
        prompt, response = list(example.prompt), list(example.response)
        if network.config.is_encoder_decoder:
            output = network(input_ids=torch.tensor([prompt]), labels=torch.tensor([response]))
        else:
            labels = [-100] * len(prompt) + response
            output = network(input_ids=torch.tensor([prompt + response]), labels=torch.tensor([labels]))
        found.append((output.loss.item(), len(response)))
    return found


@pytest.mark.parametrize("kind", ARCHITECTURES[:2] + EXACT[1:] + ("t5",))
@pytest.mark.parametrize("micro_batch_tokens", [1, 24, 1000])
def test_loss_is_transformers_own(kind: str, micro_batch_tokens: int) -> None:
    looked_at = subject(Loss(), kind, micro_batch_tokens=micro_batch_tokens)
    scores = Loss().measure(looked_at).scores
    own = _own_losses(looked_at)
    tokens = sum(count for _, count in own)
    mean = sum(loss * count for loss, count in own) / tokens
    assert tokens == sum(len(item.references[0].split()) + 1 for item in ITEMS)
    assert scores["loss"].measurement().value == pytest.approx(mean, rel=1e-5)
    assert scores["perplexity"].measurement().value == pytest.approx(math.exp(mean), rel=1e-5)
    per_item = sum(loss for loss, _ in own) / len(own)
    assert scores["loss_per_item"].measurement().value == pytest.approx(per_item, rel=1e-5)
    assert per_item != pytest.approx(mean, rel=1e-3)
    rows = [scores["loss_per_item"].rows[item.place][0] for item in ITEMS]
    assert rows == pytest.approx([loss for loss, _ in own], rel=1e-5)


def test_one_item() -> None:
    found = Loss().measure(subject(Loss(), items=ITEMS[3:4])).scores["loss"].measurement()
    assert found.low == found.value == found.high
    assert found.n == 1


def test_items_without_references_are_refused() -> None:
    with pytest.raises(InputError, match="compares with references, and the task has none"):
        Loss().measure(subject(Loss(), references=False))
