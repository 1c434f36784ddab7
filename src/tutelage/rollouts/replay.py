"""A sampler with a memory: more of the student's text as the student needs it, and old text used again."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from tutelage.data import Example
from tutelage.randomness import generator
from tutelage.rollouts.rollout import Rollout, joined, rollout_of
from tutelage.rollouts.samplers import Sampler


class AdaptiveMixture:
    """The student's text with a probability that rises when the validation loss does; old text is used again.

    One number r ~ U(0, 1) is drawn for each batch. With φ the probability of the student's text, t the batch
    (counted from 1) and T their number:

    1. r < φ(1 − t/T), or r < φ while the buffer is not full: the student writes; its text goes into the buffer.
    2. else, r < φ: rows drawn from the buffer at random.
    3. else: the data.

    After an evaluation whose loss is at least the last one's plus a tolerance, φ rises.

    Args:
        student: writes new text.
        data: the fixed text.
        steps: T.
        seed: the run's seed.
        fraction: φ at the start, in [0, 1].
        increase: what φ rises by; it stays at most 1.
        tolerance: rise of the validation loss that is let pass, nats a token.
        capacity: sequences in the buffer; the oldest ones leave it.
        compare_with: the loss that an evaluation is compared with: the one at which φ rose last, the first one
            until then (`last_rise`, the official code), or always the evaluation before (`last`).

    Reference: DistiLLM (arXiv 2402.03898), Algorithm 1, and its official code.
    """

    def __init__(
        self,
        student: Sampler,
        data: Sampler,
        *,
        steps: int,
        seed: int,
        fraction: float = 0.0,
        increase: float = 0.1,
        tolerance: float = 0.1,
        capacity: int = 1000,
        compare_with: Literal["last_rise", "last"] = "last_rise",
    ) -> None:
        self._student, self._data = student, data
        self._steps, self._seed = steps, seed
        self._increase, self._tolerance, self._capacity = increase, tolerance, capacity
        self._compare_with = compare_with
        self._previous: float | None = None
        self._buffer = Rollout.of([], [])
        self.fraction = fraction
        """φ as it is now."""

    @property
    def stored(self) -> int:
        """Sequences in the buffer."""
        return len(self._buffer)

    def sample(self, examples: Sequence[Example], step: int) -> Rollout:
        """Draw where the batch comes from. Text out of the buffer answers the prompts that it was written for."""
        draw = generator(self._seed, "mixture", step).random()
        if draw >= self.fraction:
            return self._data.sample(examples, step)
        if draw < self.fraction * (1 - (step + 1) / self._steps) or self.stored < self._capacity:
            written = self._student.sample(examples, step)
            whole = joined([self._buffer, written])
            self._buffer = whole.select(range(max(0, len(whole) - self._capacity), len(whole)))
            return written
        few = self.stored < len(examples)
        rows = generator(self._seed, "replay", step).choice(self.stored, len(examples), replace=few)
        return self._buffer.select(rows.tolist())

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Take the validation loss, and raise φ if it has risen."""
        loss = metrics["loss"]
        if self._previous is None:
            self._previous = loss
            return
        risen = loss >= self._previous + self._tolerance
        if risen:
            self.fraction = min(self.fraction + self._increase, 1.0)
        if risen or self._compare_with == "last":
            self._previous = loss

    def state(self) -> dict[str, Any]:
        """Return φ, the loss to compare with, and the buffer."""
        return {"fraction": self.fraction, "previous": self._previous, "buffer": asdict(self._buffer)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.fraction, self._previous = state["fraction"], state["previous"]
        self._buffer = rollout_of(state["buffer"])
