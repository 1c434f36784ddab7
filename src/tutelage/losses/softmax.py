"""The softmax of a block of logits, kept in the parts from which log-probabilities and slopes are made."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.losses.scratch import Scratch


@dataclass(frozen=True)
class Softmax:
    """Probabilities exp / total, and their logarithms shifted − log total."""

    shifted: Tensor
    """(logits − their maximum) / temperature, `[positions, vocabulary]`, at most 0."""
    exp: Tensor
    """Exponentials of `shifted`."""
    total: Tensor
    """Their sums, `[positions, 1]`, at least 1."""

    @classmethod
    def of(cls, logits: Tensor, temperature: float, scratch: Scratch) -> "Softmax":
        """Take the softmax of logits over a temperature, in arrays of the scratch."""
        shifted = torch.sub(logits, logits.amax(-1, keepdim=True), out=scratch.array())
        if temperature != 1.0:
            shifted /= temperature
        exp = torch.exp(shifted, out=scratch.array())
        return cls(shifted, exp, exp.sum(-1, keepdim=True))

    @property
    def logp(self) -> Tensor:
        """Log-probabilities, in a tensor of their own."""
        return self.shifted - self.total.log()

    def logp_of(self, targets: Tensor) -> Tensor:
        """Log-probability of one id a position, `[positions]`."""
        return (self.shifted.gather(-1, targets[:, None]) - self.total.log()).squeeze(-1)
