"""Language-modelling loss and perplexity on the references."""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT
from tutelage.evaluation.metrics.base import Metric
from tutelage.evaluation.score import Findings, Score
from tutelage.losses import linear_divergence


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Loss(Metric):
    """−log q(y | x) of the references.

    Formula: `loss` is Σ −log q(y_t) / Σ 1 over all reference tokens, nats a token; `perplexity` is exp(loss);
    `loss_per_item` is the mean over items of each item's mean, the language-modelling loss of MiniLLM's tables.

    Reference: MiniLLM (arXiv 2306.08543), diversity section, for the mean over items.
    """

    name: Literal["loss"] = "loss"

    @torch.no_grad()
    def measure(self, subject) -> Findings:
        """Score every reference."""
        totals: dict[str, float] = {}
        counts: dict[str, float] = {}
        for part in subject.references.micro_batches(subject.micro_batch_tokens):
            targets = subject.student.targets(part)
            scores = linear_divergence(
                subject.student.hidden(part),
                subject.student.head,
                targets=targets,
                cross_entropy=torch.ones_like(targets).float(),
            )
            assert scores.student_logp is not None
            places = [subject.places[item] for item in part.items]
            sequences = scores.student_logp.double().split(list(part.positions_of))
            totals |= {place: -values.sum().item() for place, values in zip(places, sequences, strict=True)}
            counts |= dict(zip(places, map(float, part.positions_of), strict=True))
            subject.advance("scoring references", len(part), len(subject.places))
        rows = {place: (totals[place], counts[place]) for place in subject.places}
        means = {place: totals[place] / counts[place] for place in subject.places}
        return Findings(
            {
                "loss": Score(rows, "nats a token", "lower"),
                "perplexity": Score(rows, "", "lower", reduction="perplexity"),
                "loss_per_item": Score.of(means, unit="nats a token", better="lower"),
            }
        )
