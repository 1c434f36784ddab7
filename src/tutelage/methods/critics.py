"""Critics: bounded functions of a state and a token, light heads on hidden states that others computed."""

from typing import Literal

import torch
from torch import Tensor, nn

from tutelage.losses.head import Head, gathered
from tutelage.models.language_model import LanguageModel
from tutelage.models.teachers import Teacher

Source = Literal["student", "teacher", "both"]


class Critic(nn.Module):
    """A bounded action-value function over the whole vocabulary, 0 everywhere at the start.

    Formula: f(s, ·) = B · tanh(W h / √H), with W `[vocabulary, H]`; with a rank r, W D / √(r H) in its place, with
    W `[vocabulary, r]` zero and D `[r, H]` random at the start. h is detached: no gradient leaves the critic.

    Where the parameters are cut over the processes of a run, they are collected for each use.

    A bound is needed because the moment distance is linear in f: without it the supremum is infinite.

    Args:
        student: whose hidden states the critic may read.
        teacher: likewise.
        source: whose hidden states h it reads; `both` are put side by side.
        bound: B.
        rank: r, or `None` for the full W.
        discount: γ of the distance that the critic stands for.
        seed: of D.
    """

    def __init__(
        self,
        student: LanguageModel,
        teacher: Teacher,
        *,
        source: Source = "teacher",
        bound: float = 0.5,
        rank: int | None = None,
        discount: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.source, self.bound, self.discount = source, bound, discount
        heads = {"student": student.head, "teacher": teacher.head}
        width = sum(heads[name].weight.shape[1] for name in self._read)
        like = {
            "dtype": torch.promote_types(student.head.weight.dtype, torch.float32),
            "device": student.head.weight.device,
        }
        rows = min(head.vocabulary for head in heads.values())
        self.weight = nn.Parameter(torch.zeros(rows, rank or width, **like))
        self.down = None
        if rank is not None:
            generator = torch.Generator().manual_seed(seed)
            self.down = nn.Parameter(torch.randn(rank, width, generator=generator).to(**like))

    @property
    def _read(self) -> tuple[str, ...]:
        return ("student", "teacher") if self.source == "both" else (self.source,)

    @property
    def head(self) -> Head:
        """What turns `hidden` into f: a head whose softcap is the bound."""
        return Head(self.weight, scale=self.bound / self.weight.shape[1] ** 0.5, softcap=self.bound)

    def states(self, student_hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
        """Return h, detached, `[positions, H]`."""
        hidden = {"student": student_hidden, "teacher": teacher_hidden}
        return torch.cat([hidden[name].detach().to(self.weight) for name in self._read], dim=-1)

    def hidden(self, states: Tensor) -> Tensor:
        """Return what the head reads: h itself, or D h / √H."""
        return states if self.down is None else states @ gathered(self.down).mT / states.shape[-1] ** 0.5

    def at(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Return f(s, y) of one token a position, `[positions]`."""
        return self._values(states, gathered(self.weight)[tokens])

    def steepness(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Return ‖∇_h f(s, y)‖ of one token a position, `[positions]`."""
        rows = gathered(self.weight)[tokens]
        values = self._values(states, rows)
        if self.down is not None:
            rows = rows @ gathered(self.down) / states.shape[-1] ** 0.5
        length = (rows.square().sum(-1) + 1e-12).sqrt() * self.head.scale
        return length * (1 - (values / self.bound) ** 2)

    def _values(self, states: Tensor, rows: Tensor) -> Tensor:
        """f at one token a position, of which the rows of W are given."""
        outputs = (self.hidden(states) * rows).sum(-1) * self.head.scale
        return self.bound * torch.tanh(outputs / self.bound)

    def obliqueness(self) -> Tensor:
        """Return ‖WᵀW − I‖², how far the columns of W are from orthonormal."""
        weight = gathered(self.weight)
        gram = weight.mT @ weight
        return (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).square().sum()
