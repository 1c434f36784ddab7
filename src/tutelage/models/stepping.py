"""Reading a language model one token at a time, with its key–value cache."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from tutelage.models.language_model import LanguageModel, pad, positions
from tutelage.rollouts.rollout import Ids


class Stepper:
    """A batch of sequences that a model reads on, token by token.

    `start` reads the prompts; `step` reads one more token a sequence; `keep` drops sequences that are done.
    The first two return the hidden states that predict the next token, `[batch, width]`.

    Args:
        model: the language model to read with.
        prompts: one prompt a sequence.
    """

    def __init__(self, model: LanguageModel, prompts: Sequence[Ids]) -> None:
        self._model = model
        self._encoded: tuple[Tensor, Tensor] | None = None
        config = model.network.config
        if model.is_encoder_decoder:
            ids, mask = pad(list(prompts), "right", model.device)
            states = model.network.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
            self._encoded = (states, mask)
            self._cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
            prompts = [(model.start_id,)] * len(prompts)
        else:
            self._cache = DynamicCache(config=config)
        self._ids, self._mask = pad(list(prompts), "left", model.device)
        self._ragged = bool((self._mask == 0).any())
        self._next_position = self._mask.sum(-1)

    def start(self) -> Float[Tensor, "batch width"]:
        """Read the prompts."""
        return self._read(self._ids, positions(self._mask))

    def step(self, tokens: Int[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        """Read one token of each sequence."""
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        hidden = self._read(tokens[:, None], self._next_position[:, None])
        self._next_position = self._next_position + 1
        return hidden

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Go on with these sequences only."""
        self._cache.batch_select_indices(rows)
        self._mask, self._next_position = self._mask[rows], self._next_position[rows]
        if self._encoded is not None:
            self._encoded = (self._encoded[0][rows], self._encoded[1][rows])

    def _read(self, ids: Tensor, position_ids: Tensor) -> Tensor:
        if self._encoded is not None:
            states, mask = self._encoded
            output = self._model.network.get_decoder()(
                input_ids=ids,
                encoder_hidden_states=states,
                encoder_attention_mask=mask,
                past_key_values=self._cache,
                use_cache=True,
            )
        else:
            output = self._model.network.base_model(
                input_ids=ids,
                attention_mask=self._mask if self._ragged else None,
                position_ids=position_ids,
                past_key_values=self._cache,
                use_cache=True,
            )
        return output.last_hidden_state[:, -1]
