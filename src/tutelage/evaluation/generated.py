"""Metrics of generated text against references: exact answers and ROUGE-L."""

import re
from collections.abc import Callable, Sequence
from importlib import import_module

from tutelage.errors import InputError
from tutelage.evaluation.intervals import Measurement, bootstrap_mean, proportion


def answer_reader(rule: str | None, key: str = "evaluation.answer") -> Callable[[str], str | None]:
    """Return the function that reads the answer out of a text.

    Args:
        rule: a regular expression, whose last match holds the answer in its first group; or `module:function`,
            which takes a text and returns its answer or `None`; or `None` for the whole text.
        key: where the rule comes from, for messages.

    Raises:
        InputError: the rule is neither.

    >>> answer_reader(r"#### (\\d+)")("so 3 + 4 = 7 #### 7")
    '7'
    >>> answer_reader("tutelage.demo.task:answer")("towns Cod Elm drop") is None
    True
    """
    if rule is None:
        return str.strip
    if re.fullmatch(r"[\w.]+:\w+", rule):
        module, _, function = rule.partition(":")
        try:
            return getattr(import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise InputError(f"{key}: cannot find {rule} ({error})") from None
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise InputError(f"{key}: '{rule}' is no regular expression ({error})") from None
    if pattern.groups < 1:
        raise InputError(f"{key}: '{rule}' has no group; put the answer in parentheses")

    def last_match(text: str) -> str | None:
        matches = [match.group(1) for match in pattern.finditer(text)]
        return matches[-1].strip() if matches else None

    return last_match


def exact_answers(predictions: Sequence[str], references: Sequence[str], rule: str | None) -> list[bool]:
    """Say of each prediction whether it gives the reference's answer.

    >>> exact_answers(["the answer is 7", "no idea"], ["the answer is 7"] * 2, r"is (\\d+)")
    [True, False]
    """
    read = answer_reader(rule)
    wanted = [read(reference) for reference in references]
    given = [read(prediction) for prediction in predictions]
    return [g is not None and g == w for g, w in zip(given, wanted, strict=True)]


def exact_answer(predictions: Sequence[str], references: Sequence[str], rule: str | None) -> Measurement:
    """Return the share of predictions that give the reference's answer, in [0, 1], with Wilson's interval."""
    right = exact_answers(predictions, references, rule)
    return proportion(sum(right), len(right))


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> Measurement:
    """Return the mean ROUGE-L F-measure × 100, with stemming, and its bootstrap interval.

    Reference: Lin 2004, by the package rouge-score; the papers' protocol.

    >>> rouge_l(["the cat sat"], ["the cat sat"]).value
    100.0
    """
    from rouge_score import rouge_scorer  # brings nltk and scipy along, which take a while

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(references, predictions, strict=True)
    return bootstrap_mean(
        [100 * scorer.score(reference, prediction)["rougeL"].fmeasure for reference, prediction in pairs]
    )
