"""The language-modelling term on plain text, which keeps a student's general knowledge."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from tutelage.models.language_model import LanguageModel
    from tutelage.models.teachers import Teacher
    from tutelage.rollouts.rollout import Rollout


def plain_text_term(
    rollout: Rollout,
    student: LanguageModel,
    teacher: Teacher,
    *,
    weight: float,
    teacher_share: float,
    vocabulary: int | None,
) -> tuple[Tensor, Tensor]:
    """Return the sum over plain text of weight · [(1 − s)·(−log q(y)) + s·KL(p ‖ q)], and its cross-entropy.

    The teacher is not run where its share s is 0.

    Args:
        rollout: rows of plain text.
        student: receives gradients.
        teacher: receives none.
        weight: of the whole term.
        teacher_share: s, in [0, 1].
        vocabulary: number of leading ids that both vocabularies share.

    Reference: MiniLLM (arXiv 2306.08543), L_PT; s = 0.5 in its code. Differs: its code has the cross-entropy with
    the teacher's distribution, which is KL(p ‖ q) and a constant.
    """
    import torch

    from tutelage.losses import linear_divergence

    everywhere = torch.full((rollout.positions,), weight, device=student.device, dtype=torch.float64)
    compared = teacher_share > 0
    scores = linear_divergence(
        student.hidden(rollout),
        student.head,
        teacher.hidden(rollout) if compared else None,
        teacher.head if compared else None,
        "forward_kl" if compared else None,
        coefficients=everywhere * teacher_share if compared else None,
        targets=student.targets(rollout, vocabulary),
        cross_entropy=everywhere * (1 - teacher_share),
        vocabulary=vocabulary,
    )
    assert scores.student_logp is not None
    return scores.total, -scores.student_logp.sum()
