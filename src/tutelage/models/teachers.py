"""Teachers: who the student is compared with, wherever its knowledge comes from."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.divergences import Divergence
from tutelage.losses.head import Head
from tutelage.losses.linear import PointwiseFunction, Scores, linear_divergence
from tutelage.models.language_model import LanguageModel
from tutelage.rollouts.rollout import Rollout


class Teacher(Protocol):
    """What an objective may ask of a teacher.

    Token matching needs `compare` alone, which every kind of teacher has; what looks further needs the states and the
    head that reads them.
    """

    @property
    def head(self) -> Head:
        """The teacher's output head."""
        ...

    def hidden(self, rollout: Rollout) -> Float[Tensor, "positions width"]:
        """Return the final hidden states that predict the masked response tokens; no gradient."""
        ...

    def compare(
        self,
        student_hidden: Float[Tensor, "positions student_width"],
        student_head: Head,
        rollout: Rollout,
        divergence: str | Divergence | PointwiseFunction,
        **options: Any,
    ) -> Scores:
        """Compare the student with the teacher at the masked tokens, as `linear_divergence` does.

        Args:
            student_hidden: the student's final hidden states on the rollout; receives a gradient.
            student_head: its head; receives one too.
            rollout: the text.
            divergence: how the distributions are compared.
            options: further arguments of `linear_divergence`.
        """
        return linear_divergence(student_hidden, student_head, self.hidden(rollout), self.head, divergence, **options)


class LocalTeacher(Teacher):
    """A teacher in this process: frozen, without dropout, and timed.

    Args:
        model: the language model; its parameters stop asking for gradients.
        device: where the results are wanted, the head's weights too; the model's own device by default.
    """

    def __init__(self, model: LanguageModel, device: torch.device | None = None) -> None:
        self.model = model
        self.seconds = 0.0
        """Time spent in `hidden` so far."""
        self._device = device or model.device
        model.model.eval().requires_grad_(False)
        self._moved_head = None if self._device == model.device else head_on(model.head, self._device)

    @property
    def head(self) -> Head:
        """The teacher's output head, where the results are."""
        return self.model.head if self._moved_head is None else self._moved_head

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


def head_on(head: Head, device: torch.device) -> Head:
    """Return a frozen head whose weights are on a device."""
    bias = None if head.bias is None else head.bias.detach().to(device)
    return replace(head, weight=head.weight.detach().to(device), bias=bias)
