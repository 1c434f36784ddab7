"""What the methods have in common that compare student and teacher on fixed text, on the student's own, or both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Decoding, Share
from tutelage.methods.gkd import Offline

if TYPE_CHECKING:
    from torch import Tensor

    from tutelage.models.language_model import LanguageModel
    from tutelage.models.teachers import Teacher
    from tutelage.rollouts.rollout import Rollout
    from tutelage.rollouts.samplers import Sampler, Sources

Side = Literal["off", "on"]
Discount = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OnAndOffPolicy:
    """Text of both kinds for each prompt: L = (1 − β) · L_off + β · L_on, each a mean of its own."""

    on_policy_weight: Share = 0.5
    """β: the weight of the term on the student's own text; 1 − β is that of the term on fixed text. 0 uses fixed
    text only, 1 the student's only. The paper has one such factor, but which term it multiplies is not known."""
    offline: Offline = "teacher"
    """Where the fixed text comes from: the teacher (written once, kept on disk), or the data's responses."""
    discount: Discount = 1.0
    """γ: the weight of the t-th response token is γ^t."""
    unit: Literal["token", "sequence"] = "token"
    """What each term's sum is divided by: the tokens or the sequences of its text. `sequence` is the expectation
    over whole sequences of the paper; `token` is the same divided by the mean length."""
    student_decoding: Decoding = Field(default_factory=Decoding)
    """How the student writes."""
    teacher_decoding: Decoding = Field(default_factory=Decoding)
    """How the teacher writes, where `offline` is `teacher`."""

    @property
    def needs_teacher(self) -> bool:
        """Yes."""
        return True

    @property
    def weights(self) -> dict[Side, float]:
        """The terms that count, with their weights."""
        weights: dict[Side, float] = {"off": 1 - self.on_policy_weight, "on": self.on_policy_weight}
        return {side: weight for side, weight in weights.items() if weight}

    def sampler(self, sources: Sources) -> Sampler:
        """Fixed text, the student's own, or both for each prompt."""
        from tutelage.rollouts.samplers import Both

        fixed = sources.data() if self.offline == "data" else sources.teacher(self.teacher_decoding)
        student = sources.student(self.student_decoding)
        if len(self.weights) == 2:
            return Both(fixed, student)
        return fixed if "off" in self.weights else student

    def units(self, rollout: Rollout) -> dict[str, float]:
        """Tokens or sequences of each kind of text."""
        counts = {}
        for side in self.weights:
            positions = rollout.select(rows_of(rollout, side)).positions_of
            counts[side] = sum(positions) if self.unit == "token" else sum(map(bool, positions))
        return counts


def refuse_other_policies(decoding: Decoding) -> None:
    """Refuse text that the student would not have drawn from its own distribution.

    Raises:
        ValueError: a policy gradient on such text is a gradient of something else.
    """
    if not decoding.samples_the_model:
        raise ValueError(
            "student_decoding must sample from the student itself (strategy sample, temperature 1, top_k 0, "
            "top_p 1, no_repeat_ngram_size 0): the gradient is that of the distribution the text is drawn from"
        )


def rows_of(rollout: Rollout, side: Side) -> list[int]:
    """Return the sequences that the student wrote (`on`), or the others (`off`)."""
    return [row for row, writer in enumerate(rollout.writers) if (writer == "student") == (side == "on")]


@plain_dataclass(frozen=True)
class Part:
    """The text of one kind in a micro-batch, with both models' hidden states on it."""

    side: Side
    rollout: Rollout
    hidden: Tensor
    teacher_hidden: Tensor
    targets: Tensor

    @property
    def sequences(self) -> int:
        """Sequences with a token in the loss."""
        return sum(map(bool, self.rollout.positions_of))

    def rows(self, values: Tensor) -> list[list[float]]:
        """Cut values per position into one row a sequence."""
        return [row.double().tolist() for row in values.split(list(self.rollout.positions_of))]

    def per_position(self, rows: list[list[float]]) -> Tensor:
        """Put rows, one number a masked token, one after the other."""
        import torch

        flat = [value for row in rows for value in row]
        return torch.tensor(flat, dtype=torch.float64, device=self.hidden.device)

    def discounts(self, discount: float) -> Tensor:
        """Return γ^t at each position."""
        from tutelage.estimators import discounts

        return self.per_position(discounts(self.rollout.positions_of, discount))


def parts_of(
    rollout: Rollout, sides: list[Side], student: LanguageModel, teacher: Teacher, vocabulary: int | None
) -> Iterator[Part]:
    """Run both models over a micro-batch once, and hand out its text by kind."""
    import torch

    hidden, teacher_hidden = student.hidden(rollout), teacher.hidden(rollout)
    targets = student.targets(rollout, vocabulary)
    starts = [0]
    for positions in rollout.positions_of:
        starts.append(starts[-1] + positions)
    for side in sides:
        rows = rows_of(rollout, side)
        flat = [place for row in rows for place in range(starts[row], starts[row + 1])]
        where = torch.tensor(flat, dtype=torch.long, device=hidden.device)
        yield Part(side, rollout.select(rows), hidden[where], teacher_hidden[where], targets[where])
