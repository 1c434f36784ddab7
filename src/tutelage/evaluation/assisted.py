"""Speculative decoding by transformers: a target model writes with a draft model's help, and its calls are counted."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from tutelage.models.language_model import LanguageModel
from tutelage.rollouts.rollout import Ids


@dataclass(frozen=True)
class Written:
    """One response, and what it cost."""

    response: Ids
    calls: int
    """Forward passes of the target."""
    seconds: float


def write_assisted(
    target: LanguageModel,
    draft: LanguageModel | None,
    prompt: Ids,
    *,
    draft_tokens: int,
    max_new_tokens: int,
    sample: bool,
    vocabulary: int | None = None,
    seed: int = 0,
) -> Written:
    """Have a model write one response with transformers' `generate`, a batch of one.

    Args:
        target: whose text it is.
        draft: who proposes tokens; without one the target writes alone.
        prompt: ids.
        draft_tokens: tokens proposed before each call of the target, always as many (but at the end).
        max_new_tokens: longest response, end included.
        sample: draw at temperature 1, or take the most probable token.
        vocabulary: ids from this one on are never written.
        seed: of the draws.

    Raises:
        ValueError: transformers cannot assist this kind of model.
    """
    settings = GenerationConfig(
        do_sample=sample,
        top_k=0 if sample else None,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(target.stop_ids),
        pad_token_id=target.stop_ids[0],
        decoder_start_token_id=target.start_id if target.is_encoder_decoder else None,
        suppress_tokens=list(range(vocabulary or target.head.vocabulary, target.head.vocabulary)) or None,
    )
    ids = torch.tensor([prompt], device=target.device)
    options: dict[str, Any] = {} if draft is None else {"assistant_model": draft.network}
    devices = [target.device] if target.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices), _fixed_draft(draft, draft_tokens):
        torch.manual_seed(seed)
        with _calls_of(target) as calls:
            begin = time.perf_counter()
            output = target.network.generate(  # pyright: ignore[reportCallIssue]
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings, **options
            )
            response = output[0, 1 if target.is_encoder_decoder else len(prompt) :].tolist()
            seconds = time.perf_counter() - begin
    return Written(tuple(response), len(calls), seconds)


@contextmanager
def _calls_of(model: LanguageModel) -> Iterator[list[None]]:
    calls: list[None] = []
    hook = model.network.register_forward_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        hook.remove()


@contextmanager
def _fixed_draft(draft: LanguageModel | None, tokens: int) -> Iterator[None]:
    """transformers reads these from the draft's own configuration; by default it stops where the draft is unsure."""
    if draft is None:
        yield
        return
    own = draft.network.generation_config
    draft.network.generation_config = GenerationConfig(
        num_assistant_tokens=tokens,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
        decoder_start_token_id=draft.start_id if draft.is_encoder_decoder else None,
    )
    try:
        yield
    finally:
        draft.network.generation_config = own
