"""A sequence-classification model's verdict on prompt and response, such as an entailment model's."""

from collections.abc import Sequence
from typing import Any

from tutelage.errors import InputError
from tutelage.rewards.encoders import encoder, in_batches
from tutelage.rewards.reward import Reward, Scorer


def scorer(reward: Reward) -> Scorer:
    """Return the function that gives the probability of the label, with the prompt as the premise.

    A model with a single output, such as a reward model, gives that output as it is.

    Reference: GKD (arXiv 2306.13649) rewards a summary by the probability that the document entails it.

    Raises:
        InputError: the model cannot be loaded, or has no such label.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    model, tokenizer = encoder(reward, AutoModelForSequenceClassification)
    column = _column(model.config, reward)

    @torch.no_grad()
    def score(prompts: Sequence[str], responses: Sequence[str], references: Sequence[str]) -> list[float]:
        found: list[float] = []
        for premises, hypotheses in in_batches(reward.batch_size, prompts, responses):
            inputs = tokenizer(
                premises, hypotheses, truncation=True, max_length=reward.max_tokens, padding=True, return_tensors="pt"
            )
            logits = model(**inputs.to(model.device)).logits.float()
            values = logits[:, 0] if column is None else logits.softmax(-1)[:, column]
            found += values.tolist()
        return found

    return score


def _column(config: Any, reward: Reward) -> int | None:
    labels = {str(name).lower(): int(number) for number, name in config.id2label.items()}
    if reward.label is None:
        if len(labels) == 1:
            return None
        raise InputError(f"method.reward.label is missing; {reward.model} knows {', '.join(labels)}")
    if reward.label.lower() not in labels:
        raise InputError(f"method.reward.label '{reward.label}': {reward.model} knows {', '.join(labels)}")
    return labels[reward.label.lower()]
