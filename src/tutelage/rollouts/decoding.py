"""Letting a model write: sampled and greedy text by our own loop, beam search by transformers' `generate`."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig

from tutelage.config import Decoding
from tutelage.models.language_model import LanguageModel, pad
from tutelage.models.stepping import Stepper
from tutelage.randomness import generator
from tutelage.rollouts.rollout import Ids, Rollout, Writer, joined
from tutelage.rollouts.sampling import draw, logp_of, truncated

Place = tuple[int, ...]
Written = tuple[list[Ids], list[tuple[float, ...]] | None]


class Policy(Protocol):
    """Who chooses the next token of a batch of sequences: one model, or several that read along together."""

    def start(self) -> Tensor:
        """Read the prompts; return the logits of the first token, `[batch, vocabulary]`, over the temperature."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Read one token of each sequence; return the logits of the next."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these sequences only."""
        ...


class OneModel:
    """A model on its own as a policy.

    Args:
        model: who writes.
        prompts: one prompt a sequence.
        temperature: divides the logits.
        vocabulary: ids from this one on are never written.
    """

    def __init__(
        self, model: LanguageModel, prompts: Sequence[Ids], temperature: float = 1.0, vocabulary: int | None = None
    ) -> None:
        self._stepper = Stepper(model, prompts)
        self._head = model.head.narrow(vocabulary or model.head.vocabulary)
        self._temperature = temperature

    def start(self) -> Tensor:
        """Read the prompts; return the logits of the first token."""
        return self._head.logits(self._stepper.start()) / self._temperature

    def step(self, tokens: Tensor) -> Tensor:
        """Read one token of each sequence; return the logits of the next."""
        return self._head.logits(self._stepper.step(tokens)) / self._temperature

    def keep(self, rows: Tensor) -> None:
        """Go on with these sequences only."""
        self._stepper.keep(rows)


@torch.no_grad()
def decode(
    model: LanguageModel,
    prompts: Sequence[Ids],
    decoding: Decoding,
    *,
    seed: int,
    places: Sequence[Place] | None = None,
    items: Sequence[int] | None = None,
    writer: Writer = "student",
    vocabulary: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Rollout:
    """Write one response to each prompt.

    Prompts of similar length are decoded together; a sequence that ends leaves its batch. What is sampled for
    a prompt depends on the seed and the prompt's place only, not on its neighbours.

    Args:
        model: who writes; its `stop_ids` end a response and are part of it.
        prompts: ids, none of them empty.
        decoding: strategy, temperature, truncation, length, batch size.
        seed: the run's seed.
        places: what distinguishes the draws of one prompt from another's, such as (step, row).
        items: which row of the data each prompt is, for the rollout.
        writer: who writes, for the rollout.
        vocabulary: ids from this one on are never written (padding rows that the teacher does not have).
        on_progress: told the number of sequences done, batch by batch.

    Returns:
        A rollout in the order of the prompts, with the log-probability of every token under the distribution
        it was drawn from (none for beam search).

    Raises:
        ValueError: the model has no stop ids.
    """

    def write(prompts: Sequence[Ids], places: Sequence[Place]) -> Written:
        if decoding.strategy == "beam":
            return _beam(model, prompts, decoding, vocabulary)
        temperature = decoding.temperature if decoding.strategy == "sample" else 1.0
        policy = OneModel(model, prompts, temperature, vocabulary)
        return write_batch(policy, model.stop_ids, decoding, seed, places, model.device)

    was_training = model.network.training
    model.network.eval()
    rollout = write_all(
        write,
        prompts,
        decoding,
        stop_ids=model.stop_ids,
        places=places,
        items=items,
        writer=writer,
        on_progress=on_progress,
    )
    model.network.train(was_training)
    return rollout


def write_all(
    write: Callable[[Sequence[Ids], Sequence[Place]], Written],
    prompts: Sequence[Ids],
    decoding: Decoding,
    *,
    stop_ids: tuple[int, ...],
    places: Sequence[Place] | None = None,
    items: Sequence[int] | None = None,
    writer: Writer = "student",
    on_progress: Callable[[int], None] | None = None,
) -> Rollout:
    """Cut prompts into batches of similar length, have each written, and put the responses in order.

    Args:
        write: writes the responses to a batch of prompts, given their places.
        prompts: ids.
        decoding: its `batch_size` is used here.
        stop_ids: ids that end a response.
        places: as `decode` takes them.
        items: which row of the data each prompt is.
        writer: who writes.
        on_progress: told the number of sequences done, batch by batch.

    Raises:
        ValueError: there are no stop ids.
    """
    if not stop_ids:
        raise ValueError("this model has no stop_ids, so its responses would never end; pass them to LanguageModel")
    places = [(row,) for row in range(len(prompts))] if places is None else places
    items = range(len(prompts)) if items is None else items
    order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
    parts = []
    for start in range(0, len(order), decoding.batch_size):
        rows = order[start : start + decoding.batch_size]
        responses, logps = write([prompts[r] for r in rows], [places[r] for r in rows])
        parts.append(
            Rollout.of(
                [prompts[r] for r in rows],
                responses,
                writer=writer,
                items=[items[r] for r in rows],
                logps=logps,
            )
        )
        if on_progress is not None:
            on_progress(len(rows))
    whole = joined(parts)
    back = {row: position for position, row in enumerate(order)}
    return whole.select([back[row] for row in range(len(prompts))])


def write_batch(
    policy: Policy,
    stop_ids: tuple[int, ...],
    decoding: Decoding,
    seed: int,
    places: Sequence[Place],
    device: torch.device,
) -> Written:
    """Write sequences together; the ones that ended are dropped when enough of them have.

    Args:
        policy: chooses the tokens; has the prompts.
        stop_ids: ids that end a response and are part of it.
        decoding: strategy (not beam search), truncation, length; the temperature is the policy's.
        seed: the run's seed.
        places: one a sequence; what is drawn depends on seed and place alone.
        device: of the policy's logits.

    Returns:
        The responses, and the log-probability of each token under the distribution it was drawn from.
    """
    length, count = decoding.max_new_tokens, len(places)
    uniforms = _uniforms(seed, places, length, device) if decoding.strategy == "sample" else None
    stops = torch.tensor(stop_ids, device=device)
    tokens = torch.zeros(count, length, dtype=torch.long, device=device)
    logps = torch.zeros(count, length, device=device)
    lengths = torch.full((count,), length, device=device)
    rows = torch.arange(count, device=device)  # sequences still in the batch
    open_rows = torch.ones(count, dtype=torch.bool, device=device)
    logits = policy.start()
    for position in range(length):
        chosen, logp = _choose(logits, decoding, None if uniforms is None else uniforms[rows, position])
        tokens[rows, position], logps[rows, position] = chosen, logp
        ended = torch.isin(chosen, stops) & open_rows
        lengths[rows[ended]] = position + 1
        open_rows &= ~ended
        remaining = int(open_rows.sum())
        if remaining == 0 or position + 1 == length:
            break
        if remaining <= 0.75 * len(rows):  # a copy of the cache has to pay for itself
            kept = open_rows.nonzero().squeeze(1)
            policy.keep(kept)
            rows, chosen, open_rows = rows[kept], chosen[kept], open_rows[kept]
        logits = policy.step(chosen)
    return _ragged(tokens, logps, lengths)


def _uniforms(seed: int, places: Sequence[Place], length: int, device: torch.device) -> Tensor:
    draws = [torch.from_numpy(generator(seed, "sampling", *place).random(length)) for place in places]
    return torch.stack(draws).to(device)


def _choose(logits: Tensor, decoding: Decoding, uniforms: Tensor | None) -> tuple[Tensor, Tensor]:
    if uniforms is None:
        chosen = logits.argmax(-1)
        return chosen, logp_of(logits, chosen)
    return draw(truncated(logits, decoding.top_k, decoding.top_p), uniforms)


def _ragged(tokens: Tensor, logps: Tensor, lengths: Tensor) -> tuple[list[Ids], list[tuple[float, ...]]]:
    ends = lengths.tolist()
    return (
        [tuple(row[:end]) for row, end in zip(tokens.tolist(), ends, strict=True)],
        [tuple(row[:end]) for row, end in zip(logps.tolist(), ends, strict=True)],
    )


def _beam(
    model: LanguageModel,
    prompts: Sequence[Ids],
    decoding: Decoding,
    vocabulary: int | None,
) -> Written:
    ids, mask = pad(list(prompts), "right" if model.is_encoder_decoder else "left", model.device)
    beyond = range(vocabulary or model.head.vocabulary, model.head.vocabulary)
    # Settings of our own: a model's generation_config may forbid or force tokens, and a policy is the model itself.
    settings = GenerationConfig(
        do_sample=False,
        num_beams=decoding.beams,
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=list(model.stop_ids),
        pad_token_id=model.stop_ids[0],
        decoder_start_token_id=model.start_id if model.is_encoder_decoder else None,
        suppress_tokens=list(beyond) or None,
    )
    output = model.network.generate(  # pyright: ignore[reportCallIssue]
        input_ids=ids, attention_mask=mask, generation_config=settings
    )
    start = 1 if model.is_encoder_decoder else ids.shape[1]
    return [_until_stop(row, model.stop_ids) for row in output[:, start:].tolist()], None


def _until_stop(ids: list[int], stop_ids: tuple[int, ...]) -> Ids:
    for position, token in enumerate(ids):
        if token in stop_ids:
            return tuple(ids[: position + 1])
    return tuple(ids)
