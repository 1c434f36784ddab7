"""Letting transformers' own `generate` write: beam search, and sampling and greedy search where that is asked for."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from tutelage.config import Decoding
from tutelage.models.language_model import LanguageModel, pad
from tutelage.randomness import generator
from tutelage.rollouts.rollout import Ids, Rollout
from tutelage.rollouts.sampling import logp_of, truncated
from tutelage.rollouts.writing import Place, Written


def generate(
    model: LanguageModel,
    prompts: Sequence[Ids],
    places: Sequence[Place],
    decoding: Decoding,
    *,
    seed: int,
    vocabulary: int,
    on_progress: Callable[[int], None] | None = None,
) -> Written:
    """Write one response to each prompt, prompts of similar length together.

    What is sampled depends on the seed and on the places and prompts of the whole batch.

    Args:
        model: who writes.
        prompts: ids, none of them empty.
        places: one a prompt.
        decoding: strategy, temperature, truncation, beams, length, batch size.
        seed: the run's seed.
        vocabulary: ids from this one on are never written.
        on_progress: told how many more sequences are done, batch by batch.

    Returns:
        The responses and, but for beam search, the log-probability of each token under the distribution it was
        drawn from, found by one more reading of the text.
    """
    order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
    responses: list[Ids] = [()] * len(prompts)
    logps: list[tuple[float, ...]] = [()] * len(prompts)
    for start in range(0, len(order), decoding.batch_size):
        rows = order[start : start + decoding.batch_size]
        batch = [prompts[row] for row in rows]
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(int(generator(seed, "generate", *places[rows[0]]).integers(2**62)))
            written = _batch(model, batch, decoding, vocabulary)
        found = [()] * len(rows) if decoding.strategy == "beam" else _logps(model, batch, written, decoding, vocabulary)
        for row, response, values in zip(rows, written, found, strict=True):
            responses[row], logps[row] = response, values
        if on_progress is not None:
            on_progress(len(rows))
    return responses, None if decoding.strategy == "beam" else logps


def _batch(model: LanguageModel, prompts: list[Ids], decoding: Decoding, vocabulary: int) -> list[Ids]:
    ids, mask = pad(prompts, "right" if model.is_encoder_decoder else "left", model.device)
    # Settings of our own: a model's generation_config may forbid or force tokens, and a policy is the model itself.
    settings = GenerationConfig(
        **_strategy(decoding),
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=list(model.stop_ids),
        pad_token_id=model.stop_ids[0],
        decoder_start_token_id=model.start_id if model.is_encoder_decoder else None,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        suppress_tokens=list(range(vocabulary, model.head.vocabulary)) or None,
    )
    output = model.network.generate(  # pyright: ignore[reportCallIssue]
        input_ids=ids, attention_mask=mask, generation_config=settings
    )
    start = 1 if model.is_encoder_decoder else ids.shape[1]
    return [_until_stop(row, model.stop_ids) for row in output[:, start:].tolist()]


def _strategy(decoding: Decoding) -> dict[str, Any]:
    if decoding.strategy == "sample":
        return {
            "do_sample": True,
            "temperature": decoding.temperature,
            "top_k": decoding.top_k,
            "top_p": decoding.top_p,
        }
    return {"do_sample": False, "num_beams": decoding.beams if decoding.strategy == "beam" else 1}


def _until_stop(ids: list[int], stop_ids: tuple[int, ...]) -> Ids:
    for position, token in enumerate(ids):
        if token in stop_ids:
            return tuple(ids[: position + 1])
    return tuple(ids)


def _logps(
    model: LanguageModel, prompts: list[Ids], responses: list[Ids], decoding: Decoding, vocabulary: int
) -> list[tuple[float, ...]]:
    """Log-probabilities of the tokens, sequence by sequence, so that no more than one's logits exist at a time."""
    rollout = Rollout.of(prompts, responses)
    hidden, targets = model.hidden(rollout), model.targets(rollout)
    parts = zip(hidden.split(rollout.positions_of), targets.split(rollout.positions_of), strict=True)
    return [tuple(_logp(model, states, tokens, decoding, vocabulary).tolist()) for states, tokens in parts]


def _logp(model: LanguageModel, hidden: Tensor, tokens: Tensor, decoding: Decoding, vocabulary: int) -> Tensor:
    logits = model.head.narrow(vocabulary).logits(hidden)
    if decoding.strategy == "sample":
        logits = truncated(logits / decoding.temperature, decoding.top_k, decoding.top_p)
    return logp_of(logits, tokens)
