"""A key–value cache for decoding: written in place, never copied at a step, with sequences that come and go.

Each layer has one buffer of keys and one of values, `[sequences, heads, columns, width]`. A token's column is its
position in its sequence, so sequences of any length stand side by side, and a new one takes the place of one that
is done. Columns beyond a sequence's own tokens hold what was left there; the attention mask hides them.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

_SPARE_COLUMNS = 64


@dataclass
class Place:
    """Where the next forward pass writes; one object for all layers."""

    first: int = 0
    """Prompts: the first sequence that is new."""
    origin: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """Prompts: which of the prompts that are read each new sequence starts with."""
    columns: Tensor | None = None
    """Tokens: the column of each sequence's token; `None` while prompts are read."""
    width: int = 0
    """Columns in use and one more that no sequence may look at: without a mask, transformers leaves grouped queries to
    an attention kernel that takes five times as long on a CPU."""


class SlotCache(Cache):
    """The cache of a decoder-only model whose layers all attend to everything before.

    `place` says where the next forward pass writes; whoever runs the model sets it.

    Args:
        layers: number of the model's layers.
    """

    def __init__(self, layers: int) -> None:
        self.place = Place()
        super().__init__(layers=[_SlotLayer(self.place) for _ in range(layers)])


class _SlotLayer(DynamicLayer):
    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place
        self.buffers = _Buffer(place), _Buffer(place)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Write what is new; return what attention reads."""
        keys, values = self.buffers
        return keys.write(key_states), values.write(value_states)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with these sequences, in this order."""
        moved = (beam_idx != torch.arange(len(beam_idx), device=beam_idx.device)).nonzero().squeeze(1)
        for buffer in self.buffers:
            buffer.copy(beam_idx[moved], moved)

    def get_seq_length(self) -> int:
        """Columns before the one that is read next, as the attention mask counts them."""
        return 0 if self._place.columns is None else self._place.width - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of columns that attention reads, and the first of them."""
        return (query_length if self._place.columns is None else self._place.width), 0


class _Buffer:
    """Keys or values of one layer."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.states = torch.zeros(0, 0, 0, 0)

    def write(self, new: Tensor) -> Tensor:
        """Write the states of prompts, or of one token a sequence; return what attention reads."""
        place = self._place
        if place.columns is None:
            last, longest = place.first + len(place.origin), new.shape[2]
            self._fit(new, last, longest)
            self.states[place.first : last, :, :longest] = new[place.origin]
            return new
        count = len(place.columns)
        self._fit(new, count, place.width)
        self.states[torch.arange(count, device=new.device), :, place.columns] = new[:, :, 0]
        return self.states[:count, :, : place.width]

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy sequences."""
        if len(source):
            self.states[target, :, : self._place.width] = self.states[source, :, : self._place.width]

    def _fit(self, new: Tensor, rows: int, columns: int) -> None:
        """Grow where it is too small: by half and a little, so that it happens rarely."""
        held = self.states
        if rows <= held.shape[0] and columns <= held.shape[2]:
            return
        if columns > held.shape[2]:
            columns += columns // 2 + _SPARE_COLUMNS
        # Zeros: what the mask hides still takes part in a product with zero, which infinity would spoil.
        size = (max(rows, held.shape[0]), new.shape[1], max(columns, held.shape[2]), new.shape[3])
        self.states = new.new_zeros(size)
        if held.numel():
            self.states[: held.shape[0], :, : held.shape[2]] = held
