"""The two players of moment matching on one kind of text: what the critic gains, what the student loses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tutelage.estimators import leave_one_out, moment_gap, returns
from tutelage.losses import Head, linear_divergence, map_vocabulary
from tutelage.methods.on_and_off_policy import Part, parts_of, rows_of
from tutelage.rollouts.shares import for_each_row

if TYPE_CHECKING:
    from tutelage.methods.moment_matching import MomentMatching
    from tutelage.methods.objective import Context
    from tutelage.rollouts.rollout import Rollout


class Game:
    """One kind of text of a micro-batch, seen by both players.

    Args:
        method: the hyper-parameters.
        part: the text with hidden states; those of the student carry its gradient.
        student: its head.
        teacher: its head.
        critic: the critic of this kind of text.
        vocabulary: number of leading ids that both vocabularies share.
    """

    def __init__(
        self, method: MomentMatching, part: Part, student: Head, teacher: Head, critic: Any, vocabulary: int | None
    ) -> None:
        self._method, self._part, self._critic = method, part, critic
        self._student, self._teacher, self._vocabulary = student, teacher, vocabulary
        self._states: Tensor = critic.states(part.hidden, part.teacher_hidden)
        self._discounts = part.discounts(method.discount)

    def critic_loss(self) -> Tensor:
        """Return minus the moment distance, and what keeps the critic steady; a gradient for the critic only."""
        part, critic, method = self._part, self._critic, self._method
        loss = linear_divergence(
            part.hidden.detach(),
            self._student.detached(),
            part.teacher_hidden,
            self._teacher,
            moment_gap,
            coefficients=-self._discounts,
            vocabulary=self._vocabulary,
            extra_hidden=critic.hidden(self._states),
            extra_head=critic.head,
        ).total
        if method.gradient_penalty:
            excess = critic.steepness(self._states, part.targets) - method.penalty_norm
            loss = loss + method.gradient_penalty * excess.square().sum()
        if method.orthogonality:
            units = part.rollout.positions if method.unit == "token" else part.sequences
            loss = loss + method.orthogonality * units * critic.obliqueness()
        return loss

    def student_loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted moment distance with its gradient for the student only, and sums over the sequences.

        The value is the distance itself (and the cross-entropy where it is asked for); the score-function term adds
        its gradient and nothing to the value.
        """
        part, method = self._part, self._method
        weight = method.weights[part.side]
        exact = part.side == "off" or method.estimator == "expected"
        variation: list[Tensor] = []

        def gap(student_logp: Tensor, teacher_logp: Tensor, critic: Tensor) -> Tensor:
            with torch.no_grad():
                variation.append((student_logp.exp() - teacher_logp.exp()).abs().sum(-1) / 2)
            return moment_gap(student_logp, teacher_logp, critic)

        with torch.no_grad():
            critic_hidden = self._critic.hidden(self._states)
        scores = linear_divergence(
            part.hidden,
            self._student,
            part.teacher_hidden,
            self._teacher,
            gap,
            coefficients=weight * self._discounts * float(exact),
            targets=part.targets,
            cross_entropy=self._token_weights(weight),
            vocabulary=self._vocabulary,
            extra_hidden=critic_hidden,
            extra_head=self._critic.head.detached(),
        )
        assert scores.divergence is not None
        assert scores.student_logp is not None
        moment = (self._discounts * scores.divergence).sum()
        value = weight * moment
        if part.side == "off":
            value = value - weight * method.cross_entropy * scores.student_logp.sum()
        distance = torch.cat(variation) if variation else self._discounts
        metrics = {"moment": moment, "bound": 2 * method.bound * (self._discounts * distance).sum()}
        return scores.total - scores.total.detach() + value, metrics

    @torch.no_grad()
    def returns(self) -> list[list[float]]:
        """Return what each token changes by way of the states after it, and by itself with `sampled`."""
        part, critic = self._part, self._critic
        sampled = self._method.estimator == "sampled"

        def of_teacher(student_logp: Tensor, teacher_logp: Tensor, values: Tensor) -> Tensor:
            return (teacher_logp.exp() * values).sum(-1)

        gains = map_vocabulary(
            of_teacher if sampled else moment_gap,
            part.hidden,
            self._student,
            part.teacher_hidden,
            self._teacher,
            vocabulary=self._vocabulary,
            extra_hidden=critic.hidden(self._states),
            extra_head=critic.head,
        )
        if sampled:
            gains = gains - critic.at(self._states, part.targets)
        return returns(part.rows(self._discounts * gains), include_current=sampled)

    def _token_weights(self, weight: float) -> Tensor | None:
        """The weight of −log q(y) at each position: minus the advantage on-policy, that of the text off-policy."""
        method, part = self._method, self._part
        if part.side == "off":
            return torch.full_like(self._discounts, weight * method.cross_entropy) if method.cross_entropy else None
        if method.greedy:
            return None
        advantages = part.per_position(self.returns())
        if "baseline" in part.rollout.values:
            advantages = advantages - part.per_position([part.rollout.masked(part.rollout.values["baseline"])])
        return -weight * advantages


def baselines(method: MomentMatching, rollout: Rollout, context: Context) -> Rollout:
    """Add to each of the student's sequences the mean return of the others at the same place; 0 to fixed text.

    The critic is the one before this batch: a baseline may be anything that does not depend on the sequence.
    """
    assert context.teacher is not None
    mine = rows_of(rollout, "on")
    if len(mine) < 2:
        return rollout
    own = rollout.select(mine)
    student, teacher = context.student, context.teacher

    def returns_of(rows: Sequence[int]) -> list[list[float]]:
        with torch.no_grad():
            (part,) = parts_of(own.select(rows), ["on"], student, teacher, context.vocabulary)
        critic = context.modules["critic_on"]
        return Game(method, part, student.head, teacher.head, critic, context.vocabulary).returns()

    means = leave_one_out(for_each_row(returns_of, own, context.micro_batch_tokens), len(own))
    column = [[0.0] * len(response) for response in rollout.responses]
    for row, values in zip(mine, means, strict=True):
        places = [place for place, seen in enumerate(rollout.masks[row]) if seen]
        for place, value in zip(places, values, strict=True):
            column[row][place] = value
    return rollout.with_values(baseline=column)
