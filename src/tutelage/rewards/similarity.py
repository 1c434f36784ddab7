"""Likeness of meaning: the cosine of two texts' embeddings."""

from collections.abc import Sequence

from tutelage.rewards.encoders import encoder, in_batches
from tutelage.rewards.reward import Reward, Scorer


def scorer(reward: Reward) -> Scorer:
    """Return the function that gives the cosine of the embeddings of response and reference, in [−1, 1].

    An embedding is the mean of the encoder's last hidden states over the tokens of the text, as in
    sentence-transformers' models with mean pooling.

    Raises:
        InputError: the model cannot be loaded.
    """
    import torch
    from torch import Tensor
    from transformers import AutoModel

    model, tokenizer = encoder(reward.model, AutoModel, device=reward.device, what=reward.kind, key="method.reward")

    def embed(texts: Sequence[str]) -> Tensor:
        # An empty text has no token to average over; a full stop stands for it.
        inputs = tokenizer(
            [text or "." for text in texts],
            truncation=True,
            max_length=reward.max_tokens,
            padding=True,
            return_tensors="pt",
        ).to(model.device)
        states = model(**inputs).last_hidden_state.float()
        seen = inputs["attention_mask"][..., None].to(states.dtype)
        return (states * seen).sum(1) / seen.sum(1)

    @torch.no_grad()
    def score(prompts: Sequence[str], responses: Sequence[str], references: Sequence[str]) -> list[float]:
        found: list[float] = []
        for mine, theirs in in_batches(reward.batch_size, responses, references):
            found += torch.cosine_similarity(embed(mine), embed(theirs)).tolist()
        return found

    return score
