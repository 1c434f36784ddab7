"""BLEU and chrF of what the student writes, by sacrebleu."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Count
from tutelage.evaluation.metrics.base import Metric
from tutelage.evaluation.score import Findings, Score

Tokenizer = Literal["13a", "intl", "char", "zh", "none"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Bleu(Metric):
    """Corpus BLEU, 0 to 100; over several seeds, the mean of each seed's.

    Formula: brevity penalty × exp(mean over n of log precision of n-grams), precisions and lengths summed over the
    corpus, a precision without a match smoothed (sacrebleu's `exp`); each n-gram may match as often as it is in the
    reference that has it most, and the reference of the nearest length counts for the penalty.

    Reference: Papineni et al. 2002; Post 2018 (arXiv 1804.08771) for what the signature among the notes says.
    """

    name: Literal["bleu"] = "bleu"
    tokenize: Tokenizer = "13a"
    """sacrebleu's tokenizer: `13a` for most languages, `zh` for Chinese, `char` for text without spaces."""
    lowercase: bool = False
    """Without regard to case."""
    max_ngram_order: Count = 4
    """Longest n-grams."""

    uses: ClassVar = frozenset({"text", "references"})
    packages: ClassVar = ("sacrebleu",)

    def measure(self, subject) -> Findings:
        """Count matches in every response."""
        from sacrebleu.metrics.bleu import BLEU

        scorer = BLEU(tokenize=self.tokenize, lowercase=self.lowercase, max_ngram_order=self.max_ngram_order)
        return _found(self, subject, scorer)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Chrf(Metric):
    """Corpus chrF2, 0 to 100; over several seeds, the mean of each seed's.

    Formula: the F-measure that weights recall twice, of precision and recall of character n-grams up to 6 (and of word
    n-grams up to `word_order`), each the mean over orders; of several references, the one with the highest value.

    Reference: Popović 2015; with `word_order: 2` chrF++, Popović 2017.
    """

    name: Literal["chrf"] = "chrf"
    word_order: Literal[0, 1, 2] = 0
    """0 is chrF, 2 is chrF++."""
    lowercase: bool = False
    """Without regard to case."""

    uses: ClassVar = frozenset({"text", "references"})
    packages: ClassVar = ("sacrebleu",)

    def measure(self, subject) -> Findings:
        """Count matches in every response."""
        from sacrebleu.metrics.chrf import CHRF

        return _found(self, subject, CHRF(word_order=self.word_order, lowercase=self.lowercase))


def _found(metric: Metric, subject, scorer) -> Findings:
    metric.check_references(subject)
    most = max(len(item.references) for item in subject.items)
    padded = [[*item.references, *[None] * (most - len(item.references))] for item in subject.items]
    references = list(map(list, zip(*padded, strict=True)))
    seeds = [scorer._extract_corpus_statistics(list(texts), references) for texts in subject.texts]
    rows = corpus_rows(subject.places, seeds)
    by_seed = [_value(metric.name, seed) for seed in seeds]
    scores = {metric.name: Score(rows, "", "higher", reduction=metric.name, by_seed=by_seed)}
    return Findings(scores, notes=[f"sacrebleu signature: {scorer.get_signature()}"])


def corpus_rows(places: Sequence[str], seeds: Sequence[Sequence[Sequence[float]]]) -> dict[str, list[float]]:
    """An item's row for the reductions `bleu` and `chrf`: 1, the number of seeds, and each seed's statistics.

    >>> corpus_rows(["a"], [[[3, 4]], [[5, 6]]])
    {'a': [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
    """
    columns = zip(*seeds, strict=True)
    return {
        place: [1.0, float(len(seeds)), *(float(value) for statistics in item for value in statistics)]
        for place, item in zip(places, columns, strict=True)
    }


def _value(reduction: str, statistics: Sequence[Sequence[float]]) -> float:
    sums = np.asarray(statistics, dtype=np.float64).sum(0)
    return float(Score({}, "", "higher", reduction).value_of(np.concatenate([[1.0, 1.0], sums])))
