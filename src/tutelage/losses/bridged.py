"""Comparing distributions over two vocabularies: on the strings that both have, or by their sorted probabilities."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.divergences import Divergence, named
from tutelage.losses.blocks import Block, Comparison, InBlocks
from tutelage.losses.chunks import DEFAULT_MEMORY
from tutelage.losses.engine import OnePass
from tutelage.losses.head import Head
from tutelage.losses.linear import Scores
from tutelage.losses.projection import Model
from tutelage.losses.work import Values, Work


def shared_divergence(
    student_hidden: Float[Tensor, "positions student_width"],
    student_head: Head,
    teacher_hidden: Float[Tensor, "positions teacher_width"],
    teacher_head: Head,
    student_ids: Int[Tensor, " shared"],
    teacher_ids: Int[Tensor, " shared"],
    divergence: str,
    *,
    coefficients: Float[Tensor, " positions"],
    memory: int = DEFAULT_MEMORY,
) -> Scores:
    """Compare on the tokens that both vocabularies have, and on all others as one.

    Use it where the next token starts at the same byte for both models. Each distribution is coarsened to the shared
    tokens and a rest, so both still add up to one: what is measured is a true divergence. With equal vocabularies of
    which everything is shared it is that of `linear_divergence`.

    Formula: Σ_n c_n D(p̃_n, q̃_n), with q̃ = (q_{s_1}, …, q_{s_K}, 1 − Σ_k q_{s_k}) and p̃ the same of the teacher's
    ids t_1, …, t_K. Where
    neither side has a rest there is none; a student without one meets a teacher's with the smallest number there is.

    Args:
        student_hidden: final hidden states, one a position; receives a gradient.
        student_head: its head, over its own vocabulary; receives one too.
        teacher_hidden: the teacher's states at the positions that it is compared at.
        teacher_head: its head, over its own vocabulary.
        student_ids: s, each id once.
        teacher_ids: t, each id once; the k-th is the same string as the student's k-th.
        divergence: a name such as `jsd(0.5)`.
        coefficients: c, one weight a position.
        memory: bytes that the products of one chunk may take.

    Returns:
        The total, which carries the gradient, and the divergence of each position.

    >>> head = Head(torch.zeros(3, 1))  # both models find their three tokens equally probable; two are shared
    >>> ids, hidden = torch.tensor([0, 1]), torch.zeros(1, 1)
    >>> scores = shared_divergence(hidden, head, hidden, head, ids, ids, "forward_kl", coefficients=torch.ones(1))
    >>> scores.divergence.tolist()
    [0.0]
    """
    comparison = SharedTokens(named(divergence), student_ids, teacher_ids)
    return _bridged(comparison, student_hidden, student_head, teacher_hidden, teacher_head, coefficients, memory)


def sorted_distance(
    student_hidden: Float[Tensor, "positions student_width"],
    student_head: Head,
    teacher_hidden: Float[Tensor, "positions teacher_width"],
    teacher_head: Head,
    *,
    coefficients: Float[Tensor, " positions"],
    memory: int = DEFAULT_MEMORY,
) -> Scores:
    """Compare the sorted probabilities of two vocabularies, whatever their tokens are (ULD).

    It sees how sure the models are, and not of what: models that are equally sure of different tokens have distance 0.

    Formula: Σ_n c_n Σ_i |q_n(i) − p_n(i)|, with q(i) the student's i-th largest probability, p(i) the teacher's, and
    zeros behind the shorter of the two.

    Args:
        student_hidden: final hidden states, one a position; receives a gradient.
        student_head: its head, over its own vocabulary; receives one too.
        teacher_hidden: the teacher's states at the positions that it is compared at.
        teacher_head: its head, over its own vocabulary.
        coefficients: c, one weight a position.
        memory: bytes that the products of one chunk may take.

    Returns:
        The total, which carries the gradient, and the distance of each position, in [0, 2].

    >>> student, teacher = Head(torch.zeros(2, 1)), Head(torch.zeros(4, 1))  # (½, ½, 0, 0) against four quarters
    >>> hidden = torch.zeros(1, 1)
    >>> sorted_distance(hidden, student, hidden, teacher, coefficients=torch.ones(1)).divergence.tolist()
    [1.0]

    Reference: Boizard et al. 2024 (arXiv 2402.12030).
    """
    return _bridged(
        sorted_probabilities, student_hidden, student_head, teacher_hidden, teacher_head, coefficients, memory
    )


def _bridged(
    comparison: Comparison,
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    coefficients: Tensor,
    memory: int,
) -> Scores:
    student = student_head.gathered()
    work = Work(
        student=Model.of(student_hidden, student),
        others=(Model.of(teacher_hidden, teacher_head.gathered()),),
        pointwise=InBlocks(comparison),
        compared=True,
        coefficients=coefficients,
        targets=None,
        cross_entropy=None,
        temperature=1.0,
        memory=memory,
    )
    return Scores(*OnePass.apply(work, student_hidden, student.weight, student.bias))


@dataclass(frozen=True)
class SharedTokens:
    """Comparison on the tokens that both vocabularies have, and on the rest."""

    divergence: Divergence
    student_ids: Tensor
    teacher_ids: Tensor

    def __call__(self, work: Work, block: Block, values: Values) -> Tensor | None:
        """Fill in the values of a block and return their slope."""
        student, other = block.student, work.others[0].head.logits_of(block.products[0])
        exp = student.exp / student.total
        student_logp, rest = _coarse(student.logp, exp, self.student_ids)
        teacher_logp, _ = _coarse(other.log_softmax(-1), other.softmax(-1), self.teacher_ids)
        whole = exp.shape[-1] == len(self.student_ids)
        compared = -1 if whole and other.shape[-1] == len(self.teacher_ids) else None  # no rest on either side
        assert values.divergence is not None
        values.divergence[block.rows] = self.divergence(student_logp[:, :compared], teacher_logp[:, :compared])
        if not block.differentiate[0]:
            return None
        slope = self.divergence.slope(student_logp, teacher_logp)
        of_rest = torch.zeros_like(slope[:, -1:]) if whole else slope[:, -1:]
        total = slope[:, :-1].sum(-1, keepdim=True) + of_rest
        found = rest * (of_rest / rest.sum(-1, keepdim=True).clamp_min(torch.finfo(rest.dtype).tiny)) - exp * total
        return found.index_add_(-1, self.student_ids, slope[:, :-1]).mul_(block.factor)


def _coarse(logp: Tensor, probability: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the shared tokens and of the rest, and the probabilities of the rest, token by token."""
    rest = probability.index_fill(-1, ids, 0.0)
    left = rest.sum(-1, keepdim=True).clamp_min(torch.finfo(rest.dtype).tiny).log()
    return torch.cat([logp.index_select(-1, ids), left], -1), rest


def sorted_probabilities(work: Work, block: Block, values: Values) -> Tensor | None:
    """Compare sorted probabilities: fill in the values of a block and return their slope."""
    student = block.student.exp / block.student.total
    teacher = work.others[0].head.logits_of(block.products[0]).softmax(-1).sort(-1, descending=True).values
    ordered, order = student.sort(-1, descending=True)
    width, other = ordered.shape[-1], teacher.shape[-1]
    padded = torch.nn.functional.pad(teacher, (0, max(0, width - other)))
    difference = ordered - padded[:, :width]
    assert values.divergence is not None
    values.divergence[block.rows] = difference.abs().sum(-1) + padded[:, width:].sum(-1)
    if not block.differentiate[0]:
        return None
    slope = torch.empty_like(student).scatter_(-1, order, ordered * difference.sign())
    return (slope - student * slope.sum(-1, keepdim=True)).mul_(block.factor)
