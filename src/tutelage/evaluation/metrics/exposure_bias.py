"""How much faster errors gather in text that the student writes than in text of its teacher."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from tutelage.config import STRICT, Count, Decoding
from tutelage.divergences import forward_kl
from tutelage.evaluation.metrics.base import Metric
from tutelage.evaluation.score import Curve, Findings, Score, resampled
from tutelage.evaluation.sequences import comparison, per_sequence


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExposureBias(Metric):
    """Excess accumulated error of free-running generation. Use it to see whether a student goes astray in its own text.

    Formula, with teacher p and student q: R(l) = Σ_{t≤l} E_{y<t ~ student} KL(p_t ‖ q_t),
    l·ε(l) = Σ_{t≤l} E_{y<t ~ teacher} KL(p_t ‖ q_t), and ExAccErr(l) = (R(l) − l·ε(l)) / (l·ε(l)) · 100 %: 0 where
    the student errs no more in its own text than in its teacher's. The expectations are means over the prompts and
    over `samples` texts a prompt, drawn from each model itself (temperature 1, nothing left out). The divergence is
    summed over the whole vocabulary, so it has no sampling noise of its own. Text that has ended contributes nothing
    more: after its end nothing is at stake.

    Scores are `exposure_bias` at the greatest length (%), `exposure_bias_<l>` at each of `lengths`, and the two totals
    `student_text_accumulated_kl` and `teacher_text_accumulated_kl` at the greatest length (nats): where these are
    about 0, as for a student that equals its teacher, the ratio says nothing. The curve `exposure_bias` is
    ExAccErr(l) over l, with the 95 % band of a bootstrap over the prompts.

    Reference: Arora et al. 2022 (arXiv 2204.01171), as in MiniLLM (arXiv 2306.08543), Fig. 6.
    Differs: MiniLLM's script leaves out the first token of a response; here l = 1 is that token. The script has one
    sample a prompt by default, the paper ten.
    """

    name: Literal["exposure_bias"] = "exposure_bias"
    samples: Count = 10
    """Texts a prompt of each model."""
    max_new_tokens: Count | None = None
    """The greatest length; by default the task's."""
    lengths: tuple[Annotated[int, Field(ge=1)], ...] = (15,)
    """At which l there is a number besides; those beyond the greatest length are left out."""

    uses: ClassVar = frozenset({"teacher"})

    def measure(self, subject) -> Findings:
        """Have both models write, and compare them token by token."""
        length = self.max_new_tokens or subject.task.decoding.max_new_tokens
        student_text = self._accumulated(subject, "student", length)
        teacher_text = self._accumulated(subject, "teacher", length)

        def score(at: int) -> Score:
            pairs = np.stack([student_text[:, at - 1], teacher_text[:, at - 1]], axis=1)
            return Score(dict(zip(subject.places, pairs.tolist(), strict=True)), "%", "lower", reduction="excess")

        scores = {"exposure_bias": score(length)}
        scores |= {f"exposure_bias_{at}": score(at) for at in self.lengths if at < length}
        for writer, text in (("student", student_text), ("teacher", teacher_text)):
            scores[f"{writer}_text_accumulated_kl"] = Score.of(
                dict(zip(subject.places, text[:, -1].tolist(), strict=True)), unit="nats", better="lower"
            )
        return Findings(scores, {"exposure_bias": _curve(student_text, teacher_text)})

    def _accumulated(self, subject, writer: str, length: int) -> NDArray[np.float64]:
        """Mean over a prompt's texts of the accumulated divergence, `[prompts, length]`."""
        by = subject.student if writer == "student" else subject.teacher.model
        decoding = Decoding(max_new_tokens=length, batch_size=subject.task.decoding.batch_size)
        compare = comparison(forward_kl, subject.student, subject.teacher, subject.vocabulary)
        total = np.zeros((len(subject.items), length))
        for sample in range(self.samples):
            what = f"{writer}'s text {sample + 1} of {self.samples}"
            rollout = subject.write(what, decoding, seed=subject.seed + sample, by=by)
            total += accumulated(per_sequence(compare, rollout, subject.micro_batch_tokens), length)
        return total / self.samples


def accumulated(divergences: Sequence[Tensor], length: int) -> NDArray[np.float64]:
    """Sum each sequence's divergences up to each length, `[sequences, length]`; after its end nothing is added.

    >>> import torch
    >>> accumulated([torch.tensor([1.0, 2.0]), torch.tensor([3.0])], 3).tolist()
    [[1.0, 3.0, 3.0], [3.0, 3.0, 3.0]]
    """
    steps = np.zeros((len(divergences), length))
    for row, values in enumerate(divergences):
        steps[row, : len(values)] = values
    return steps.cumsum(1)


def _curve(student_text: NDArray[np.float64], teacher_text: NDArray[np.float64]) -> Curve:
    prompts, length = student_text.shape
    draws = resampled(prompts)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = 100.0 * (student_text.sum(0) / teacher_text.sum(0) - 1.0)
        low, high = np.quantile(100.0 * ((draws @ student_text) / (draws @ teacher_text) - 1.0), [0.025, 0.975], axis=0)
    return Curve(
        x=list(range(1, length + 1)),
        y=values.tolist(),
        x_title="response tokens",
        y_title="excess accumulated error, %",
        low=low.tolist(),
        high=high.tolist(),
        n=[prompts] * length,
    )
