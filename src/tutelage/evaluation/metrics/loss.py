"""Language-modelling loss and perplexity on the references."""

from typing import Literal

from pydantic.dataclasses import dataclass

from tutelage.config import STRICT
from tutelage.evaluation.metrics.base import Metric
from tutelage.evaluation.score import Findings, Score
from tutelage.evaluation.sequences import token_logps


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Loss(Metric):
    """−log q(y | x) of the references.

    Formula: `loss` is Σ −log q(y_t) / Σ 1 over all reference tokens, nats a token; `perplexity` is exp(loss);
    `loss_per_item` is the mean over items of each item's mean, the language-modelling loss of MiniLLM's tables.

    Reference: MiniLLM (arXiv 2306.08543), diversity section, for the mean over items.
    """

    name: Literal["loss"] = "loss"

    def measure(self, subject) -> Findings:
        """Score every reference."""
        self.check_references(subject)
        rollout = subject.references
        logps = token_logps(
            subject.student,
            rollout,
            subject.micro_batch_tokens,
            done=lambda more: subject.advance("scoring references", more, len(rollout)),
        )
        rows = {
            place: (-values.sum().item(), float(len(values)))
            for place, values in zip(subject.places, logps, strict=True)
        }
        means = {place: total / count for place, (total, count) in rows.items()}
        return Findings(
            {
                "loss": Score(rows, "nats a token", "lower"),
                "perplexity": Score(rows, "", "lower", reduction="perplexity"),
                "loss_per_item": Score.of(means, unit="nats a token", better="lower"),
            }
        )
