"""MiniLLM: the policy gradient of the reverse KL between whole sequences; and its single-step alternative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Count, Decoding, NonNegative, Positive, Share
from tutelage.methods.gkd import OnPolicyKD
from tutelage.methods.objective import Context, Modules, Plan, Terms
from tutelage.methods.plain_text import plain_text_term
from tutelage.methods.policy_gradient import (
    at_all_tokens,
    at_masked,
    ragged,
    sequence_logps,
    surrogate_slope,
    target_logps,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tutelage.methods.policy_gradient import Ragged
    from tutelage.models.language_model import LanguageModel
    from tutelage.models.teachers import Teacher
    from tutelage.rollouts.rollout import Rollout
    from tutelage.rollouts.samplers import Sampler, Sources


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MiniLLM:
    """MiniLLM: minimise the reverse KL of whole responses by policy gradient, so that the student thinks ahead.

    A divergence at each token asks what the student should say here; the policy gradient also asks where what it
    says here leads. Text is written by a mixture of teacher and student, and used for several epochs.

    Formula, with r_t = log(p(y_t) / q(y_t)), ρ_t = w_t · q(y_t) / q_old(y_t), and w_t the importance weight:

        loss = Σ_t w_t · KL(q_t ‖ p_t)                                  (single step, exact over the vocabulary)
             − Σ_t min[ρ_t, clip(ρ_t, 1 − ε, 1 + ε)] · A_t              (what follows; gradient through ρ_t only)
             − Σ log q(plain text)                                      (with `text_rows`)

        A_t = (1 / (T − t − 1)) Σ_{t' > t} r_t'

    The defaults are the paper's; `recipes/minillm-official-code.yaml` sets what its code does instead. The exact
    gradient of the reverse KL is: `importance: full` (or no teacher share), `length_normalisation: none`,
    `clip: null`, and the rest as it is.

    How it is computed: the slope of the clipped term is a function of log q(y_t) at the current weights. A pass over
    the vocabulary without gradient gives log q(y_t) first (the hidden states are kept), and with it the coefficient
    of each position, which the one pass with gradient takes as known. That costs one more product with the head
    (two with `estimates: current`), and no product with a gradient.

    Reference: MiniLLM (arXiv 2306.08543), Eqs. 2–7, Algorithm 1. Differs: the guard of the length normalisation;
    rewards are whitened over tokens only, never over padding.
    """

    name: Literal["minillm"] = "minillm"
    teacher_share: Share = 0.2
    """α: share of the teacher in the mixture that writes. 0 has the student write alone."""
    student_decoding: Decoding = Field(default_factory=Decoding)
    """How the mixture writes."""
    samples: Count = 1
    """Responses to each prompt."""
    importance: Literal["none", "token", "prefix", "full"] = "token"
    """How text of the mixture is weighed: `token` q/p̃ of the step (the paper), `prefix` the product up to it,
    `full` the product up to each reward, which is the only exact one; `none` takes it for the student's own."""
    single_step: bool = True
    """Add the reverse KL at each token, exact over the vocabulary."""
    weigh_single_step: bool = True
    """Multiply it by the importance weight. The official code does not."""
    include_current: bool = False
    """Let the sampled term have r_t too, not only what follows. With `single_step`, r_t then counts twice (the
    official code)."""
    discount: Share = 1.0
    """γ of the rewards that follow. The official code has 0.95."""
    length_normalisation: Literal["none", "paper", "future", "remaining"] = "paper"
    """Divide the return of token t of T by T − t − 1 (`paper`), T − t (`future`) or T − t + 1 (`remaining`, the
    official code), never by less than 1."""
    baseline: Literal["none", "one", "leave_one_out"] = "none"
    """What is taken off the return: 1 (the paper's Eq. 2), or the mean over the other samples of the prompt."""
    whiten: bool = False
    """Whiten the advantages over the tokens of a collection (the official code)."""
    estimates: Literal["current", "rollout"] = "current"
    """Rewards and weights under the student as it is now, or as it was when the text was written (the official
    code)."""
    behaviour: Literal["recorded", "recomputed"] = "recorded"
    """Log-probabilities of the mixture as they were drawn from, or recomputed from whole sequences (the official
    code)."""
    clip: Positive | None = 0.2
    """ε: how far the ratio may leave 1; `null` clips nothing."""
    clip_rule: Literal["sign_blind", "pessimistic"] = "sign_blind"
    """`sign_blind` min(ρ, clip(ρ))·A (the paper), `pessimistic` min(ρ·A, clip(ρ)·A) (PPO, the official code)."""
    reward_scale: Positive = 1.0
    """Multiplies the rewards. The official code divides them by 0.5."""
    reward_clip: Positive | None = None
    """Largest absolute reward, after scaling. The official code has 100."""
    average_over: Literal["sequences", "tokens"] = "sequences"
    """Sums over each sequence, averaged over sequences (the paper's expectation), or the mean over all tokens (the
    official code)."""
    collection: Count | None = 256
    """Prompts sampled at once; `null` is one batch."""
    inner_epochs: Count = 4
    """Passes over a collection."""
    text_rows: Annotated[int, Field(ge=0)] = 0
    """Rows of plain text (`data.text`) in every batch; 0 leaves the language-modelling term out."""
    text_weight: NonNegative = 1.0
    """Weight of the language-modelling term."""
    text_teacher_share: Share = 0.0
    """Share of the teacher's distribution in that term, as forward KL; the official code has 0.5."""

    @model_validator(mode="after")
    def _estimator_is_sound(self) -> MiniLLM:
        decoding = self.student_decoding
        if decoding.strategy != "sample":
            raise ValueError(f"a policy gradient needs sampled text (got the strategy '{decoding.strategy}')")
        if self.importance != "none" and not decoding.samples_the_model:
            raise ValueError(
                "importance weights compare the models' own distributions with the one that the text was drawn from; "
                "sampling with temperature, top_k, top_p or no_repeat_ngram_size draws from another one, and the "
                "weights are wrong or infinite: set temperature 1, top_k 0, top_p 1 and no_repeat_ngram_size 0, or "
                "importance 'none'"
            )
        whole = self.whiten or self.baseline == "leave_one_out"
        if whole and self.estimates == "current":
            raise ValueError(
                "whiten and baseline 'leave_one_out' need a whole collection, which estimates 'current' never sees at "
                "once: set estimates 'rollout'"
            )
        if self.baseline == "leave_one_out" and self.samples < 2:
            raise ValueError(f"baseline 'leave_one_out' needs at least 2 samples a prompt (got {self.samples})")
        return self

    @property
    def needs_teacher(self) -> bool:
        """Yes."""
        return True

    @property
    def plan(self) -> Plan:
        """Collections with inner epochs, and plain text beside them."""
        return Plan(collection=self.collection, inner_epochs=self.inner_epochs, text_rows=self.text_rows)

    def sampler(self, sources: Sources) -> Sampler:
        """The mixture of teacher and student."""
        assert sources.mixed is not None
        return sources.mixed(self.student_decoding, self.teacher_share, self.samples)

    def modules(self, student: LanguageModel, teacher: Teacher | None, seed: int) -> dict[str, nn.Module]:
        """None: there is no value network."""
        return {}

    def prepare(self, rollout: Rollout, context: Context) -> Rollout:
        """Add log p̃ of each token; with `estimates: rollout`, all that stays fixed over the inner epochs."""
        if self.estimates == "current" and self.behaviour == "recorded":
            assert rollout.logps is not None
            return rollout.with_values(behaviour_logp=rollout.logps)
        student_logps, teacher_logps = sequence_logps(rollout, context)
        behaviour = self._behaviour(rollout, student_logps, teacher_logps)
        if self.estimates == "current":
            return rollout.with_values(behaviour_logp=at_all_tokens(behaviour, rollout))
        fixed = self._estimates(student_logps, teacher_logps, behaviour)
        return rollout.with_values(**{name: at_all_tokens(rows, rollout) for name, rows in fixed.items()})

    def units(self, rollout: Rollout) -> Mapping[str, float]:
        """Count sequences or tokens, those of plain text on their own."""
        if self.average_over == "tokens":
            counts = rollout.positions_of
        else:
            counts = tuple(1 if positions else 0 for positions in rollout.positions_of)
        of_text = sum(count for count, writer in zip(counts, rollout.writers, strict=True) if writer == "text")
        return {"student": sum(counts) - of_text, "text": of_text}

    def terms(
        self,
        rollout: Rollout,
        student: LanguageModel,
        teacher: Teacher | None,
        vocabulary: int | None = None,
        modules: Modules | None = None,
        training: Sequence[str] = ("student",),
    ) -> Terms:
        """Return the sums over the written text and over the plain text of a micro-batch."""
        assert teacher is not None
        text = [row for row, writer in enumerate(rollout.writers) if writer == "text"]
        written = [row for row, writer in enumerate(rollout.writers) if writer != "text"]
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        counts: dict[str, float] = {}
        if written:
            part = rollout.select(written)
            losses["student"], metrics = self._policy_term(part, student, teacher, vocabulary)
            counts = dict.fromkeys(metrics, part.positions)
        if text:
            part = rollout.select(text)
            losses["text"], metrics["text_cross_entropy"] = plain_text_term(
                part,
                student,
                teacher,
                weight=self.text_weight,
                teacher_share=self.text_teacher_share,
                vocabulary=vocabulary,
            )
            counts["text_cross_entropy"] = part.positions
        return Terms(losses, metrics, counts)

    def _policy_term(
        self, rollout: Rollout, student: LanguageModel, teacher: Teacher, vocabulary: int | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        import torch

        from tutelage.losses import linear_divergence

        hidden, teacher_hidden = student.hidden(rollout), teacher.hidden(rollout)
        targets = student.targets(rollout, vocabulary)
        shared = vocabulary or min(student.head.vocabulary, teacher.head.vocabulary)
        (student_logp,) = target_logps([(hidden, student.head)], targets, shared)
        if self.estimates == "current":
            (teacher_logp,) = target_logps([(teacher_hidden, teacher.head)], targets, shared)
            flat = self._estimates_now(rollout, student_logp, teacher_logp)
        else:
            names = ("old_logp", "weight", "single_weight", "advantage")
            flat = {name: rollout.masked(rollout.values[name]) for name in names}
        estimates = {n: torch.tensor(v, device=student.device, dtype=torch.float64) for n, v in flat.items()}
        surrogate, slope = surrogate_slope(student_logp, estimates, clip=self.clip, rule=self.clip_rule)
        scores = linear_divergence(
            hidden,
            student.head,
            teacher_hidden,
            teacher.head,
            "reverse_kl",
            coefficients=estimates["single_weight"],
            targets=targets,
            cross_entropy=slope,
            vocabulary=shared,
        )
        assert scores.divergence is not None
        assert scores.teacher_logp is not None
        # The engine's total has the right gradient, but slope · log q for a value: put the surrogate there instead.
        total = scores.total + ((slope * student_logp).sum() - surrogate.sum())
        metrics = {
            "reverse_kl": scores.divergence.sum(),
            "reward": (scores.teacher_logp - student_logp).sum(),
            "cross_entropy": -student_logp.sum(),
            "teacher_cross_entropy": -scores.teacher_logp.sum(),
            "advantage": estimates["advantage"].sum(),
            "importance_weight": estimates["weight"].sum(),
            "clipped": ((slope == 0) & (estimates["advantage"] != 0)).sum(),
        }
        return total, metrics

    def _estimates_now(self, rollout: Rollout, student_logp: Tensor, teacher_logp: Tensor) -> dict[str, list[float]]:
        """Return the estimates at the masked positions under the student as it is."""
        behaviour = at_masked(rollout.values["behaviour_logp"], rollout)
        found = self._estimates(ragged(student_logp, rollout), ragged(teacher_logp, rollout), behaviour)
        return {name: [value for row in rows for value in row] for name, rows in found.items()}

    def _behaviour(self, rollout: Rollout, student_logps: Ragged, teacher_logps: Ragged) -> Ragged:
        """Log p̃ of each masked token: as recorded, or from log q and log p."""
        from tutelage.estimators import mixture_logps

        if self.behaviour == "recomputed":
            return mixture_logps(student_logps, teacher_logps, self.teacher_share)
        assert rollout.logps is not None
        return at_masked(rollout.logps, rollout)

    def _estimates(self, student_logps: Ragged, teacher_logps: Ragged, behaviour_logps: Ragged) -> dict[str, Ragged]:
        """Return advantages and weights of the masked tokens, given log-probabilities of the masked tokens."""
        from tutelage import estimators

        rewards = estimators.log_ratio_rewards(
            student_logps, teacher_logps, scale=self.reward_scale, clip=self.reward_clip
        )
        ones = estimators.importance_weights(student_logps, behaviour_logps, "none")
        if self.importance == "full":  # each reward has its own weight; the weight of the whole term is 1
            prefixes = estimators.importance_weights(student_logps, behaviour_logps, "prefix")
            rewards = _product(rewards, prefixes)
            weights, single_weights, baseline_weights = ones, [[1.0, *row][: len(row)] for row in prefixes], prefixes
        else:
            weights = estimators.importance_weights(student_logps, behaviour_logps, self.importance)
            single_weights, baseline_weights = weights, ones
        advantages = estimators.returns(rewards, discount=self.discount, include_current=self.include_current)
        if self.length_normalisation != "none":
            advantages = estimators.length_normalised(advantages, self.length_normalisation)
        if self.baseline != "none":
            baseline = ones if self.baseline == "one" else estimators.leave_one_out(advantages, self.samples)
            advantages = _difference(advantages, _product(baseline, baseline_weights))
        if self.whiten:
            advantages = estimators.whitened(advantages)
        kept = 1.0 if self.single_step else 0.0
        single_weights = single_weights if self.weigh_single_step else ones
        return {
            "old_logp": student_logps,
            "weight": weights,
            "single_weight": [[kept * weight for weight in row] for row in single_weights],
            "advantage": advantages,
        }


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MiniLLMSingleStep(OnPolicyKD):
    """MiniLLM's single-step alternative: the reverse KL at each token of the student's own text, and no more.

    It leaves out what a token leads to, so it is not the gradient of the reverse KL of whole responses; it has no
    variance from sampled returns, no importance weights and no clipping. It is gkd with `student_fraction: 1` and
    `divergence: reverse_kl`.

    Formula: E_{y ~ q} Σ_t ∇KL(q_t ‖ p_t), no gradient through the sampling.

    Reference: MiniLLM (arXiv 2306.08543), its single-step ablation.
    """

    name: Literal["minillm-single-step"] = "minillm-single-step"  # pyright: ignore[reportIncompatibleVariableOverride]
    divergence: Literal["reverse_kl"] = "reverse_kl"


def _product(first: Ragged, second: Ragged) -> Ragged:
    return [[a * b for a, b in zip(x, y, strict=True)] for x, y in zip(first, second, strict=True)]


def _difference(first: Ragged, second: Ragged) -> Ragged:
    return [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(first, second, strict=True)]
