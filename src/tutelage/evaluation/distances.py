"""How far a student is from its teacher along whole responses: moment, total-variation and KL distances.

Off-policy, the responses are the teacher's (or the references); on-policy, the student's own. Any method's student
can be measured: the closed forms need no critic.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tutelage import divergences
from tutelage.estimators import discounts, moment_gap
from tutelage.evaluation.intervals import Measurement, bootstrap_mean
from tutelage.evaluation.sequences import per_sequence
from tutelage.losses import map_vocabulary
from tutelage.models.language_model import LanguageModel
from tutelage.models.teachers import Teacher
from tutelage.rollouts.rollout import Rollout

if TYPE_CHECKING:
    from tutelage.methods.critics import Critic

CLOSED = ("total_variation", "forward_kl", "reverse_kl")


@torch.no_grad()
def moment_distances(
    student: LanguageModel,
    teacher: Teacher,
    off_rollout: Rollout,
    on_rollout: Rollout,
    bound: float = 0.5,
    *,
    discount: float = 1.0,
    micro_batch_tokens: int = 4096,
    vocabulary: int | None = None,
    critics: Mapping[str, Any] | None = None,
) -> dict[str, Measurement]:
    """Measure step-wise distances along responses, and the largest moment distance that a bounded critic can find.

    Formula: E Σ_t γ^t D(p_t, q_t) over the sequences of each rollout, with p the teacher and q the student;
    sup over |f| ≤ B of E Σ_t γ^t (E_p f − E_q f) = 2B E Σ_t γ^t TV(p_t, q_t).

    Args:
        student: the student.
        teacher: the teacher.
        off_rollout: text of the teacher, or the references in its place.
        on_rollout: text that the student sampled.
        bound: B.
        discount: γ.
        micro_batch_tokens: tokens in one forward pass.
        vocabulary: number of leading ids that both vocabularies share.
        critics: `critic_off` and `critic_on` of a run in progress, for the distance that they find; their B and γ
            then take the place of those given. For a verdict on a student use the closed form: its own critics were
            trained together with it.

    Returns:
        Means over sequences with `_off` and `_on` behind the name: `total_variation`, `forward_kl` and `reverse_kl`
        (nats), summed over the tokens; `moment`, the closed form; and `critic` where critics are given.

    Reference: AMMD (arXiv 2406.02959), Fig. 3 and its step-wise total-variation bound.
    """
    found: dict[str, Measurement] = {}
    for side, rollout in (("off", off_rollout), ("on", on_rollout)):
        critic = (critics or {}).get(f"critic_{side}")
        reach, gamma = (bound, discount) if critic is None else (critic.bound, critic.discount)
        columns = distance_sums(student, teacher, rollout, gamma, micro_batch_tokens, vocabulary, critic)
        columns["moment"] = {row: 2 * reach * value for row, value in columns["total_variation"].items()}
        found |= {f"{name}_{side}": bootstrap_mean(list(values.values())) for name, values in columns.items()}
    return found


@torch.no_grad()
def critic_distance(
    student: LanguageModel,
    teacher: Teacher,
    rollout: Rollout,
    critic: "Critic",
    *,
    micro_batch_tokens: int = 4096,
    vocabulary: int | None = None,
) -> Measurement:
    """Return the moment distance that a critic finds on given text: the mean over sequences of Σ_t γ^t (E_p f − E_q f).

    It is at most the closed form 2B Σ_t γ^t TV; γ and B are the critic's.
    """
    columns = distance_sums(student, teacher, rollout, critic.discount, micro_batch_tokens, vocabulary, critic)
    return bootstrap_mean(list(columns["critic"].values()))


def distance_sums(
    student: LanguageModel,
    teacher: Teacher,
    rollout: Rollout,
    discount: float,
    micro_batch_tokens: int,
    vocabulary: int | None = None,
    critic: "Critic | None" = None,
) -> dict[str, dict[int, float]]:
    """Return the discounted sums along each sequence that has a token in the loss, by its row in the rollout.

    Args:
        student: the student.
        teacher: the teacher.
        rollout: the text.
        discount: γ.
        micro_batch_tokens: tokens in one forward pass.
        vocabulary: number of leading ids that both vocabularies share.
        critic: a critic whose distance is wanted too, as `critic`.
    """

    def measure(part: Rollout) -> Tensor:
        hidden, teacher_hidden = student.hidden(part), teacher.hidden(part)
        extra: dict[str, Any] = {}
        if critic is not None:
            states = critic.states(hidden, teacher_hidden)
            extra = {"extra_hidden": critic.hidden(states), "extra_head": critic.head}
        return map_vocabulary(
            _compare, hidden, student.head, teacher_hidden, teacher.head, vocabulary=vocabulary, **extra
        )

    names = CLOSED if critic is None else (*CLOSED, "critic")
    columns: dict[str, dict[int, float]] = {name: {} for name in names}
    weights = discounts(rollout.positions_of, discount)
    for row, values in enumerate(per_sequence(measure, rollout, micro_batch_tokens)):
        if len(values):
            weight = torch.tensor(weights[row], dtype=values.dtype)
            for name, total in zip(names, (weight @ values).tolist(), strict=True):
                columns[name][row] = total
    return columns


def _compare(student_logp: Tensor, teacher_logp: Tensor, *critic: Tensor) -> Tensor:
    closed = [getattr(divergences, name)(student_logp, teacher_logp) for name in CLOSED]
    return torch.stack([*closed, *(moment_gap(student_logp, teacher_logp, f) for f in critic)], dim=-1)
