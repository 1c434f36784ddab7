"""ROUGE of what the student writes against the references."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic.dataclasses import dataclass

from tutelage.config import STRICT
from tutelage.evaluation.metrics.base import Metric
from tutelage.evaluation.score import Findings, Score

if TYPE_CHECKING:
    from tutelage.evaluation.items import Item

KINDS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
"""Our names of the figures, with the package's."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Rouge(Metric):
    """ROUGE-1, ROUGE-2 and ROUGE-L, F-measure × 100; of several references the one with the highest value counts.

    Reference: Lin 2004, by the package rouge-score; stemming on, as in MiniLLM's protocol (arXiv 2306.08543).
    """

    name: Literal["rouge"] = "rouge"
    stemmer: bool = True
    """Compare word stems."""

    uses: ClassVar = frozenset({"text", "references"})
    packages: ClassVar = ("rouge-score",)

    def measure(self, subject) -> Findings:
        """Score every response."""
        self.check_references(subject)
        found = [f_measures(subject.items, texts, stemmer=self.stemmer) for texts in subject.texts]
        return Findings(
            {name: Score.over_seeds([seed[name] for seed in found], unit="%", better="higher") for name in KINDS}
        )


def f_measures(
    items: Sequence["Item"], texts: Sequence[str], *, stemmer: bool = True, kinds: Sequence[str] = tuple(KINDS)
) -> dict[str, dict[str, float]]:
    """F-measures × 100 of one response to each item: for each kind, by the item's place.

    >>> from tutelage.evaluation.items import Item
    >>> f_measures([Item("1", "p", ("the cat sat", "a dog"))], ["the cat ran"], kinds=["rouge_1"])
    {'rouge_1': {'1': 66.66...}}
    """
    from rouge_score import rouge_scorer  # brings nltk and scipy along, which take a while

    scorer = rouge_scorer.RougeScorer([KINDS[kind] for kind in kinds], use_stemmer=stemmer)
    found: dict[str, dict[str, float]] = {kind: {} for kind in kinds}
    for item, text in zip(items, texts, strict=True):
        scores = scorer.score_multi(list(item.references), text)
        for kind in kinds:
            found[kind][item.place] = 100 * float(scores[KINDS[kind]].fmeasure)
    return found
