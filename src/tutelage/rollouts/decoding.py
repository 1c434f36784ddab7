"""Letting a model write: sampled and greedy text by our own loop, beam search by transformers' `generate`."""

from collections.abc import Callable, Sequence

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
    if not model.stop_ids:
        raise ValueError("this model has no stop_ids, so its responses would never end; pass them to LanguageModel")
    places = [(row,) for row in range(len(prompts))] if places is None else places
    items = range(len(prompts)) if items is None else items
    order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
    was_training = model.network.training
    model.network.eval()
    parts = []
    for start in range(0, len(order), decoding.batch_size):
        rows = order[start : start + decoding.batch_size]
        write = _beam if decoding.strategy == "beam" else _Batch.write
        responses, logps = write(
            model, [prompts[r] for r in rows], decoding, seed, [places[r] for r in rows], vocabulary
        )
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
    model.network.train(was_training)
    whole = joined(parts)
    back = {row: position for position, row in enumerate(order)}
    return whole.select([back[row] for row in range(len(prompts))])


class _Batch:
    """Sequences being written together; the ones that ended are dropped when enough of them have."""

    @staticmethod
    def write(
        model: LanguageModel,
        prompts: Sequence[Ids],
        decoding: Decoding,
        seed: int,
        places: Sequence[Place],
        vocabulary: int | None,
    ) -> tuple[list[Ids], list[tuple[float, ...]]]:
        length = decoding.max_new_tokens
        head = model.head.narrow(vocabulary or model.head.vocabulary)
        uniforms = _uniforms(seed, places, length, model.device) if decoding.strategy == "sample" else None
        stops = torch.tensor(model.stop_ids, device=model.device)
        tokens = torch.zeros(len(prompts), length, dtype=torch.long, device=model.device)
        logps = torch.zeros(len(prompts), length, device=model.device)
        lengths = torch.full((len(prompts),), length, device=model.device)
        rows = torch.arange(len(prompts), device=model.device)  # sequences still in the batch
        open_rows = torch.ones(len(prompts), dtype=torch.bool, device=model.device)
        stepper = Stepper(model, prompts)
        hidden = stepper.start()
        for position in range(length):
            logits = head.logits(hidden)
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
                stepper.keep(kept)
                rows, chosen, open_rows = rows[kept], chosen[kept], open_rows[kept]
            hidden = stepper.step(chosen)
        return _ragged(tokens, logps, lengths)


def _uniforms(seed: int, places: Sequence[Place], length: int, device: torch.device) -> Tensor:
    draws = [torch.from_numpy(generator(seed, "sampling", *place).random(length)) for place in places]
    return torch.stack(draws).to(device)


def _choose(logits: Tensor, decoding: Decoding, uniforms: Tensor | None) -> tuple[Tensor, Tensor]:
    if uniforms is None:
        chosen = logits.argmax(-1)
        return chosen, logp_of(logits, chosen)
    return draw(truncated(logits / decoding.temperature, decoding.top_k, decoding.top_p), uniforms)


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
    seed: int,
    places: Sequence[Place],
    vocabulary: int | None,
) -> tuple[list[Ids], None]:
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
