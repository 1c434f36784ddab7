"""Reading a language model one token at a time, with its key–value cache.

A stepper is a batch of sequences that a model reads on. `read` reads prompts, `step` reads one more token of each
sequence, `keep` drops sequences that are done. The first two return the hidden states that predict the next token,
`[sequences, width]`. `joins` says whether new prompts may join sequences that are under way.
"""

from collections.abc import Sequence
from inspect import signature
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from tutelage.errors import InputError
from tutelage.models.decode_cache import SlotCache
from tutelage.models.language_model import LanguageModel, pad, positions
from tutelage.rollouts.rollout import Ids


class SlotStepper:
    """Sequences that come and go, over a cache that is written in place.

    Args:
        model: a decoder-only model with plain attention.
        layers: number of its layers.
    """

    joins = True

    def __init__(self, model: LanguageModel, layers: int) -> None:
        self._network = model.network.base_model
        self._cache = SlotCache(layers)
        self.lengths = torch.zeros(0, dtype=torch.long, device=model.device)
        """Tokens of each sequence."""
        self._steps, self._ahead = 0, list[int]()  # each one's length less the steps so far: no need to ask the device

    @property
    def width(self) -> int:
        """Columns that the next step looks at."""
        return self._longest + 2

    @property
    def cache(self) -> SlotCache:
        """What has been read."""
        return self._cache

    def read(self, prompts: Sequence[Ids]) -> Float[Tensor, "prompts width"]:
        """Read prompts, each a new sequence at the end of the batch; equal prompts are read once."""
        different, origin = _different(prompts, self.lengths.device)
        ids, mask = pad(different, "right", self.lengths.device)  # causal attention never looks at what follows
        place = self._cache.place
        place.first, place.origin, place.columns = len(self.lengths), origin, None
        states = self._network(input_ids=ids, past_key_values=self._cache, use_cache=True).last_hidden_state
        lengths = mask.sum(-1)
        self.lengths = torch.cat([self.lengths, lengths[origin]])
        self._ahead += [len(prompt) - self._steps for prompt in prompts]
        return states[torch.arange(len(ids), device=ids.device), lengths - 1][origin]

    def step(self, tokens: Int[Tensor, " sequences"]) -> Float[Tensor, "sequences width"]:
        """Read one token of each sequence."""
        states = self.look(tokens, self.lengths, self.width)
        self.advance()
        return states

    def look(
        self, tokens: Int[Tensor, " sequences"], columns: Int[Tensor, " sequences"], width: int
    ) -> Float[Tensor, "sequences width"]:
        """Read one token of each sequence into a column of its own, looking at so many columns; `advance` follows."""
        place = self._cache.place
        place.columns, place.width = columns, width
        seen = torch.arange(width, device=columns.device) <= columns[:, None]
        output = self._network(
            input_ids=tokens[:, None],
            attention_mask=seen.long(),
            position_ids=columns[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        return output.last_hidden_state[:, -1]

    def advance(self) -> None:
        """Every sequence has one more token."""
        self.lengths = self.lengths + 1
        self._steps += 1

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Go on with these sequences only, in this order."""
        order = rows.tolist()
        self._cache.place.width = self._longest
        self._cache.move({row: source for row, source in enumerate(order) if row != source})
        self.lengths = self.lengths[rows]
        self._ahead = [self._ahead[row] for row in order]

    @property
    def _longest(self) -> int:
        return self._steps + max(self._ahead, default=-self._steps)


class BatchStepper:
    """One batch from its prompts to its end, over the model's own kind of cache; reading prompts starts anew.

    Args:
        model: any language model: with an encoder, with sliding windows, with recurrent layers.
    """

    joins = False

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._encoded: tuple[Tensor, Tensor] | None = None
        self._cache: Cache = DynamicCache()
        self._mask = self._next_position = torch.zeros(0)
        self._ragged = False

    def read(self, prompts: Sequence[Ids]) -> Float[Tensor, "prompts width"]:
        """Read prompts, which are the batch from here on; equal prompts are read once."""
        config, device = self._model.network.config, self._model.device
        different, origin = _different(prompts, device)
        if self._model.is_encoder_decoder:
            ids, mask = pad(different, "right", device)
            states = self._model.network.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
            self._encoded = (states, mask)
            self._cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
            different = [(self._model.start_id,)] * len(different)
        else:
            self._cache = DynamicCache(config=config)
        ids, self._mask = pad(different, "left", device)
        self._ragged = bool((self._mask == 0).any())
        self._next_position = self._mask.sum(-1)
        hidden = self._read(ids, positions(self._mask))
        if len(different) == len(prompts):
            return hidden
        self.keep(origin)
        return hidden[origin]

    def step(self, tokens: Int[Tensor, " sequences"]) -> Float[Tensor, "sequences width"]:
        """Read one token of each sequence."""
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        hidden = self._read(tokens[:, None], self._next_position[:, None])
        self._next_position = self._next_position + 1
        return hidden

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Go on with these sequences only, in this order."""
        self._cache.reorder_cache(cast(torch.LongTensor, rows))
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


def _different(prompts: Sequence[Ids], device: torch.device) -> tuple[list[Ids], Tensor]:
    """Each prompt once, and which of these each prompt is."""
    different = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    return list(different), torch.tensor([different[prompt] for prompt in prompts], device=device)


def stepper(model: LanguageModel) -> SlotStepper | BatchStepper:
    """Return the stepper that fits a model: with a cache of our own where its attention is plain, else with its own.

    Plain means: decoder-only, every layer attends to all that came before, and masks and positions alone decide
    what is read, as transformers says of models that take a cache of fixed size.

    Raises:
        InputError: the model takes no `past_key_values` (Mamba, RWKV, XLM).
    """
    network = model.network
    if not model.is_encoder_decoder and "past_key_values" not in signature(network.base_model.forward).parameters:
        raise InputError(
            f"{type(network).__name__} remembers what it has read in a way of its own that our decoding does not know; "
            "let transformers write its text: set `backend: generate` in its decoding section"
        )
    layers = [] if model.is_encoder_decoder else DynamicCache(config=network.config).layers
    plain = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
    return SlotStepper(model, len(layers)) if plain and network._can_compile_fullgraph else BatchStepper(model)
