"""Distillation with a reward: on-policy GKD and reinforcement learning on the same text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Count, Decoding, DivergenceName, LossTemperature, Reduction
from tutelage.errors import InputError
from tutelage.methods.objective import Modules, Plan, Terms, count_units, position_weights
from tutelage.methods.on_and_off_policy import refuse_other_policies
from tutelage.rewards import Reward
from tutelage.world import world

if TYPE_CHECKING:
    from torch import nn

    from tutelage.methods.objective import Context
    from tutelage.models.language_model import LanguageModel
    from tutelage.models.teachers import Teacher
    from tutelage.rollouts.rollout import Rollout
    from tutelage.rollouts.samplers import Sampler, Sources

Baseline = Literal["none", "batch", "leave-one-out", "greedy"]
DistillationShare = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RewardedGKD:
    """GKD with a reward: the student's own text is rewarded, and kept close to the teacher.

    Formula: max (1 − α) E_{y~q} r(y) − α E_{y~q} D(p, q)(y). The reward's gradient goes through the sampling, as
    −(1 − α) (r(y) − b) Σ_t ∇log q(y_t); the divergence's does not. Both use the same text.

    α = 1 is on-policy distillation, α = 0 the reward alone, which needs no teacher. With the initial student as the
    teacher it is RLEF*, the baseline that regularises towards where the student came from.

    Reference: GKD (arXiv 2306.13649), its extension to a reward ("RLHF / RLAIF + on-policy GKD").
    """

    name: Literal["gkd-reward"] = "gkd-reward"
    alpha: DistillationShare = 0.5
    """α: the share of the distillation; 1 − α is that of the reward. What it means depends on the scale of the
    reward: compare `gradient_norm/reward` and `gradient_norm/divergence` (separate_norms)."""
    divergence: DivergenceName = "jsd(0.9)"
    reward: Reward = Field(default_factory=Reward)
    """What a response is worth."""
    baseline: Baseline = "batch"
    """b, subtracted from the reward: the mean over the other sequences of the batch, over the other samples of the
    same prompt (leave-one-out), the reward of the student's greedy response, or nothing."""
    samples: Count = 1
    """Responses to each prompt."""
    reduction: Reduction = "token"
    temperature: LossTemperature = 1.0
    separate_norms: bool = False
    """Log the gradient norms of both terms, each on its own; costs one more pass."""
    student_decoding: Decoding = Field(default_factory=Decoding)
    """How the student writes: it samples from itself (temperature 1, nothing cut off)."""

    @model_validator(mode="after")
    def _consistent(self) -> RewardedGKD:
        if self.alpha < 1:
            refuse_other_policies(self.student_decoding)
        if self.baseline == "leave-one-out" and self.samples < 2:
            raise ValueError("baseline 'leave-one-out' compares the samples of a prompt: set samples to 2 or more")
        return self

    @property
    def needs_teacher(self) -> bool:
        """Unless the reward is all there is."""
        return self.alpha > 0

    @property
    def plan(self) -> Plan:
        """One batch, one step."""
        return Plan(separate_norms=self.separate_norms)

    def sampler(self, sources: Sources) -> Sampler:
        """The student."""
        return sources.student(self.student_decoding, self.samples)

    def modules(self, student: LanguageModel, teacher: Teacher | None, seed: int) -> dict[str, nn.Module]:
        """None; the reward is loaded, so that a mistake in it is found before the run begins."""
        self.reward.scorer()
        return {}

    def prepare(self, rollout: Rollout, context: Context) -> Rollout:
        """Add `reward`, and `advantage` (reward less baseline), the same at every token of a response.

        Raises:
            InputError: the reward gave no number for a row.
        """
        rewards = score(self.reward, rollout, context)
        advantages = [r - b for r, b in zip(rewards, self._baselines(rewards, rollout, context), strict=True)]
        lengths = [len(response) for response in rollout.responses]
        return rollout.with_values(
            reward=[[value] * length for value, length in zip(rewards, lengths, strict=True)],
            advantage=[[value] * length for value, length in zip(advantages, lengths, strict=True)],
        )

    def _baselines(self, rewards: list[float], rollout: Rollout, context: Context) -> list[float]:
        from tutelage.estimators import leave_one_out

        if self.baseline == "greedy":
            found = greedy_rewards(self, rollout, context)
            return [value for value in found for _ in range(self.samples)]
        group = self.samples if self.baseline == "leave-one-out" else len(rewards)
        if self.baseline == "none" or group < 2:
            return [0.0] * len(rewards)
        return [row[0] for row in leave_one_out([[reward] for reward in rewards], group)]

    def units(self, rollout: Rollout) -> dict[str, float]:
        """Sequences for the reward, tokens or sequences for the divergence."""
        units = {"reward": count_units(rollout, "sequence"), "divergence": count_units(rollout, self.reduction)}
        shares = {"reward": 1 - self.alpha, "divergence": self.alpha}
        return {name: units[name] for name, share in shares.items() if share}

    def terms(
        self,
        rollout: Rollout,
        student: LanguageModel,
        teacher: Teacher | None,
        vocabulary: int | None = None,
        modules: Modules | None = None,
        training: Sequence[str] = ("student",),
    ) -> Terms:
        """Return both sums; the value of the reward's is −(1 − α) times the reward itself."""
        import torch

        from tutelage.losses import linear_divergence

        def column(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float64, device=student.device)

        hidden, targets = student.hidden(rollout), student.targets(rollout, vocabulary)
        rewards = [row[0] for row, seen in zip(rollout.values["reward"], rollout.positions_of, strict=True) if seen]
        total = column(rewards).sum()
        losses, metrics = {}, {"reward": total}
        if self.alpha < 1:
            advantages = column(rollout.masked(rollout.values["advantage"]))
            surrogate = linear_divergence(
                hidden,
                student.head,
                targets=targets,
                cross_entropy=(1 - self.alpha) * advantages,
                vocabulary=vocabulary,
            )
            losses["reward"] = surrogate.total - surrogate.total.detach() - (1 - self.alpha) * total
            assert surrogate.student_logp is not None
            metrics["cross_entropy"] = -surrogate.student_logp.sum()
        if self.alpha > 0:
            assert teacher is not None
            scores = linear_divergence(
                hidden,
                student.head,
                teacher.hidden(rollout),
                teacher.head,
                self.divergence,
                coefficients=self.alpha * column(position_weights(rollout, self.reduction)),
                temperature=self.temperature,
                vocabulary=vocabulary,
            )
            assert scores.divergence is not None
            losses["divergence"] = scores.total
            metrics["divergence"] = scores.divergence.sum()
        return Terms(losses, metrics, {"reward": len(rewards)})


def score(reward: Reward, rollout: Rollout, context: Context) -> list[float]:
    """Return the reward of each sequence; each process of the run asks for its share of them.

    Raises:
        InputError: a row has no reference to compare with, or the reward is no finite number for it.
    """
    from tutelage.rollouts.texts import response_texts

    if reward.needs_reference:
        for example in context.examples:
            if not example.reference:
                raise InputError(
                    f"{example.where} has a prompt only, but reward '{reward.kind}' compares with the data's response"
                )
    responses = response_texts(rollout, context.tokenizer)

    def of_mine() -> list[float]:
        mine = world().share(len(responses))
        if not mine:  # more processes than responses
            return []
        examples, texts = [context.examples[row] for row in mine], [responses[row] for row in mine]
        found = list(reward.scorer()([e.prompt_text for e in examples], texts, [e.reference for e in examples]))
        if len(found) != len(mine):
            raise InputError(f"reward '{reward.kind}' gave {len(found)} numbers for {len(mine)} responses")
        return found

    found = world().collect(world().agreed(of_mine), len(responses))
    for example, response, value in zip(context.examples, responses, found, strict=True):
        if not math.isfinite(value):
            raise InputError(
                f"reward '{reward.kind}' is {value} for {example.where}, where the student wrote {response[:80]!r}; "
                "a reward must be a finite number for every response"
            )
    return [reward.scale * float(value) for value in found]


def greedy_rewards(method: RewardedGKD, rollout: Rollout, context: Context) -> list[float]:
    """Return the reward of the student's greedy response to each prompt, one a group of samples (self-critic)."""
    from tutelage.rollouts.decoding import decode

    first = range(0, len(rollout), method.samples)
    written = decode(
        context.student,
        [rollout.prompts[row] for row in first],
        replace(method.student_decoding, strategy="greedy"),
        seed=0,
        vocabulary=context.vocabulary,
    )
    return score(method.reward, written, replace(context, examples=[context.examples[row] for row in first]))
