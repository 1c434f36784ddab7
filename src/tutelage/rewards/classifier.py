"""A sequence-classification model's verdict on prompt and response, such as an entailment model's."""

from collections.abc import Callable, Sequence
from typing import Any

from tutelage.errors import InputError
from tutelage.rewards.encoders import encoder, in_batches
from tutelage.rewards.reward import Reward, Scorer

Verdict = Callable[[Sequence[str], Sequence[str]], list[float]]
"""Takes premises and hypotheses, and returns a number for each pair."""


def scorer(reward: Reward) -> Scorer:
    """Return the function that gives the probability of the label, with the prompt as the premise.

    A model with a single output, such as a reward model, gives that output as it is.

    Reference: GKD (arXiv 2306.13649) rewards a summary by the probability that the document entails it.

    Raises:
        InputError: the model cannot be loaded, or has no such label.
    """
    judged = verdict(
        reward.model,
        reward.label,
        batch_size=reward.batch_size,
        max_tokens=reward.max_tokens,
        device=reward.device,
        key="method.reward",
    )
    return lambda prompts, responses, references: judged(prompts, responses)


def verdict(name: str | None, label: str | None, *, batch_size: int, max_tokens: int, device: str, key: str) -> Verdict:
    """Return the function that gives a classifier's probability of a label for pairs of premise and hypothesis.

    Args:
        name: hub id or folder.
        label: the label's name, whatever its case; `None` gives the one output of a model that has no more.
        batch_size: pairs in one forward pass.
        max_tokens: longer pairs are cut.
        device: where it runs.
        key: where the settings stand, for messages.

    Raises:
        InputError: the model cannot be loaded, or has no such label.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    model, tokenizer = encoder(name, AutoModelForSequenceClassification, device=device, what="classifier", key=key)
    column = _column(model.config, name, label, key)

    @torch.no_grad()
    def judged(premises: Sequence[str], hypotheses: Sequence[str]) -> list[float]:
        found: list[float] = []
        for left, right in in_batches(batch_size, premises, hypotheses):
            inputs = tokenizer(left, right, truncation=True, max_length=max_tokens, padding=True, return_tensors="pt")
            logits = model(**inputs.to(model.device)).logits.float()
            values = logits[:, 0] if column is None else logits.softmax(-1)[:, column]
            found += values.tolist()
        return found

    return judged


def _column(config: Any, name: str | None, label: str | None, key: str) -> int | None:
    labels = {str(known).lower(): int(number) for number, known in config.id2label.items()}
    if label is None:
        if len(labels) == 1:
            return None
        raise InputError(f"{key}.label is missing; {name} knows {', '.join(labels)}")
    if label.lower() not in labels:
        raise InputError(f"{key}.label '{label}': {name} knows {', '.join(labels)}")
    return labels[label.lower()]
