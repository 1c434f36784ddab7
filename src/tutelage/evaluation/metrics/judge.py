"""A served model's opinion of what the student writes: beside the reference, or beside what another model wrote."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Count, NonNegative
from tutelage.errors import InputError
from tutelage.evaluation.judging import Asked, asked
from tutelage.evaluation.metrics.base import Metric
from tutelage.evaluation.record import FOLDER
from tutelage.evaluation.score import Findings, Score
from tutelage.rewards.endpoint import Messages, asker
from tutelage.rewards.judge import INSTRUCTION

QUESTION = """[Question]
{question}

[The Start of Assistant 1's Answer]
{first}

[The End of Assistant 1's Answer]

[The Start of Assistant 2's Answer]
{second}

[The End of Assistant 2's Answer]

[System]
We would like to request your feedback on the performance of two AI assistants in response to the user question \
displayed above.
Please rate the helpfulness, relevance, accuracy, level of details of their responses. Each assistant receives an \
overall score on a scale of 1 to 10, where a higher score indicates better overall performance.
Please first output a single line containing only two values indicating the scores for Assistant 1 and 2, \
respectively. The two scores are separated by a space. In the subsequent line, please provide a comprehensive \
explanation of your evaluation, avoiding any potential bias and ensuring that the order in which the responses were \
presented does not affect your judgment.

"""
"""Vicuna's wording (Chiang et al. 2023)."""

Marks = tuple[float, float]
"""Of the student's response and of the other one, 1 to 10."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Judged(Metric):
    """What both kinds of judging have: who judges, and where the replies are kept."""

    model: str
    """Name under which the endpoint serves the judge."""
    url: str
    """An OpenAI-compatible endpoint, such as `http://localhost:8000/v1`."""
    key_variable: str = "TUTELAGE_JUDGE_KEY"
    """The environment variable that holds the API key, where one is needed; the key is in no file."""
    replies: str = "runs/judge-replies.jsonl"
    """File that keeps every reply: what was asked once is not asked again."""
    parallel: Count = 8
    """Requests at the same time."""
    prompt_price: NonNegative = 0.0
    """Price of a million tokens of questions, in any currency; with the next one the cost is told."""
    completion_price: NonNegative = 0.0
    """Price of a million tokens of replies."""

    uses: ClassVar = frozenset({"text"})

    def protocol(self) -> dict[str, Any]:
        """Who judges and by which wording, not how it is reached."""
        return {"name": self.name, "model": self.model, "wording": "Vicuna, both orders"}

    def marks(self, subject, others: Sequence[Sequence[str]]) -> tuple[list[dict[str, tuple[Marks, Marks]]], list[str]]:
        """Have responses marked beside other texts, in both orders.

        Args:
            subject: whose responses.
            others: `[seed][item]`.

        Returns:
            For each seed and item the marks with the student's response first, and with it second; items without
            two marks in some reply are left out. And notes.

        Raises:
            InputError: the judge does not answer, or never gives two marks.
        """
        ask = asker(self.url, self.model, key_variable=self.key_variable, key=f"metric {self.name}")
        questions = []
        for mine, theirs in zip(subject.texts, others, strict=True):
            for item, own, other in zip(subject.items, mine, theirs, strict=True):
                questions += [comparison(item.prompt, own, other), comparison(item.prompt, other, own)]
        found = asked(
            questions,
            ask,
            model=self.model,
            file=Path(self.replies),
            parallel=self.parallel,
            on_progress=lambda more: subject.advance("asking the judge", more, len(questions)),
        )
        read: Any = iter([marks_in(reply.text) for reply in found.replies])
        pairs = [{place: (next(read), next(read)) for place in subject.places} for _ in subject.texts]
        whole = [place for place in subject.places if all(None not in seed[place] for seed in pairs)]
        if not whole:
            raise InputError(
                f"metric {self.name}: for no item do all replies of {self.model} hold two marks from 1 to 10; see what "
                f"it says in {self.replies}, and name a judge that answers as it is asked"
            )
        seeds = [{place: (seed[place][0], seed[place][1][::-1]) for place in whole} for seed in pairs]
        return seeds, self._notes(found, len(subject.places) - len(whole), len(subject.places))

    def _notes(self, found: Asked, missing: int, count: int) -> list[str]:
        cost = found.cost(self.prompt_price, self.completion_price)
        priced = f", which cost {cost:.4f}" if self.prompt_price or self.completion_price else ""
        lines = [
            f"judge {self.model}, Vicuna's wording, both orders: no number of another judge may stand beside these",
            f"judge: {len(found.replies):,} questions, {found.calls:,} calls now (the other replies from "
            f"{self.replies}), {found.prompt_tokens:,} + {found.completion_tokens:,} tokens{priced}",
        ]
        return lines + [f"judge: {missing:,} of {count:,} items left out, for a reply without two marks"] * bool(
            missing
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Judge(_Judged):
    """A judge's marks of the student's responses, relative to its marks of the references.

    Formula: 100 × Σ marks of the responses / Σ marks of the references, over items, seeds and both orders in which the
    two can be shown.

    Reference: MiniLLM (arXiv 2306.08543), which had GPT-4 judge. Differs: both orders are asked; it rewords
    Vicuna's question a little.
    """

    name: Literal["judge"] = "judge"

    uses: ClassVar = frozenset({"text", "references"})

    def measure(self, subject) -> Findings:
        """Ask about every response."""
        self.check_references(subject)
        references = [[item.references[0] for item in subject.items]] * len(subject.texts)
        seeds, notes = self.marks(subject, references)
        own, other = (
            [{place: _sum(both, which) for place, both in seed.items()} for seed in seeds] for which in (0, 1)
        )
        rows = {place: (100 * sum(seed[place] for seed in own), sum(seed[place] for seed in other)) for place in own[0]}
        by_seed = [100 * sum(mine.values()) / sum(theirs.values()) for mine, theirs in zip(own, other, strict=True)]
        marks = [[{place: total / 2 for place, total in seed.items()} for seed in whose] for whose in (own, other)]
        return Findings(
            {
                "judge": _with_all(Score(rows, "% of the reference", "higher", by_seed=by_seed), subject.places),
                "judge_mark": _with_all(Score.over_seeds(marks[0], unit="of 10", better="higher"), subject.places),
                "judge_reference_mark": _with_all(
                    Score.over_seeds(marks[1], unit="of 10", better="neither"), subject.places
                ),
            },
            notes=notes,
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class JudgePairwise(_Judged):
    """How often a judge prefers the student's response to that of another model which was evaluated on the same task.

    Formula: a response wins where it gets the higher mark in both orders in which the two can be shown, and loses where
    it gets the lower one in both; all else is a tie, also where the orders disagree.

    Reference: an automatic stand-in for the human preferences of MiniLLM (arXiv 2306.08543).
    """

    name: Literal["judge_pairwise"] = "judge_pairwise"
    against: str
    """Folder of the other model: a run, or what `tutelage evaluate` wrote for a model."""

    def check(self, task) -> None:
        """The other model has to be evaluated on the task."""
        path = self._responses(task)
        if not path.is_file():
            raise InputError(f"metric {self.name}: no {path}; evaluate {self.against} on task {task.name} first")

    def protocol(self) -> dict[str, Any]:
        """The other model as well."""
        return super().protocol() | {"against": self.against}

    def measure(self, subject) -> Findings:
        """Ask about every response."""
        self.check(subject.task)
        seeds, notes = self.marks(subject, self._others(subject))
        verdicts = [{place: [_sign(*marks) for marks in both] for place, both in seed.items()} for seed in seeds]
        results = {"wins": [1, 1], "losses": [-1, -1]}
        shares: dict[str, list[dict[str, float]]] = {
            name: [{place: 100.0 * (signs == wanted) for place, signs in seed.items()} for seed in verdicts]
            for name, wanted in results.items()
        }
        shares["ties"] = [
            {place: 100.0 * (signs not in results.values()) for place, signs in seed.items()} for seed in verdicts
        ]
        shares["orders_disagree"] = [
            {place: 100.0 * (signs[0] != signs[1]) for place, signs in seed.items()} for seed in verdicts
        ]
        better: dict[str, Any] = {"wins": "higher", "losses": "lower"}
        found = {
            f"judge_{name}": _with_all(
                Score.over_seeds(values, unit="%", better=better.get(name, "neither")), subject.places
            )
            for name, values in shares.items()
        }
        return Findings(found, notes=[f"judge: against {self.against}", *notes])

    def _responses(self, task) -> Path:
        return Path(self.against) / FOLDER / f"{task.name}.responses.jsonl"

    def _others(self, subject) -> list[list[str]]:
        """What the other model wrote for the same items at the same seeds."""
        path = self._responses(subject.task)
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
        known = {(line["seed"], line["item"], line["prompt"]): line["response"] for line in lines}
        keys = [[(seed, item.place, item.prompt) for item in subject.items] for seed in subject.task.seeds]
        lacking = sum(key not in known for row in keys for key in row)
        if lacking:
            raise InputError(
                f"metric {self.name}: {path} lacks {lacking:,} of {sum(map(len, keys)):,} responses to these items at "
                f"seeds {list(subject.task.seeds)}; evaluate {self.against} on the same data with the same seeds"
            )
        return [[known[key] for key in row] for row in keys]


def comparison(question: str, first: str, second: str) -> Messages:
    """What a judge is asked about two answers to a question."""
    return [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": QUESTION.format(question=question, first=first, second=second)},
    ]


def marks_in(text: str) -> Marks | None:
    """Read the two marks in the first line of a judge's reply; `None` where it does not hold two from 1 to 10.

    >>> marks_in("8 9.5\\nBoth are 1 of a kind"), marks_in("Assistant 1: 8/10, Assistant 2: 7/10"), marks_in("No.")
    ((8.0, 9.5), (8.0, 7.0), None)
    """
    line = text.strip().partition("\n")[0]
    bare = re.sub(r"assistant\s*[12]\b|(?:/|out of)\s*10\b", " ", line, flags=re.IGNORECASE)
    found = [float(number) for number in re.findall(r"(?<![\w.-])\d+(?:\.\d+)?", bare)]
    return (found[0], found[1]) if len(found) == 2 and all(1 <= mark <= 10 for mark in found) else None


def _with_all(score: Score, places: Sequence[str]) -> Score:
    """The same with every item, so that it can be paired with another model's; those without marks weigh nothing."""
    return replace(score, rows={place: score.rows.get(place, (0.0, 0.0)) for place in places})


def _sum(both: tuple[Marks, Marks], which: int) -> float:
    return both[0][which] + both[1][which]


def _sign(mine: float, other: float) -> int:
    return (mine > other) - (mine < other)
