"""What policy-gradient methods are made of: rewards, returns, baselines, importance weights, KL estimators.

Pure functions. Those over whole sequences take and return ragged lists, one list of numbers a sequence, one number
a token: there is no padding to leave out. Those at single positions take tensors, and gradients go through them.
The student is q, the teacher p, the policy that wrote the text p̃; everything is in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Ragged = Sequence[Sequence[float]]
Divisor = Literal["paper", "future", "remaining"]
WeightKind = Literal["none", "token", "prefix", "sequence"]
ClipRule = Literal["sign_blind", "pessimistic"]

_LARGEST_EXPONENT = 700.0  # exp of more is no float64


def log_ratio_rewards(
    student_logps: Ragged, teacher_logps: Ragged, *, scale: float = 1.0, clip: float | None = None
) -> list[list[float]]:
    """Return the reward of each token: how much more probable it is to the teacher than to the student.

    The expected sum of these rewards over the student's text is minus the reverse KL of whole sequences.

    Formula: r_t = clip(scale · log(p(y_t) / q(y_t)), −c, c)

    Args:
        student_logps: log q of each token, nats.
        teacher_logps: log p of each token, nats.
        scale: multiplies the rewards, before they are clipped.
        clip: c, the largest absolute value; `None` clips nothing.

    >>> log_ratio_rewards([[-1.0, -3.0]], [[-0.5, -1.0]], clip=1.0)
    [[0.5, 1.0]]

    Reference: MiniLLM (arXiv 2306.08543), §2.2; scaling and clipping are its code's.
    """
    bound = math.inf if clip is None else clip
    return [
        [min(max(scale * (p - q), -bound), bound) for q, p in zip(student, teacher, strict=True)]
        for student, teacher in zip(student_logps, teacher_logps, strict=True)
    ]


def returns(
    rewards: Ragged, *, discount: float = 1.0, include_current: bool = True, reward_to_go: bool = True
) -> list[list[float]]:
    """Return what each token is credited with: the rewards that follow it.

    Formula: R_t = Σ_{t' ≥ t} γ^(t' − t) r_t'; without the current step r_t is left out (γ·R_{t+1}); without
    reward-to-go every token gets R_1 (less its own r_t where that is left out).

    A token cannot change the rewards before it, so their part of the gradient is 0 in expectation: reward-to-go
    is as exact as the whole return, with less variance. γ < 1 is not exact.

    Args:
        rewards: r, one number a token.
        discount: γ, in [0, 1].
        include_current: whether r_t itself counts.
        reward_to_go: whether only what follows counts.

    >>> returns([[1.0, 2.0, 4.0]])
    [[7.0, 6.0, 4.0]]
    >>> returns([[1.0, 2.0, 4.0]], discount=0.5, include_current=False)
    [[2.0, 2.0, 0.0]]

    Reference: MiniLLM (arXiv 2306.08543), Eqs. 2 and 3.
    """
    found = []
    for row in rewards:
        following = list(accumulate(reversed(row), lambda later, reward: reward + discount * later))[::-1]
        if not reward_to_go:
            following = following[:1] * len(row)
        found.append(following if include_current else [value - r for value, r in zip(following, row, strict=True)])
    return found


def discounts(lengths: Sequence[int], discount: float) -> list[list[float]]:
    """Return γ^t for the tokens t = 0, 1, … of sequences of the given lengths.

    >>> discounts([3, 1], 0.5)
    [[1.0, 0.5, 0.25], [1.0]]
    """
    return [[discount**position for position in range(length)] for length in lengths]


def length_normalised(returns: Ragged, divisor: Divisor) -> list[list[float]]:
    """Divide returns by the number of steps that are left, so that short text is not favoured for being short.

    Formula, for token t of T: R_t / max(1, n_t), where n_t is T − t − 1 (`paper`), T − t, the steps after t
    (`future`), or T − t + 1, the steps from t on (`remaining`).

    The gradient is not exact any more: it trades bias for the end of the reward for short text.

    Args:
        returns: one number a token.
        divisor: what is divided by. The paper prints T − t − 1 under a sum of T − t rewards, which is 0 and −1
            at the last two tokens: it is held at 1 there. The official code divides by T − t + 1.

    >>> length_normalised([[6.0, 6.0, 6.0]], "paper")
    [[6.0, 6.0, 6.0]]
    >>> length_normalised([[6.0, 6.0, 6.0]], "remaining")
    [[2.0, 3.0, 6.0]]

    Reference: MiniLLM (arXiv 2306.08543), Eq. 6. Differs: the guard.
    """
    ahead = {"paper": -1, "future": 0, "remaining": 1}[divisor]
    return [[value / max(1, len(row) - place + ahead) for place, value in enumerate(row, start=1)] for row in returns]


def mixture_logps(student_logps: Ragged, teacher_logps: Ragged, teacher_share: float) -> list[list[float]]:
    """Return the log-probability of each token under the mixture of teacher and student at its step.

    Formula: log p̃ = log(α·p + (1 − α)·q)

    Args:
        student_logps: log q of each token, nats.
        teacher_logps: log p of each token, nats.
        teacher_share: α, in [0, 1].

    >>> [round(math.exp(logp), 3) for logp in mixture_logps([[math.log(0.5)]], [[math.log(0.25)]], 0.2)[0]]
    [0.45]

    Reference: MiniLLM (arXiv 2306.08543), Eq. 4.
    """

    def mixed(q: float, p: float) -> float:
        larger = max(p, q)
        return larger + math.log(teacher_share * math.exp(p - larger) + (1 - teacher_share) * math.exp(q - larger))

    if teacher_share in (0, 1):  # nothing is mixed, and the other one may be impossible
        return [list(row) for row in (teacher_logps if teacher_share else student_logps)]
    return [
        [mixed(q, p) for q, p in zip(student, teacher, strict=True)]
        for student, teacher in zip(student_logps, teacher_logps, strict=True)
    ]


def importance_weights(student_logps: Ragged, behaviour_logps: Ragged, kind: WeightKind) -> list[list[float]]:
    """Return how much more probable the text is to the student than to the policy that wrote it.

    Formula: `none` 1; `token` q(y_t) / p̃(y_t); `prefix` Π_{t' ≤ t} q(y_t') / p̃(y_t'); `sequence` the product over
    the whole sequence.

    A gradient made of credits Σ_{t' ≥ t} r_t' is exact with `sequence`, and, with less variance, when each *reward*
    r_t' is multiplied by its own `prefix` weight before the rewards are added up. Multiplying the returns by `token`
    or `prefix` weights is not exact: it leaves out the steps to come.

    Args:
        student_logps: log q of each token, nats.
        behaviour_logps: log p̃ of each token under the very distribution that it was drawn from, nats.
        kind: which product.

    >>> weights = importance_weights([[-1.0, -1.0]], [[-1.0, -1.5]], "prefix")
    >>> [round(weight, 3) for weight in weights[0]]
    [1.0, 1.649]

    Reference: MiniLLM (arXiv 2306.08543), Eq. 5; the paper approximates the prefix by the token.
    """
    found = []
    for student, behaviour in zip(student_logps, behaviour_logps, strict=True):
        ratios = [q - b for q, b in zip(student, behaviour, strict=True)]
        sums = list(accumulate(ratios))
        logs = {
            "none": [0.0] * len(ratios),
            "token": ratios,
            "prefix": sums,
            "sequence": sums[-1:] * len(ratios),
        }[kind]
        found.append([math.exp(min(log, _LARGEST_EXPONENT)) for log in logs])
    return found


def whitened(
    values: Ragged, masks: Sequence[Sequence[bool]] | None = None, *, epsilon: float = 1e-8
) -> list[list[float]]:
    """Shift and scale values to mean 0 and variance 1 over all masked positions.

    Formula: (x − mean) / √(variance + ε); 0 at positions that the mask leaves out.

    Args:
        values: one number a token.
        masks: which tokens count; all of them by default.
        epsilon: keeps equal values from being divided by 0.

    >>> whitened([[1.0], [3.0, 100.0]], [[True], [True, False]], epsilon=0.0)
    [[-1.0], [1.0, 0.0]]

    Reference: MiniLLM's code. Differs: it counts padding in, as zeros.
    """
    masks = [[True] * len(row) for row in values] if masks is None else masks
    seen = [
        value for row, mask in zip(values, masks, strict=True) for value, kept in zip(row, mask, strict=True) if kept
    ]
    if not seen:
        return [[0.0] * len(row) for row in values]
    mean = math.fsum(seen) / len(seen)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in seen) / len(seen) + epsilon) or 1.0
    return [
        [(value - mean) / deviation if kept else 0.0 for value, kept in zip(row, mask, strict=True)]
        for row, mask in zip(values, masks, strict=True)
    ]


def leave_one_out(values: Ragged, samples: int) -> list[list[float]]:
    """Return a baseline for each token: the mean, at the same place, over the other samples of its prompt.

    A sample that has ended counts as 0, as the return after its end is. The baseline does not depend on the
    sample that it is for, so taking it off changes no expectation, only the variance.

    Args:
        values: returns, one number a token; the samples of a prompt one after the other.
        samples: how many a prompt has, at least 2.

    Raises:
        ValueError: there is nothing to leave out, or the sequences do not fall into groups of that size.

    >>> leave_one_out([[4.0, 2.0], [1.0]], 2)
    [[1.0, 0.0], [4.0]]

    Reference: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free".
    """
    if samples < 2 or len(values) % samples:
        raise ValueError(f"expected groups of at least 2 samples (got {len(values)} sequences in groups of {samples})")
    found = []
    for row in range(len(values)):
        first = row - row % samples
        others = [values[other] for other in range(first, first + samples) if other != row]
        found.append(
            [
                math.fsum(other[place] for other in others if place < len(other)) / len(others)
                for place in range(len(values[row]))
            ]
        )
    return found


def kl_k1(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """Estimate the reverse KL at a token that the student drew, unbiased but of either sign.

    Formula: k1 = log q(y) − log p(y)

    As (minus) a reward of the policy gradient it gives the gradient of the reverse KL: it is the only one of the
    three to use so. Its own gradient, by backpropagation, is 0 in expectation: pure noise.

    Reference: Schulman 2020, "Approximating KL divergence".
    """
    return student_logp - teacher_logp


def kl_k2(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """Estimate the reverse KL at a token that the student drew: biased, never negative, of low variance.

    Formula: k2 = ½ (log q(y) − log p(y))²

    Its own gradient, by backpropagation, is that of the reverse KL in expectation. Not for use as a reward.

    Reference: Schulman 2020.
    """
    return (student_logp - teacher_logp) ** 2 / 2


def kl_k3(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """Estimate the reverse KL at a token that the student drew: unbiased and never negative. To look at only.

    Formula: k3 = p(y)/q(y) − 1 − log(p(y)/q(y))

    Its own gradient, by backpropagation, is that of the *forward* KL in expectation. As (minus) a reward it gives
    the gradient of reverse minus forward KL, which drives the student away from what the teacher covers.

    Reference: Schulman 2020.
    """
    log_ratio = teacher_logp - student_logp
    return log_ratio.exp() - 1 - log_ratio


def moment_gap(student_logp: Tensor, teacher_logp: Tensor, critic: Tensor) -> Tensor:
    """What a critic f says the teacher has over the student: no divergence, but bounded by one.

    Formula: Σ_v (p_v − q_v) f_v, with p the teacher and q the student. For |f| ≤ B it is at most 2B times the total
    variation, which f = B · sign(p − q) reaches.

    Args:
        student_logp: log-probabilities of the student, `[..., vocabulary]`, nats.
        teacher_logp: log-probabilities of the teacher, the same shape.
        critic: f at each token, the same shape.

    Returns:
        Difference per position, `[...]`, in the critic's unit.

    >>> import torch
    >>> student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log()
    >>> moment_gap(student, teacher, torch.tensor([[0.5, -0.5]]))
    tensor([0.5000])

    Reference: AMMD (arXiv 2406.02959), the moment-matching distances.
    """
    return ((teacher_logp.exp() - student_logp.exp()) * critic).sum(-1)


def clipped_surrogate(
    log_ratio: Tensor, advantage: Tensor, weight: Tensor, *, clip: float | None, rule: ClipRule = "pessimistic"
) -> Tensor:
    """Return the objective (to be maximised) whose gradient is the policy gradient, with PPO's clipping.

    Formula, with ρ = weight · exp(log_ratio) and ρ' = ρ held in [1 − ε, 1 + ε]: `pessimistic` min(ρ·A, ρ'·A), as
    in PPO; `sign_blind` min(ρ, ρ')·A, which stops at 1 + ε whatever the sign of A.

    Args:
        log_ratio: log q − log q at the time of the rollout, one a position; carries the gradient.
        advantage: A, one a position; no gradient goes into it.
        weight: importance weight, one a position; none into it either.
        clip: ε; `None` clips nothing.
        rule: which minimum.

    >>> import torch
    >>> clipped_surrogate(torch.tensor([0.5, 0.5]), torch.tensor([1.0, -1.0]), torch.ones(2), clip=0.2)
    tensor([ 1.2000, -1.6487])

    Reference: Schulman et al. 2017, Eq. 7; MiniLLM (arXiv 2306.08543), Algorithm 1, for `sign_blind`.
    """
    advantage = advantage.detach()
    ratio = weight.detach() * log_ratio.exp()
    if clip is None:
        return ratio * advantage
    held = ratio.clamp(1 - clip, 1 + clip)
    if rule == "sign_blind":
        return ratio.minimum(held) * advantage
    return (ratio * advantage).minimum(held * advantage)


def prefix_weights(student_logps: Ragged, teacher_logps: Ragged, weight: float = 0.5) -> list[list[float]]:
    """Return at each token the teacher's weight in a mixture of two models of whole sequences.

    A sequence of m(y) = λ p(y) + (1 − λ) q(y) is written by one of the two models from end to end. So its next
    token has the distribution w p_t + (1 − w) q_t, where w is the probability, given the tokens so far, that it is
    the teacher who writes.

    Formula: w_t = λ p(y_<t) / (λ p(y_<t) + (1 − λ) q(y_<t)).

    Args:
        student_logps: log q of each token, nats.
        teacher_logps: log p of each token, nats.
        weight: λ, strictly between 0 and 1.

    >>> half = [[math.log(0.5)] * 2]
    >>> [[round(w, 3) for w in row] for row in prefix_weights(half, [[math.log(0.25), 0.0]])]
    [[0.5, 0.333]]

    Reference: f-distill (ACL 2023), the authors' correction: m(y_t | y_<t) = m(y_≤t) / m(y_<t).
    """
    rows = []
    for student, teacher in zip(student_logps, teacher_logps, strict=True):
        differences = (p - q for q, p in zip(student[:-1], teacher[:-1], strict=True))
        odds = accumulate(differences, initial=math.log(weight) - math.log1p(-weight))
        rows.append([1 / (1 + math.exp(min(-value, _LARGEST_EXPONENT))) for value in odds][: len(student)])
    return rows


def skew_weights(writer_logps: Ragged, reader_logps: Ragged, alpha: float) -> list[float]:
    """Return the skew α of each sequence: smaller where the two models are closer than they are on average.

    Formula: α_i = clip(1 − (1 − α₀) m / (d_i + 1e-5), 0.01, α₀), where d_i is exp(mean log-probability of the
    sequence's tokens) under the model that wrote it, less the same under the other one, and m the mean of d.

    Args:
        writer_logps: log-probability of each token under the model that wrote the sequences, nats.
        reader_logps: the same under the other model.
        alpha: α₀, the largest skew, above 0.01.

    >>> sure, unsure = [math.log(0.9)] * 3, [math.log(0.3)] * 3
    >>> [round(a, 3) for a in skew_weights([sure, sure], [unsure, [math.log(0.89)] * 3], alpha=0.1)]
    [0.1, 0.01]

    Reference: DistiLLM-2 (2025), official code (`update_alpha`). Differs: m is the mean over the given sequences,
    there a mean over the steps since the last log.
    """
    gaps = [
        math.exp(sum(writer) / max(1, len(writer))) - math.exp(sum(reader) / max(1, len(reader)))
        for writer, reader in zip(writer_logps, reader_logps, strict=True)
    ]
    mean = sum(gaps) / max(1, len(gaps))
    skews = (1 - (1 - alpha) * mean / (gap + 1e-5 or 1e-5) for gap in gaps)
    return [min(max(skew, 0.01), alpha) for skew in skews]  # in this order NaN stays NaN
