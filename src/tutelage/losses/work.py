"""What one pass over the vocabulary is given, and the values per position that it gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.losses.chunks import chunk_size, evened
from tutelage.losses.projection import Model, Projection


@dataclass(frozen=True)
class Work:
    """Everything that a pass needs, without gradient."""

    student: Model
    others: tuple[Model, ...]
    """Models whose products a chunk needs besides the student's: a teacher, and a third model after it."""
    pointwise: "Pointwise"
    compared: bool
    """Whether there is a divergence."""
    coefficients: Tensor | None
    targets: Tensor | None
    cross_entropy: Tensor | None
    temperature: float
    memory: int

    @property
    def vocabulary(self) -> int:
        """Number of ids that are compared."""
        return self.student.head.vocabulary

    def chunk(self) -> int:
        """Return the positions that are projected together: their products fill the memory."""
        bytes_per_logit = sum(model.compute.itemsize for model in (self.student, *self.others))
        return evened(len(self.student.hidden), chunk_size(self.vocabulary, self.memory, bytes_per_logit))


@dataclass(frozen=True)
class Values:
    """Values per position, filled in as the pass goes on; `None` for what nobody asked for."""

    divergence: Tensor | None
    student_logp: Tensor | None
    teacher_logp: Tensor | None

    @classmethod
    def empty(cls, work: Work) -> "Values":
        """Make room."""
        hidden = work.student.hidden
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        targets = work.targets is not None
        wanted = (work.compared, targets, targets and work.compared)
        return cls(*(torch.zeros(len(hidden), dtype=dtype, device=hidden.device) if w else None for w in wanted))

    def total(self, work: Work) -> Tensor:
        """Σ coefficients · divergence − Σ cross_entropy · student_logp."""
        parts = []
        if self.divergence is not None:
            weights = work.coefficients
            parts.append(self.divergence.sum() if weights is None else (weights * self.divergence).sum())
        if work.cross_entropy is not None:
            assert self.student_logp is not None
            parts.append(-(work.cross_entropy * self.student_logp).sum())
        return torch.stack(parts).sum()

    def tensors(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return all three."""
        return self.divergence, self.student_logp, self.teacher_logp


Pointwise = Callable[[Work, slice, Sequence[Projection], Values], Any]
"""The pointwise work of a chunk, given its rows among all and its products: fills in the values and writes the
slopes of the total over the products of those models that need gradients."""
