"""Distances along whole responses, off and on policy, and the moment distance that fresh critics find."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Positive
from tutelage.estimators import discounts, moment_gap
from tutelage.evaluation.distances import distance_sums
from tutelage.evaluation.metrics.base import Metric
from tutelage.evaluation.score import Findings, Score
from tutelage.losses import linear_divergence
from tutelage.methods.critics import Critic, Source
from tutelage.models.language_model import LanguageModel
from tutelage.models.teachers import Teacher
from tutelage.rollouts.rollout import Rollout

Side = Literal["off", "on"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Moments(Metric):
    """How far a student is from its teacher along responses, for students of any method.

    Formula, with teacher p, student q and the discount γ: the mean over responses of Σ_t γ^t D(p_t, q_t), t from 0,
    for `total_variation`, `forward_kl` and `reverse_kl` (nats), with `_off` behind the name on the teacher's text (or
    the references) and `_on` on text that the student samples. `moment` is 2B times the total variation: the largest
    E Σ_t γ^t (E_p f − E_q f) that any f with |f| ≤ B reaches. `critic` is what a fresh critic reaches that was trained
    for `critic_steps` on every other item and is measured on the items between them (every second one, from the
    second); on each of these it is at most 2B Σ_t γ^t TV. A run's own critics, trained together with the student,
    have no part in it.

    Reference: AMMD (arXiv 2406.02959), Definition 1, Corollary 1 and Fig. 3.
    Differs: the paper's critics are not published; these read hidden states (`tutelage.methods.critics`).
    """

    name: Literal["moments"] = "moments"
    off: Literal["teacher_text", "references"] = "teacher_text"
    """What stands for the teacher's text: its samples, or the data."""
    bound: Positive = 0.5
    """B."""
    discount: Annotated[float, Field(gt=0, le=1)] = 1.0
    """γ."""
    critic_steps: Annotated[int, Field(ge=0)] = 200
    """Steps of each critic; 0 trains none."""
    critic_rate: Positive = 0.03
    """Adam's learning rate."""
    critic_reads: Source = "both"
    """Whose hidden states the critics read."""

    uses: ClassVar = frozenset({"teacher"})

    def measure(self, subject) -> Findings:
        """Measure on both kinds of text."""
        assert subject.teacher is not None
        scores: dict[str, Score] = {}
        sides: tuple[Side, ...] = ("off", "on")
        for side in sides:
            rollout = self._text(subject, side)
            columns = distance_sums(
                subject.student, subject.teacher, rollout, self.discount, subject.micro_batch_tokens, subject.vocabulary
            )
            columns["moment"] = {row: 2 * self.bound * value for row, value in columns["total_variation"].items()}
            if self.critic_steps and len(rollout) > 1:
                columns["critic"] = self._found_by_critic(subject, rollout, side)
            for name, values in columns.items():
                by_place = {subject.places[row]: value for row, value in values.items()}
                scores[f"{name}_{side}"] = Score.of(
                    by_place, unit="nats" if name in ("forward_kl", "reverse_kl") else "", better="lower"
                )
        alone = self.critic_steps and len(subject.items) == 1
        return Findings(scores, notes=["one item: no critic, which needs others to learn from"] if alone else [])

    def _text(self, subject, side: Side) -> Rollout:
        if side == "on":
            return subject.write("writing student_text", seed=subject.seed)
        if self.off == "teacher_text":
            return subject.write("writing teacher_text", seed=subject.seed, by=subject.teacher.model)
        self.check_references(subject)
        return subject.references

    def _found_by_critic(self, subject, rollout: Rollout, side: Side) -> dict[int, float]:
        held_out = range(1, len(rollout), 2)
        critic = fresh_critic(
            subject.student,
            subject.teacher,
            rollout.select(range(0, len(rollout), 2)).micro_batches(subject.micro_batch_tokens),
            self,
            vocabulary=subject.vocabulary,
            seed=subject.seed,
            done=lambda more: subject.advance(f"training the {side}-policy critic", more, self.critic_steps),
        )
        columns = distance_sums(
            subject.student,
            subject.teacher,
            rollout.select(held_out),
            self.discount,
            subject.micro_batch_tokens,
            subject.vocabulary,
            critic,
        )
        return {held_out[row]: value for row, value in columns["critic"].items()}


def fresh_critic(
    student: LanguageModel,
    teacher: Teacher,
    parts: Sequence[Rollout],
    settings: Moments,
    *,
    vocabulary: int | None = None,
    seed: int = 0,
    done=lambda more: None,
) -> Critic:
    """Train a critic to tell the teacher from the student on given text.

    Args:
        student: the student; not changed.
        teacher: the teacher.
        parts: the text, one micro-batch a step, again from the start when all were seen.
        settings: bound, discount, steps, rate, and what the critic reads.
        vocabulary: number of leading ids that both vocabularies share.
        seed: of the critic.
        done: told how many more steps are done.

    Returns:
        The critic, whose mean Σ_t γ^t (E_p f − E_q f) was raised.
    """
    critic = Critic(
        student, teacher, source=settings.critic_reads, bound=settings.bound, discount=settings.discount, seed=seed
    )
    optimiser = torch.optim.Adam(critic.parameters(), lr=settings.critic_rate)
    for step in range(settings.critic_steps):
        part = parts[step % len(parts)]
        with torch.no_grad():
            hidden, teacher_hidden = student.hidden(part), teacher.hidden(part)
        weights = [weight for row in discounts(part.positions_of, critic.discount) for weight in row]
        with torch.enable_grad():
            loss = linear_divergence(
                hidden,
                student.head.detached(),
                teacher_hidden,
                teacher.head,
                moment_gap,
                coefficients=-torch.tensor(weights, device=hidden.device) / len(part),
                vocabulary=vocabulary,
                extra_hidden=critic.hidden(critic.states(hidden, teacher_hidden)),
                extra_head=critic.head,
            ).total
            optimiser.zero_grad()
            loss.backward()
        optimiser.step()
        done(1)
    return critic
