"""How good a draft the student is for its teacher in speculative decoding."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from tutelage.config import STRICT, Count, Decoding
from tutelage.evaluation.assisted import write_assisted
from tutelage.evaluation.metrics.base import Metric
from tutelage.evaluation.score import Findings, Score
from tutelage.evaluation.sequences import comparison, per_sequence
from tutelage.rollouts.rollout import Rollout

Rows = dict[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Draft(Metric):
    """Acceptance and block efficiency of the student as draft model, with the teacher as target.

    Formula, with target p, draft q and k drafted tokens a call: the acceptance at a position is α = Σ_v min(p_v, q_v),
    which is 1 − TV(p, q): `acceptance_teacher_text` and `acceptance_student_text` (%) are its means over sampled text
    of either model, and `acceptance_greedy` the share of the target's greedy tokens that are the draft's too.
    Block efficiency is the target's tokens per call: `block_efficiency_formula` is (1 − α^{k+1}) / (1 − α) at the mean
    α on teacher text, as if each token were accepted independently at that rate; `block_efficiency` is exact for
    sampling, from min(1, q/p) at each token of the target's text, which is the chance that the token came from the
    draft; `block_efficiency_greedy` is the same for greedy decoding.

    With transformers' assisted generation on `measured_items` items, one at a time: `measured_block_efficiency` and
    `measured_block_efficiency_greedy`; `speedup_greedy`, wall time without over wall time with the draft; and
    `lossless_greedy`, the share of items (%) whose greedy text is that of the target alone. Wall times are those of
    this machine and of transformers, and are compared within one machine only.

    Reference: DistillSpec (arXiv 2310.08461); Leviathan et al. 2023 (arXiv 2211.17192), Eq. 1 and Corollary 3.6.
    """

    name: Literal["draft"] = "draft"
    draft_tokens: Count = 5
    """k."""
    max_new_tokens: Count | None = None
    """Longest text; by default the task's."""
    measured_items: Annotated[int, Field(ge=0)] = 16
    """Of how many items, from the first, text is written with transformers' assisted generation."""

    uses: ClassVar = frozenset({"teacher"})
    packages: ClassVar = ("transformers",)

    def measure(self, subject) -> Findings:
        """Compare the models on their text, then let them write together."""
        assert subject.teacher is not None
        length = self.max_new_tokens or subject.task.decoding.max_new_tokens
        sampled = Decoding(max_new_tokens=length, batch_size=subject.task.decoding.batch_size)
        greedy = Decoding(strategy="greedy", max_new_tokens=length, batch_size=sampled.batch_size)
        teacher = subject.teacher.model
        texts = {
            "teacher_text": subject.write("writing teacher_text", sampled, seed=subject.seed, by=teacher),
            "student_text": subject.write("writing student_text", sampled, seed=subject.seed),
            "greedy": subject.write("writing greedily", greedy, seed=subject.seed, by=teacher),
        }
        chances = {name: _acceptance(subject, text, name == "greedy") for name, text in texts.items()}
        scores = {
            f"acceptance_{name}": Score(
                _rows(subject, [(100.0 * v[:, 0].sum().item(), float(len(v))) for v in values]), "%", "higher"
            )
            for name, values in chances.items()
        }
        unit, k = "tokens a call", self.draft_tokens
        formula = [(v[:, 0].sum().item(), float(len(v)), float(k * len(v))) for v in chances["teacher_text"]]
        scores["block_efficiency_formula"] = Score(_rows(subject, formula), unit, "higher", "block_efficiency")
        for name, text in (("block_efficiency", "teacher_text"), ("block_efficiency_greedy", "greedy")):
            exact = [(float(len(v)), expected_calls(v[:, 1].tolist(), k)) for v in chances[text]]
            scores[name] = Score(_rows(subject, exact), unit, "higher")
        measured, notes = self._measured(subject, length)
        return Findings(scores | measured, notes=notes)

    def _measured(self, subject, length: int) -> tuple[dict[str, Score], list[str]]:
        target, draft = subject.teacher.model, subject.student
        if not self.measured_items:
            return {}, []
        sizes = [model.network.config.get_text_config().vocab_size for model in (draft, target)]
        if sizes[0] != sizes[1]:
            return {}, [f"assisted generation is not measured: heads of {sizes[0]} and {sizes[1]} rows"]

        def write(row: int, draft, sample: bool):
            return write_assisted(
                target, draft, subject.examples[row].prompt, draft_tokens=self.draft_tokens, max_new_tokens=length,
                sample=sample, vocabulary=subject.vocabulary, seed=subject.seed + row,
            )  # fmt: skip

        for warm_up in (None, draft):
            write(0, warm_up, False)
        rows: dict[str, Rows] = {name: {} for name in _MEASURED}
        items = min(self.measured_items, len(subject.items))
        for row in range(items):
            alone, together, sampled = write(row, None, False), write(row, draft, False), write(row, draft, True)
            found = (
                (float(len(sampled.response)), float(sampled.calls)),
                (float(len(together.response)), float(together.calls)),
                (alone.seconds, together.seconds),
                (100.0 * (alone.response == together.response), 1.0),
            )
            for name, value in zip(_MEASURED, found, strict=True):
                rows[name][subject.places[row]] = value
            subject.advance("writing with a draft", 1, items)
        return {name: Score(rows[name], unit, "higher") for name, unit in _MEASURED.items()}, []


_MEASURED = {
    "measured_block_efficiency": "tokens a call",
    "measured_block_efficiency_greedy": "tokens a call",
    "speedup_greedy": "×",
    "lossless_greedy": "%",
}


def expected_calls(accepted: Sequence[float], draft_tokens: int) -> float:
    """Return how often a target is called for a text, given the chance that each of its tokens came from the draft.

    Formula: C(i) = 1 + Σ_{j<k} (Π_{m<j} a_{i+m}) (1 − a_{i+j}) C(i+j+1) + (Π_{m<k} a_{i+m}) C(i+k+1), and 0 from the
    text's end on: a call ends behind the first token that is not the draft's, or with one token more than drafted.

    Args:
        accepted: a, one chance a token.
        draft_tokens: k.

    >>> expected_calls([1.0, 1.0, 1.0], 2), expected_calls([0.0, 0.0, 0.0], 2), expected_calls([0.5, 0.5], 1)
    (1.0, 3.0, 1.5)
    """
    calls = [0.0] * (len(accepted) + draft_tokens + 1)
    for start in reversed(range(len(accepted))):
        survived, total = 1.0, 1.0
        for at, chance in enumerate(accepted[start : start + draft_tokens], start):
            total += survived * (1.0 - chance) * calls[at + 1]
            survived *= chance
        calls[start] = total + survived * calls[start + draft_tokens + 1]
    return calls[0]


def _acceptance(subject, rollout: Rollout, greedy: bool) -> list[Tensor]:
    """The chance at each position that a draft is accepted, and that the token in the text came from the draft."""

    def sampled(part: Rollout) -> Tensor:
        scores = subject.teacher.compare(
            subject.student.hidden(part),
            subject.student.head,
            part,
            "total_variation",
            targets=subject.student.targets(part),
            vocabulary=subject.vocabulary,
        )
        ratio = (scores.student_logp - scores.teacher_logp).clamp(max=0).exp()
        return torch.stack([1 - scores.divergence, ratio], dim=-1)

    compare = comparison(_same_token, subject.student, subject.teacher, subject.vocabulary)
    return per_sequence(compare if greedy else sampled, rollout, subject.micro_batch_tokens)


def _same_token(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    same = (student_logp.argmax(-1) == teacher_logp.argmax(-1)).to(student_logp.dtype)
    return torch.stack([same, same], dim=-1)


def _rows(subject, values: Sequence[tuple[float, ...]]) -> Rows:
    return dict(zip(subject.places, values, strict=True))
