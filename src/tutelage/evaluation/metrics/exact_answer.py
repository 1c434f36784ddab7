"""Whether what the student writes gives the right answer."""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from tutelage.config import STRICT
from tutelage.evaluation.calculator import recalculated
from tutelage.evaluation.generated import answer_reader
from tutelage.evaluation.metrics.base import Metric
from tutelage.evaluation.score import Findings, Score

_NUMBER = re.compile(r"([-+]?)\$?(\d{1,3}(?:,\d{3}){1,9}|\d{1,30})?(\.\d{1,30})?\.?")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExactAnswer(Metric):
    """Share of responses whose answer is that of a reference.

    Reference: Cobbe et al. 2021 (arXiv 2110.14168) and Wei et al. 2022 (arXiv 2201.11903) for arithmetic with a
    calculator.
    """

    name: Literal["exact_answer"] = "exact_answer"
    answer: str | None = None
    """How the answer is read out of a text: a regular expression, whose last match holds it in its first group; or
    `module:function`; or `null` for the whole text."""
    calculator: bool = False
    """Recompute the equations of a response, carrying results on, before its answer is read."""
    numeric: bool = False
    """Compare answers that are numbers as numbers: `1,000`, `$1000` and `1000.0` are the same."""

    uses: ClassVar = frozenset({"text", "references"})

    def measure(self, subject) -> Findings:
        """Read and compare every answer."""
        self.check_references(subject)
        read = self._reader()
        right = [{read(reference) for reference in item.references} - {None} for item in subject.items]
        mended, seeds = [], []
        for texts in subject.texts:
            if self.calculator:
                found = [recalculated(text) for text in texts]
                texts, mended = [text for text, _ in found], mended + [count for _, count in found]
            rows = zip(subject.items, texts, right, strict=True)
            seeds.append({item.place: 100.0 * (read(text) in wanted) for item, text, wanted in rows})
        return Findings(
            {"exact_answer": Score.over_seeds(seeds, unit="%", better="higher")},
            notes=_notes(right, mended),
        )

    def _reader(self) -> Callable[[str], str | Fraction | None]:
        read = answer_reader(self.answer, f"metric {self.name}, answer")

        def number(text: str) -> str | Fraction | None:
            answer = read(text)
            return answer if answer is None else as_number(answer)

        return number if self.numeric else read


def as_number(answer: str) -> str | Fraction:
    """Return the number that an answer is (dollar sign, thousands commas, a full stop behind it left out), or the text.

    >>> as_number("1,000") == as_number("$1000.") == as_number("1000.0"), as_number("about 7")
    (True, 'about 7')
    """
    found = _NUMBER.fullmatch(answer.strip())
    if found is None or not (found[2] or found[3]):
        return answer
    return Fraction(found[1] + (found[2] or "0").replace(",", "") + (found[3] or ""))


def _notes(right: list[set], mended: list[int]) -> list[str]:
    blank = sum(not wanted for wanted in right)
    lines = [
        f"the calculator mended {sum(mended):,} equations in {sum(map(bool, mended)):,} of {len(mended):,} responses"
    ]
    unread = [f"no answer is found in the references of {blank:,} of {len(right):,} items; no response is right there"]
    return lines * bool(mended) + unread * bool(blank)
