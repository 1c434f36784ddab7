"""Taking back updates that were made too early."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class Undo:
    """Copies of some modules and of what their optimisers remember, to be put back bit for bit.

    Args:
        modules: all modules of a run, by name.
        optimizers: the optimiser of each.
        names: the modules to copy.

    >>> layer = nn.Linear(1, 1)
    >>> undo = Undo({"a": layer}, {"a": torch.optim.AdamW(layer.parameters())}, ["a"])
    >>> before = layer.weight.item()
    >>> _ = nn.init.zeros_(layer.weight)
    >>> undo()
    >>> layer.weight.item() == before
    True
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer], names: Iterable[str]
    ) -> None:
        self._copies = [
            (optimizers[name], parameter, parameter.detach().clone(), _cloned(optimizers[name].state.get(parameter)))
            for name in names
            for group in optimizers[name].param_groups
            for parameter in group["params"]
        ]

    @torch.no_grad()
    def __call__(self) -> None:
        """Put everything back."""
        for optimizer, parameter, copy, state in self._copies:
            parameter.copy_(copy)
            optimizer.state.pop(parameter, None)
            if state:
                optimizer.state[parameter] = _cloned(state)


def _cloned(state: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in (state or {}).items()}
