"""A model's products with the vocabulary, a chunk at a time, and the gradients that go back through them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.losses.chunks import slices
from tutelage.losses.head import Head, compute_dtype

_PIECE = 2048  # rows of a head's gradient that fit into a CPU's cache


@dataclass(frozen=True)
class Model:
    """Final hidden states of a model and its head, without gradient."""

    hidden: Tensor
    head: Head
    compute: torch.dtype
    """The type in which products run."""

    @classmethod
    def of(cls, hidden: Tensor, head: Head) -> "Model":
        """Take both as they are, and the type of products from autocast."""
        return cls(hidden.detach(), head.detached(), compute_dtype(hidden))


class Projection:
    """The products of one model in the chunk at work, and its gradients for a total gradient of 1.

    A slope that is to go back is written over `product`. `needed` tells whether the hidden states, the weight
    and the bias get a gradient.
    """

    def __init__(self, model: Model, chunk: int, needed: tuple[bool, ...]) -> None:
        head, device = model.head, model.hidden.device
        self.head = head
        self.hidden = model.hidden.to(model.compute)
        self._weight = head.weight.to(model.compute)
        self._buffer = torch.empty(chunk, head.vocabulary, dtype=model.compute, device=device)
        self.product = self._buffer[:0]
        new = torch.empty if len(model.hidden) else torch.zeros
        wide = torch.promote_types(head.weight.dtype, torch.float32)
        self.hidden_gradient = new(model.hidden.shape, dtype=model.hidden.dtype, device=device) if needed[0] else None
        self.weight_gradient = new(head.weight.shape, dtype=wide, device=device) if needed[1] else None
        self.bias_gradient = torch.zeros(head.vocabulary, dtype=wide, device=device) if needed[2] else None

    @property
    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of hidden states, weight and bias; `None` where none was asked for."""
        return self.hidden_gradient, self.weight_gradient, self.bias_gradient

    @property
    def needed(self) -> bool:
        """Whether any gradient is."""
        return any(g is not None for g in self.gradients)

    def project(self, rows: slice) -> None:
        """Compute the products of a chunk."""
        hidden = self.hidden[rows]
        self.product = torch.mm(hidden, self._weight.mT, out=self._buffer[: len(hidden)])

    def add_gradients(self, rows: slice) -> None:
        """Add the part of a chunk whose slope lies in `product`."""
        slope = self.product
        if self.bias_gradient is not None:
            self.bias_gradient += slope.sum(0, dtype=self.bias_gradient.dtype)
        if self.hidden_gradient is not None:
            self.hidden_gradient[rows] = (slope @ self._weight).to(self.hidden_gradient.dtype)
        if self.weight_gradient is not None:
            self._add_to_weight(self.weight_gradient, slope, self.hidden[rows], first=rows.start == 0)

    @staticmethod
    def _add_to_weight(gradient: Tensor, slope: Tensor, hidden: Tensor, *, first: bool) -> None:
        """Add slopeᵀ hidden; the first part is written over memory that was never filled."""
        if slope.dtype == gradient.dtype:
            gradient.addmm_(slope.mT, hidden, beta=0 if first else 1)
            return
        for piece in slices(len(gradient), _PIECE if gradient.device.type == "cpu" else len(gradient)):
            part = slope[:, piece].mT @ hidden
            gradient[piece].copy_(part) if first else gradient[piece].add_(part)


def handed_over(gradient: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return scale · gradient in a type; overwrites `gradient`."""
    if gradient.dtype == dtype:
        return gradient.mul_(scale.to(dtype))
    result = torch.empty_like(gradient, dtype=dtype)
    for piece in slices(len(gradient), _PIECE if gradient.device.type == "cpu" else max(1, len(gradient))):
        result[piece] = gradient[piece].mul_(scale)
    return result
