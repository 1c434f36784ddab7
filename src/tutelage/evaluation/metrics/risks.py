"""Likelihood and coverage risk: whether a student writes what its teacher would, and all that its teacher would."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Count, Decoding
from tutelage.evaluation.metrics.base import Metric
from tutelage.evaluation.score import Findings, Score
from tutelage.evaluation.sequences import token_logps


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Risks(Metric):
    """How unlikely each model finds the other's text. A collapsed student has low likelihood and high coverage risk,
    one that averages over modes the reverse.

    Formula, with teacher p and student q: `likelihood_risk` is the mean of −log p(y′), y′ ~ q; `coverage_risk` the
    mean of −log q(y), y ~ p; nats a token (all tokens of all texts count alike). The same nats a sequence have
    `_per_sequence` behind the name. Text is sampled at temperature 1, nothing left out, and the ids that only one
    of the models has are left out of both.

    Reference: f-distill (arXiv 2307.15190), Table 3.
    Differs: the authors search their samples with a beam among the most probable tokens.
    """

    name: Literal["risks"] = "risks"
    samples: Count = 1
    """Texts a prompt of each model."""
    max_new_tokens: Count | None = None
    """Longest text; by default the task's."""

    uses: ClassVar = frozenset({"teacher"})

    def measure(self, subject) -> Findings:
        """Have each model write, and the other one read."""
        assert subject.teacher is not None
        student, teacher = subject.student, subject.teacher
        scores = self._risk(subject, "likelihood_risk", writer=student, reader=teacher)
        return Findings(scores | self._risk(subject, "coverage_risk", writer=teacher.model, reader=student))

    def _risk(self, subject, name: str, *, writer, reader) -> dict[str, Score]:
        length = self.max_new_tokens or subject.task.decoding.max_new_tokens
        decoding = Decoding(max_new_tokens=length, batch_size=subject.task.decoding.batch_size)
        totals = {place: [0.0, 0.0] for place in subject.places}
        for sample in range(self.samples):
            what = f"text {sample + 1} of {self.samples} for the {name.replace('_', ' ')}"
            rollout = subject.write(what, decoding, seed=subject.seed + sample, by=writer)
            logps = token_logps(reader, rollout, subject.micro_batch_tokens, vocabulary=subject.vocabulary)
            for total, values in zip(totals.values(), logps, strict=True):
                total[0] -= values.sum().item()
                total[1] += len(values)
        means = {place: total / self.samples for place, (total, _) in totals.items()}
        return {
            name: Score(totals, "nats a token", "lower"),
            f"{name}_per_sequence": Score.of(means, unit="nats", better="lower"),
        }
