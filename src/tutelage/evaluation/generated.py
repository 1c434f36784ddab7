"""Metrics of generated text against references: exact answers and ROUGE-L."""

import re
from collections.abc import Sequence

from rouge_score import rouge_scorer

from tutelage.evaluation.intervals import Measurement, bootstrap_mean, proportion


def answer_of(text: str, pattern: str | None) -> str | None:
    """Return the answer that a text gives: the first group of the pattern's last match, or the whole text.

    Args:
        text: a reference or a generated text.
        pattern: a regular expression with a group; `None` takes the whole text.

    Returns:
        The answer without surrounding white space, `None` where the pattern is not found.

    >>> answer_of("so 3 + 4 = 7 #### 7", r"#### (\\d+)")
    '7'
    """
    if pattern is None:
        return text.strip()
    matches = re.findall(pattern, text)
    return matches[-1].strip() if matches else None


def exact_answers(predictions: Sequence[str], references: Sequence[str], pattern: str | None) -> list[bool]:
    """Say of each prediction whether it gives the reference's answer.

    >>> exact_answers(["the answer is 7", "no idea"], ["the answer is 7"] * 2, r"is (\\d+)")
    [True, False]
    """
    wanted = [answer_of(reference, pattern) for reference in references]
    given = [answer_of(prediction, pattern) for prediction in predictions]
    return [g is not None and g == w for g, w in zip(given, wanted, strict=True)]


def exact_answer(predictions: Sequence[str], references: Sequence[str], pattern: str | None) -> Measurement:
    """Return the share of predictions that give the reference's answer, in [0, 1], with Wilson's interval."""
    right = exact_answers(predictions, references, pattern)
    return proportion(sum(right), len(right))


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> Measurement:
    """Return the mean ROUGE-L F-measure × 100, with stemming, and its bootstrap interval.

    Reference: Lin 2004, by the package rouge-score; the papers' protocol.

    >>> rouge_l(["the cat sat"], ["the cat sat"]).value
    100.0
    """
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(references, predictions, strict=True)
    return bootstrap_mean(
        [100 * scorer.score(reference, prediction)["rougeL"].fmeasure for reference, prediction in pairs]
    )
