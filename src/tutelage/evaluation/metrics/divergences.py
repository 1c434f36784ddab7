"""How far a student is from its teacher, token by token, on several kinds of text."""

from functools import partial
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT
from tutelage.evaluation.agreement import AGREEMENT, agreement_at
from tutelage.evaluation.metrics.base import Metric, Use
from tutelage.evaluation.score import Findings, Score
from tutelage.evaluation.sequences import comparison, per_sequence
from tutelage.rollouts.rollout import Rollout, joined

Text = Literal["answers", "student_text", "references", "teacher_text"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Divergences(Metric):
    """Divergences between student and teacher, and how often both prefer the same token.

    Formula: for each kind of text the mean over all of its tokens of `forward_kl` KL(teacher ‖ student), `reverse_kl`
    KL(student ‖ teacher), `jsd` (β = ½), all in nats, `total_variation` in [0, 1], and `same_top_token` (%). The
    numbers' names are these with the kind of text behind: `forward_kl_references`.

    Reference: GKD (arXiv 2306.13649), Eq. 1.
    Differs: GKD's Eq. 2 takes the mean over each sequence's tokens first; here all tokens count alike, as in the
    evaluation of a run in progress.
    """

    name: Literal["divergences"] = "divergences"
    texts: Annotated[tuple[Text, ...], Field(min_length=1)] = ("student_text", "references")
    """On what text: `student_text` and `teacher_text` are sampled at temperature 1, `references` are the data's,
    `answers` are what the student wrote by the task's own decoding, all seeds of it."""

    @property
    def uses(self) -> frozenset[Use]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The teacher; the task's answers where they are asked for."""
        return frozenset({"teacher", "text"} if "answers" in self.texts else {"teacher"})

    def measure(self, subject) -> Findings:
        """Compare on each kind of text."""
        assert subject.teacher is not None
        if "references" in self.texts:
            self.check_references(subject)
        scores: dict[str, Score] = {}
        compare = comparison(agreement_at, subject.student, subject.teacher, subject.vocabulary)
        for kind in self.texts:
            rollout = _text(subject, kind)
            values = per_sequence(
                compare,
                rollout,
                subject.micro_batch_tokens,
                partial(_advance, subject, f"comparing on {kind}", len(rollout)),
            )
            totals = {item: [0.0] * (len(AGREEMENT) + 1) for item in range(len(subject.items))}
            for item, found in zip(rollout.items, values, strict=True):
                more = [*found.sum(0).tolist(), float(len(found))]
                totals[item] = [old + new for old, new in zip(totals[item], more, strict=True)]
            for column, name in enumerate(AGREEMENT):
                scores[f"{name}_{kind}"] = _score(name, {
                    subject.places[item]: (total[column], total[-1]) for item, total in totals.items()
                })  # fmt: skip
        return Findings(scores)


def _advance(subject, what: str, total: int, more: int) -> None:
    subject.advance(what, more, total)


def _score(name: str, rows: dict[str, tuple[float, float]]) -> Score:
    if name == "same_top_token":
        return Score({place: (100.0 * total, count) for place, (total, count) in rows.items()}, "%", "higher")
    return Score(rows, "" if name == "total_variation" else "nats a token", "lower")


def _text(subject, kind: Text) -> Rollout:
    if kind == "answers":
        return joined(subject.rollouts)
    if kind == "references":
        return subject.references
    by = subject.student if kind == "student_text" else subject.teacher.model
    return subject.write(f"writing {kind}", seed=subject.seed, by=by)
