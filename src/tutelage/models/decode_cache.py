"""A key–value cache for decoding: written in place, never copied at a step, with sequences that come and go.

Each layer has one buffer of keys and one of values, `[sequences, heads, columns, width]`. A token's column is its
position in its sequence, so sequences of any length stand side by side, and a new one takes the place of one that
is done. Columns beyond a sequence's own tokens hold what was left there; the attention mask hides them.
"""

from collections.abc import Mapping
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
    growths: int = 0
    """How often a buffer has moved to larger memory."""


class SlotCache(Cache):
    """The cache of a decoder-only model whose layers all attend to everything before.

    `place` says where the next forward pass writes; whoever runs the model sets it.

    Args:
        layers: number of the model's layers.
    """

    def __init__(self, layers: int) -> None:
        self.place = Place()
        self._slots = [_SlotLayer(self.place) for _ in range(layers)]
        super().__init__(layers=list(self._slots))

    @property
    def dtype(self) -> torch.dtype:
        """Type of what is kept."""
        return self._slots[0].buffers[0].states.dtype

    def reserve(self, rows: int, columns: int) -> None:
        """Have room for so many sequences and columns; prompts have been read before."""
        for buffer in self._buffers():
            buffer.fit(buffer.states, rows, columns)

    def move(self, sources: Mapping[int, int]) -> None:
        """Copy sequences over others; where to is the key, which one is the value."""
        if not sources:
            return
        device = self._slots[0].buffers[0].states.device
        target, source = (torch.tensor(list(rows), device=device) for rows in (sources.keys(), sources.values()))
        for buffer in self._buffers():
            buffer.copy(source, target)

    def _buffers(self) -> "list[_Buffer]":
        return [buffer for layer in self._slots for buffer in layer.buffers]


class _SlotLayer(DynamicLayer):
    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place
        self.buffers = _Buffer(place), _Buffer(place)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Write what is new; return what attention reads."""
        keys, values = self.buffers
        return keys.write(key_states), values.write(value_states)

    @property
    def is_compileable(self) -> bool:
        """Whether transformers makes a mask for one token without asking whether there is anything to mask.

        There always is, and on a GPU the question waits for all work before it.
        """
        return self._place.columns is not None

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
            self.fit(new, last, longest)
            self.states[place.first : last, :, :longest] = new[place.origin]
            return new
        count = len(place.columns)
        self.fit(new, count, place.width)
        self.states[torch.arange(count, device=new.device), :, place.columns] = new[:, :, 0]
        return self.states[:count, :, : place.width]

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy sequences."""
        self.states[target, :, : self._place.width] = self.states[source, :, : self._place.width]

    def fit(self, new: Tensor, rows: int, columns: int) -> None:
        """Grow where it is too small for states like these: by half and a little, so that it happens rarely."""
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
        self._place.growths += 1
