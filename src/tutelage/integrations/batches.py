"""Padded batches of transformers' collators as rollouts."""

from collections.abc import Mapping

from torch import Tensor

from tutelage.errors import InputError
from tutelage.rollouts.rollout import Rollout

IGNORED = -100
"""The label of a token that is not in the loss."""


def rollout_of_batch(batch: Mapping[str, Tensor], *, encoder_decoder: bool = False) -> Rollout:
    """Turn a padded batch into the rollout that its labels put into the loss.

    Use it to call an objective on the batches of a data loader of your own. For a decoder-only model the prompt is
    what stands before the first label, the response goes up to the last one, and labels of -100 in between are
    tokens out of the loss (a user's turn). A label on a sequence's first token counts for nothing, since nothing
    predicts it. For an encoder-decoder model the prompt is the input and the response is the labels.

    Args:
        batch: `input_ids` and `labels`, `[sequences, tokens]`; labels stand under their own tokens, unshifted, and
            are -100 outside the loss. `attention_mask` says where padding is, on whichever side.
        encoder_decoder: whether the model has an encoder.

    Returns:
        The sequences that have something in the loss, in their order.

    Raises:
        InputError: labels are missing, are not the tokens above them, or sequences are packed into one row.

    >>> import torch
    >>> batch = {"input_ids": torch.tensor([[5, 6, 7, 1, 0]]), "labels": torch.tensor([[-100, -100, 7, 1, -100]])}
    >>> rollout = rollout_of_batch(batch)
    >>> rollout.prompts, rollout.responses
    (((5, 6),), ((7, 1),))
    """
    if "labels" not in batch:
        raise InputError(f"the batch has {', '.join(batch)} but no labels; use a collator that gives them")
    ids, labels = batch["input_ids"], batch["labels"]
    present = batch["attention_mask"].bool() if "attention_mask" in batch else ids == ids
    rows = [_kept(*row) for row in zip(ids.tolist(), present.tolist(), strict=True)]
    if encoder_decoder:
        responses = [_without_padding(row) for row in labels.tolist()]
        pairs = [(prompt, response) for prompt, response in zip(rows, responses, strict=True) if response]
        return Rollout.of([prompt for prompt, _ in pairs], [response for _, response in pairs])
    if "position_ids" in batch:
        raise InputError("the batch has position_ids, as packed sequences do; give one sequence a row (packing=False)")
    if bool(((labels != IGNORED) & (labels != ids) & present).any()):
        raise InputError("labels are not the tokens above them; give them unshifted, and -100 outside the loss")
    seen = [_kept(*row) for row in zip((labels != IGNORED).tolist(), present.tolist(), strict=True)]
    prompts, responses, masks = [], [], []
    for row, flags in zip(rows, seen, strict=True):
        places = [place for place, flag in enumerate(flags) if flag and place]
        if places:
            first, end = places[0], places[-1] + 1
            prompts.append(row[:first])
            responses.append(row[first:end])
            masks.append(flags[first:end])
    return Rollout.of(prompts, responses, masks=masks)


def _kept(row: list, present: list[bool]) -> list:
    return [value for value, there in zip(row, present, strict=True) if there]


def _without_padding(labels: list[int]) -> list[int]:
    kept = [label for label in labels if label != IGNORED]
    if labels[: len(kept)] != kept:
        raise InputError("the labels of an encoder-decoder model have -100 before the end; only padding may be -100")
    return kept
