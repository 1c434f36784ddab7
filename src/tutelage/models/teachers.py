"""Teachers: who the student is compared with, wherever its knowledge comes from."""

import time
from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.losses.head import Head
from tutelage.models.language_model import LanguageModel
from tutelage.rollouts.rollout import Rollout


class Teacher(Protocol):
    """What an objective may ask of a teacher."""

    @property
    def head(self) -> Head:
        """The teacher's output head."""
        ...

    def hidden(self, rollout: Rollout) -> Float[Tensor, "positions width"]:
        """Return the final hidden states that predict the masked response tokens; no gradient."""
        ...


class LocalTeacher:
    """A teacher in this process: frozen, without dropout, and timed.

    Args:
        model: the language model; its parameters stop asking for gradients.
        device: where the results are wanted; the model's own device by default.
    """

    def __init__(self, model: LanguageModel, device: torch.device | None = None) -> None:
        self.model = model
        self.seconds = 0.0
        """Time spent in `hidden` so far."""
        self._device = device or model.device
        model.model.eval().requires_grad_(False)

    @property
    def head(self) -> Head:
        """The teacher's output head."""
        return self.model.head

    @torch.no_grad()
    def hidden(self, rollout: Rollout) -> Float[Tensor, "positions width"]:
        """Return the final hidden states that predict the masked response tokens; no gradient."""
        start = time.perf_counter()
        hidden = self.model.hidden(rollout).to(self._device)
        self.seconds += time.perf_counter() - start
        return hidden

    @torch.no_grad()
    def layer_states(
        self, rollout: Rollout, layers: Sequence[int]
    ) -> tuple[Float[Tensor, "positions width"], Float[Tensor, "layers positions width"]]:
        """Return the same with the states after some layers, as `LanguageModel.layer_states` does; no gradient."""
        start = time.perf_counter()
        hidden, states = self.model.layer_states(rollout, layers)
        self.seconds += time.perf_counter() - start
        return hidden.to(self._device), states.to(self._device)
