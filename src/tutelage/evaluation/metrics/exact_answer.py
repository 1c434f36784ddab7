"""Whether what the student writes gives the right answer."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT
from tutelage.evaluation.generated import answer_reader
from tutelage.evaluation.metrics.base import Metric
from tutelage.evaluation.score import Findings, Score


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExactAnswer(Metric):
    """Share of responses whose answer is that of a reference."""

    name: Literal["exact_answer"] = "exact_answer"
    answer: Annotated[str | None, Field(description="How the answer is read out of a text: a regular expression, "
        "whose last match holds it in its first group; or `module:function`; or `null` for the whole text.")] = None  # fmt: skip

    uses: ClassVar = frozenset({"text"})

    def measure(self, subject) -> Findings:
        """Read and compare every answer."""
        read = answer_reader(self.answer)
        right = [{read(reference) for reference in item.references} - {None} for item in subject.items]
        seeds = [
            {
                item.place: 100.0 * (read(text) in wanted)
                for item, text, wanted in zip(subject.items, texts, right, strict=True)
            }
            for texts in subject.texts
        ]
        return Findings({"exact_answer": Score.over_seeds(seeds, unit="%", better="higher")})
