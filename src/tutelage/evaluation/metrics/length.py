"""How long responses are, how they end, whether they go round in circles; and ROUGE-L by the reference's length."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Count
from tutelage.data.tokens import encode_texts
from tutelage.evaluation.metrics.base import Metric
from tutelage.evaluation.metrics.rouge import f_measures
from tutelage.evaluation.score import Curve, Findings, Score
from tutelage.rollouts.texts import response_texts

_COPIES = 3
_LOOP_TOKENS = 12


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Length(Metric):
    """Tokens of the responses, the share that ended by themselves, and repetition within them.

    Students that are trained on their own text without care grow empty or repetitive; a metric of overlap or a reward
    may rise all the same, so report this beside it.

    Formula: `response_tokens` counts up to the task's stop texts, the stop token included; `ended` is the share that
    came to a stop token or a stop text, and not to `max_new_tokens`; `repeated_ngrams` is 100 × (1 − distinct n-grams /
    all n-grams) of each response's tokens, 0 where it is shorter; `looping` is the share that ends in three or more
    copies of one stretch of tokens that make up 12 tokens or more. All are means over seeds and items.

    Reference: Welleck et al. 2020 (arXiv 1908.04319) for repeated n-grams (seq-rep-n).
    """

    name: Literal["length"] = "length"
    ngram: Count = 4
    """Length of the n-grams, tokens."""

    uses: ClassVar = frozenset({"text"})

    def measure(self, subject) -> Findings:
        """Look at the tokens of every response."""
        found: dict[str, list[dict[str, float]]] = {}
        for rollout, texts in zip(subject.rollouts, subject.texts, strict=True):
            whole = response_texts(rollout, subject.tokenizer)
            cut = [any(stop in text for stop in subject.task.stop) for text in whole]
            ids = _written(subject, rollout.responses, texts, cut)
            ended = [
                short or (bool(response) and response[-1] in subject.student.stop_ids)
                for response, short in zip(rollout.responses, cut, strict=True)
            ]
            columns = {
                "response_tokens": [float(len(response)) for response in ids],
                "ended": [100.0 * done for done in ended],
                "repeated_ngrams": [100 * repeated(response, self.ngram) for response in ids],
                "looping": [100.0 * loops(response) for response in ids],
            }
            for name, values in columns.items():
                found.setdefault(name, []).append(dict(zip(subject.places, values, strict=True)))
        units = {"response_tokens": "tokens"}
        better = {"repeated_ngrams": "lower", "looping": "lower"}
        return Findings({
            name: Score.over_seeds(seeds, unit=units.get(name, "%"), better=better.get(name, "neither"))  # pyright: ignore[reportArgumentType]
            for name, seeds in found.items()
        })  # fmt: skip


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RougeByLength(Metric):
    """ROUGE-L (F-measure × 100, stemming on) of the items whose reference has so many words, and its curve.

    Of several references the first says which bucket an item is in, and the one with the highest value counts.

    Reference: MiniLLM (arXiv 2306.08543), which splits S-NI and UnNI at 5 and 10 words and reports the last bucket.
    """

    name: Literal["rouge_by_length"] = "rouge_by_length"
    longest: Annotated[tuple[Count, ...], Field(min_length=1)] = (5, 10)
    """Longest reference of each bucket but the last, words; `[5, 10]` gives [0, 5], [6, 10] and [11, ∞)."""

    uses: ClassVar = frozenset({"text", "references"})
    packages: ClassVar = ("rouge-score",)

    @field_validator("longest")
    @classmethod
    def _rises(cls, longest: tuple[int, ...]) -> tuple[int, ...]:
        if list(longest) != sorted(set(longest)):
            raise ValueError(f"longest must rise from bucket to bucket (got {list(longest)})")
        return longest

    def measure(self, subject) -> Findings:
        """Score every response, in the bucket of its item."""
        self.check_references(subject)
        words = {item.place: len(item.references[0].split()) for item in subject.items}
        seeds = [f_measures(subject.items, texts, kinds=["rouge_l"])["rouge_l"] for texts in subject.texts]
        scores, middles = {}, []
        for first, last in zip((0, *(n + 1 for n in self.longest)), (*self.longest, None), strict=True):
            inside = [place for place, count in words.items() if first <= count and (last is None or count <= last)]
            if inside:
                parts = [{place: seed[place] for place in inside} for seed in seeds]
                name = f"rouge_l_{first}_to_{last}_words" if last else f"rouge_l_from_{first}_words"
                scores[name] = Score.over_seeds(parts, unit="%", better="higher")
                middles.append(sum(words[place] for place in inside) / len(inside))
        points = [score.measurement() for score in scores.values()]
        curve = Curve.of(middles, points, "words of the reference (mean of the bucket)", "ROUGE-L")
        return Findings(scores, {"rouge_l_by_length": curve})


def repeated(ids: Sequence[int], length: int) -> float:
    """Share of the n-grams of a response that have come before in it.

    >>> repeated([1, 2, 1, 2, 1, 2], 2), repeated([1], 2)
    (0.6, 0.0)
    """
    ngrams = [tuple(ids[start : start + length]) for start in range(len(ids) - length + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def loops(ids: Sequence[int]) -> bool:
    """Whether a response ends in three or more copies of one stretch of tokens, 12 tokens or more together.

    >>> loops([9, *[1, 2] * 6]), loops([9, *[1, 2] * 5]), loops([1, 2, 3, 4, 5, 6, 7] * 2)
    (True, False, False)
    """
    for period in range(1, len(ids) // _COPIES + 1):
        copies = max(_COPIES, -(-_LOOP_TOKENS // period))
        end = ids[-copies * period :]
        if len(end) == copies * period and end[period:] == end[:-period]:
            return True
    return False


def _written(
    subject, responses: Sequence[Sequence[int]], texts: Sequence[str], cut: Sequence[bool]
) -> list[Sequence[int]]:
    """The ids of each response, up to where a stop text ended it."""
    again = iter(encode_texts(subject.tokenizer, [text for text, short in zip(texts, cut, strict=True) if short]))
    return [next(again) if short else response for response, short in zip(responses, cut, strict=True)]
