"""The output head of a language model: what turns a final hidden state into logits."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial


@dataclass(frozen=True)
class Head:
    """Weight, bias, scale and softcap of an output head.

    Formula: logits = softcap · tanh((scale · (hidden weightᵀ + bias)) / softcap), the softcap where there is
    one. The scale is Cohere's logit scale, the inverse of Granite's, or T5's 1/√width; the softcap Gemma's.
    """

    weight: Float[Tensor, "vocabulary width"]
    bias: Float[Tensor, " vocabulary"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocabulary(self) -> int:
        """Number of rows, padding rows included."""
        return self.weight.shape[0]

    def narrow(self, vocabulary: int) -> "Head":
        """Return a head over the first `vocabulary` ids only; weights are shared, not copied."""
        if vocabulary == self.vocabulary:
            return self
        bias = None if self.bias is None else self.bias[:vocabulary]
        return Head(self.weight[:vocabulary], bias, self.scale, self.softcap)

    def gathered(self) -> "Head":
        """Return a head whose weight and bias are whole on every process, collected where they are sharded.

        The gradients that the processes send back are summed, each shard receiving its own part.
        """
        return replace(self, weight=gathered(self.weight), bias=None if self.bias is None else gathered(self.bias))

    def detached(self) -> "Head":
        """Return the same head without gradient."""
        return replace(self, weight=self.weight.detach(), bias=None if self.bias is None else self.bias.detach())

    def logits(self, hidden: Float[Tensor, "... width"]) -> Float[Tensor, "... vocabulary"]:
        """Return the logits, in float32 or the wider type of the inputs.

        The product runs in the type of `hidden`, or in the autocast type where autocast is on.
        """
        compute = compute_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.logits_of(hidden.to(compute) @ self.weight.to(compute).mT)

    def logits_of(
        self, product: Float[Tensor, "... vocabulary"], out: Float[Tensor, "... vocabulary"] | None = None
    ) -> Float[Tensor, "... vocabulary"]:
        """Turn hidden weightᵀ into logits, in float32 or wider.

        The result is `product` itself where nothing changes, and may be `out` where that is given.
        """
        wide = torch.promote_types(product.dtype, torch.float32)
        logits = product if product.dtype == wide else product.to(wide) if out is None else out.copy_(product)
        if self.bias is not None:
            logits = logits + self.bias
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def slope_of_product(self, logits: Tensor, slope: Tensor) -> Tensor:
        """Turn ∂loss/∂logits into ∂loss/∂(hidden weightᵀ + bias); overwrites `slope`."""
        if self.softcap is not None:
            slope *= 1 - (logits / self.softcap) ** 2
        if self.scale != 1.0:
            slope *= self.scale
        return slope


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The type in which products with `hidden` run: autocast's where it is on, else its own."""
    if torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return hidden.dtype


def gathered(weight: Tensor) -> Tensor:
    """A weight that is whole on every process, collected where it is cut; the gradients sent back are summed."""
    if not isinstance(weight, DTensor):
        return weight
    return weight.full_tensor(grad_placements=[Partial()] * weight.device_mesh.ndim)
