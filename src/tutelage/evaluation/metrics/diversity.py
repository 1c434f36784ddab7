"""How much the responses of a model differ: over the corpus, and among the samples of one prompt."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Count, Positive
from tutelage.errors import InputError
from tutelage.evaluation.intervals import Measurement
from tutelage.evaluation.metrics.base import Metric
from tutelage.evaluation.metrics.rouge import f_measures
from tutelage.evaluation.score import Better, Curve, Findings, Score


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Diversity(Metric):
    """Distinct-n, Self-BLEU and distinct outputs, over the responses of a task's seeds.

    `distinct_n` falls as the amount of text grows: compare it at the same items and seeds only.

    Formula: with words between white space, over all responses of all seeds, `distinct_n` is 100 × distinct n-grams /
    all n-grams; its interval is the jackknife's, leaving out one item at a time. Of the responses to one prompt,
    `self_bleu` is the mean BLEU of each against all others, 100 where all are the same; `distinct_n_of_prompt` is
    distinct-n among them, and `distinct_outputs` how many different texts they are. These three are means over prompts.

    Reference: Li et al. 2016 (arXiv 1510.03055), and MiniLLM (arXiv 2306.08543), which reports n = 4 over five seeds;
    Zhu et al. 2018 (arXiv 1802.01886) for Self-BLEU; GKD (arXiv 2306.13649) for the plot over temperatures.
    Differs: BLEU here is sacrebleu's of a sentence (tokenizer `13a`, `exp` smoothing, no higher order than the response
    is long, so that short texts that are the same give 100 as well).
    """

    name: Literal["diversity"] = "diversity"
    ngram: Count = 4
    """Length of the n-grams of Distinct-n, words."""
    temperatures: tuple[Positive, ...] = ()
    """Write further samples at each of these and plot quality over diversity: as many as the task has seeds."""

    uses: ClassVar = frozenset({"text"})
    packages: ClassVar = ("sacrebleu", "rouge-score")

    def check(self, task) -> None:
        """There is nothing to compare with one seed."""
        if len(task.seeds) < 2:
            raise InputError(
                "metric diversity compares several responses to a prompt, and the task has one seed; "
                "give it more, such as --seeds 0 1 2 3 4"
            )

    def measure(self, subject) -> Findings:
        """Compare every response with the others."""
        self.check(subject.task)
        samples = list(zip(*subject.texts, strict=True))
        counts = [_ngrams(texts, self.ngram) for texts in samples]
        inner = [_share([count]) for count in counts]
        outputs = [float(len(set(texts))) for texts in samples]
        return Findings(
            {
                f"distinct_{self.ngram}": Score({}, "%", "higher", known=jackknifed(counts)),
                "self_bleu": _self_bleu(subject.places, samples),
                f"distinct_{self.ngram}_of_prompt": _mean(subject.places, inner, "%", "higher"),
                "distinct_outputs": _mean(subject.places, outputs, f"of {len(subject.texts)}", "higher"),
            },
            self._curves(subject) if self.temperatures else {},
        )

    def _curves(self, subject) -> dict[str, Curve]:
        """Sample at each temperature."""
        found: dict[str, list[Measurement]] = {}
        for temperature in self.temperatures:
            texts = _written(subject, temperature)
            scores = {"self_bleu": _self_bleu(subject.places, list(zip(*texts, strict=True)))}
            if all(item.references for item in subject.items):
                rouge = [f_measures(subject.items, seed) for seed in texts]
                for name in ("rouge_2", "rouge_l"):
                    scores[name] = Score.over_seeds([seed[name] for seed in rouge], unit="%", better="higher")
            for name, score in scores.items():
                found.setdefault(name, []).append(score.measurement(subject.seed))
        curves = {f"{name}_by_temperature": _curve(self.temperatures, found[name], "temperature", name)
                  for name in found}  # fmt: skip
        diversity = [point.value for point in found["self_bleu"]]
        return curves | {f"{name}_by_self_bleu": _curve(diversity, found[name], "Self-BLEU", name)
                         for name in found if name != "self_bleu"}  # fmt: skip


def self_bleu(texts: Sequence[str]) -> float:
    """Return the mean BLEU of each text against all others, 0 to 100; two texts without a word are the same.

    >>> self_bleu(["a b c", "a b c"]), self_bleu(["a b", "c d"]), self_bleu(["", ""])
    (100.0, 0.0, 100.0)
    """
    from sacrebleu.metrics.bleu import BLEU

    scorer = BLEU(effective_order=True)
    values = []
    for at, text in enumerate(texts):
        others = [*texts[:at], *texts[at + 1 :]]
        blank = not text.strip()
        same = 100.0 * any(not other.strip() for other in others)
        values.append(same if blank else min(100.0, scorer.sentence_score(text, others).score))
    return sum(values) / len(values)


def jackknifed(counts: Sequence[Counter[tuple[str, ...]]]) -> Measurement:
    """Return Distinct-n of n-grams counted by item, in per cent, with the jackknife's 95 % interval.

    >>> jackknifed([Counter({("a",): 2}), Counter({("b",): 1}), Counter()]).value
    66.66...
    """
    value = _share(counts)
    holders = Counter(ngram for item in counts for ngram in item)
    total = sum(item.total() for item in counts)
    own = [sum(holders[ngram] == 1 for ngram in item) for item in counts]
    without = np.array([
        (len(holders) - alone) / (total - item.total())
        for item, alone in zip(counts, own, strict=True)
        if total > item.total()
    ])  # fmt: skip
    if len(counts) < 2 or len(without) < len(counts):
        return Measurement(value, float("nan"), float("nan"), len(counts))
    spread = np.sqrt((len(counts) - 1) * without.var())
    reach = 1.959963984540054 * 100 * float(spread)
    return Measurement(value, max(0.0, value - reach), min(100.0, value + reach), len(counts))


def _share(counts: Sequence[Counter[tuple[str, ...]]]) -> float:
    total = sum(item.total() for item in counts)
    return 100 * len(set().union(*counts)) / total if total else float("nan")


def _ngrams(texts: Sequence[str], length: int) -> Counter[tuple[str, ...]]:
    return Counter(ngram for text in texts for ngram in _runs(text.split(), length))


def _runs(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(length)), strict=False)


def _self_bleu(places: Sequence[str], samples: Sequence[Sequence[str]]) -> Score:
    return _mean(places, [self_bleu(texts) for texts in samples], "", "lower")


def _mean(places: Sequence[str], values: Sequence[float], unit: str, better: Better) -> Score:
    """A mean over items, in which those without a value weigh nothing."""
    has = {place: value == value for place, value in zip(places, values, strict=True)}
    known = {place: value if has[place] else 0.0 for place, value in zip(places, values, strict=True)}
    return Score.of(known, unit=unit, better=better, weights={place: float(some) for place, some in has.items()})


def _written(subject, temperature: float) -> list[list[str]]:
    """A sample of each item for each seed."""
    decoding = replace(subject.task.decoding, strategy="sample", temperature=temperature)
    what = f"sampling at temperature {temperature:g}"
    return [subject.texts_of(subject.write(what, decoding, seed=seed)) for seed in subject.task.seeds]


def _curve(x: Sequence[float], points: Sequence[Measurement], x_title: str, name: str) -> Curve:
    title = {"self_bleu": "Self-BLEU", "rouge_2": "ROUGE-2", "rouge_l": "ROUGE-L"}[name]
    return Curve.of(x, points, x_title, title)
