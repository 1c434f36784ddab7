"""Padded batches as rollouts."""

import pytest
import torch
from tests.tiny_models import ragged

from tutelage.errors import InputError
from tutelage.integrations.batches import rollout_of_batch

PAD = 0


def padded(rollout, side="right"):
    """The rollout as a collator would give it."""
    rows = [list(p) + list(r) for p, r in zip(rollout.prompts, rollout.responses, strict=True)]
    seen = [[False] * len(p) + list(m) for p, m in zip(rollout.prompts, rollout.masks, strict=True)]
    longest = max(map(len, rows))

    def stack(columns, fill):
        filling = [[fill] * (longest - len(c)) for c in columns]
        return torch.tensor([c + f if side == "right" else f + c for c, f in zip(columns, filling, strict=True)])

    labels = [
        [t if s else -100 for t, s in zip(row, flags, strict=True)] for row, flags in zip(rows, seen, strict=True)
    ]
    return {
        "input_ids": stack(rows, PAD),
        "attention_mask": stack([[1] * len(row) for row in rows], 0),
        "labels": stack(labels, -100),
    }


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_rollout_comes_back_on_either_side(side):
    found = rollout_of_batch(padded(ragged(), side))
    assert (found.targets, found.positions_of) == (ragged().targets, ragged().positions_of)
    assert [p + r for p, r in zip(found.prompts, found.responses, strict=True)] == [
        p + r for p, r in zip(ragged().prompts, ragged().responses, strict=True)
    ]


def test_all_tokens_as_labels_leave_out_the_first_one_only():
    ids = torch.tensor([[PAD, 5, 6, 7], [4, 5, 6, 7]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    found = rollout_of_batch({"input_ids": ids, "attention_mask": mask, "labels": ids.where(mask.bool(), -100)})
    assert (found.prompts, found.responses) == (((5,), (4,)), ((6, 7), (5, 6, 7)))


def test_rows_out_of_the_loss_are_left_out():
    ids = torch.tensor([[5, 6, 7], [4, 5, 6]])
    labels = torch.tensor([[-100, -100, -100], [-100, 5, -100]])
    found = rollout_of_batch({"input_ids": ids, "labels": labels})
    assert (found.prompts, found.responses) == (((4,),), ((5,),))


def test_encoder_decoder_takes_the_labels_for_the_response():
    ids, mask = torch.tensor([[5, 6], [7, PAD]]), torch.tensor([[1, 1], [1, 0]])
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([[8, 1, -100], [9, 9, 1]])}
    found = rollout_of_batch(batch, encoder_decoder=True)
    assert (found.prompts, found.responses) == (((5, 6), (7,)), ((8, 1), (9, 9, 1)))


def test_what_cannot_be_read_is_refused():
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(InputError, match="input_ids but no labels"):
        rollout_of_batch({"input_ids": ids})
    with pytest.raises(InputError, match="not the tokens above them"):
        rollout_of_batch({"input_ids": ids, "labels": torch.tensor([[6, 7, -100]])})
    with pytest.raises(InputError, match="packed sequences"):
        rollout_of_batch({"input_ids": ids, "labels": ids, "position_ids": torch.tensor([[0, 1, 0]])})
    with pytest.raises(InputError, match="-100 before the end"):
        rollout_of_batch({"input_ids": ids, "labels": torch.tensor([[-100, 7, 1]])}, encoder_decoder=True)
