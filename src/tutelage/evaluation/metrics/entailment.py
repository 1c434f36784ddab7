"""Whether a text entails what the student writes, by a classifier."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Count, Model
from tutelage.evaluation.metrics.base import Metric
from tutelage.evaluation.score import Findings, Score
from tutelage.models.identity import weights_identity
from tutelage.rewards.classifier import verdict


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Entailment(Metric):
    """Mean probability, in per cent, that a text entails the response, by a sequence-classification model.

    A response that copies its document, or says next to nothing, is entailed too: report its length beside it.

    Formula: 100 × the classifier's softmax at `label`, for the pair of premise and response.

    Reference: GKD (arXiv 2306.13649), which rewards and measures summaries so, with a T5 entailment classifier.
    """

    name: Literal["entailment"] = "entailment"
    model: str
    """Hub id or folder of the classifier."""
    label: str = "entailment"
    """The label's name in the classifier's configuration, whatever its case."""
    premise: Literal["prompt", "reference"] = "prompt"
    """What is to entail the response: the whole prompt (with instructions and worked examples, if it has any), or the
    first reference."""
    max_tokens: Count = 512
    """Longer pairs are cut."""
    batch_size: Count = 16
    """Pairs in one forward pass."""
    device: str = "auto"
    """Where the classifier runs."""

    uses: ClassVar = frozenset({"text"})

    def protocol(self) -> dict[str, Any]:
        """The settings that change the numbers, and which weights they are."""
        settings = super().protocol()
        shown = {name: settings[name] for name in ("name", "label", "premise", "max_tokens")}
        return shown | {"weights": weights_identity(Model(model=self.model), f"metric {self.name}, classifier")}

    def check(self, task) -> None:
        """References are needed where they are the premise."""
        if self.premise == "reference" and task.data.reference is None:
            raise self._no_references()

    def measure(self, subject) -> Findings:
        """Judge every response."""
        if self.premise == "reference":
            self.check_references(subject)
        premises = [item.prompt if self.premise == "prompt" else item.references[0] for item in subject.items]
        judged = verdict(
            self.model,
            self.label,
            batch_size=self.batch_size,
            max_tokens=self.max_tokens,
            device=self.device,
            key=f"metric {self.name}",
        )
        seeds = []
        for texts in subject.texts:
            values: dict[str, float] = {}
            for rows in _batches(len(texts), self.batch_size):
                found = judged([premises[row] for row in rows], [texts[row] for row in rows])
                values |= {subject.places[row]: 100 * value for row, value in zip(rows, found, strict=True)}
                subject.advance("judging entailment", len(rows), len(texts) * len(subject.texts))
            seeds.append(values)
        return Findings({"entailment": Score.over_seeds(seeds, unit="%", better="higher")})


def _batches(count: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, count)) for start in range(0, count, size))
