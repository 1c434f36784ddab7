"""Measuring over the whole vocabulary, a few positions at a time, without gradient."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.losses.chunks import DEFAULT_MEMORY, chunk_size, slices
from tutelage.losses.head import Head


def map_vocabulary(
    function: Callable[..., Tensor],
    student_hidden: Float[Tensor, "positions student_width"],
    student_head: Head,
    teacher_hidden: Float[Tensor, "positions teacher_width"],
    teacher_head: Head,
    *,
    vocabulary: int | None = None,
    extra_hidden: Float[Tensor, "positions extra_width"] | None = None,
    extra_head: Head | None = None,
    memory: int = DEFAULT_MEMORY,
) -> Tensor:
    """Apply a function of both models' log-probabilities to every position, for measuring.

    Args:
        function: takes (student_logp, teacher_logp), both `[chunk, vocabulary]`, and returns `[chunk, ...]`.
        student_hidden: final hidden states of the student.
        student_head: head of the student.
        teacher_hidden: final hidden states of the teacher at the same positions.
        teacher_head: head of the teacher.
        vocabulary: compare on the first so many ids only; by default on those that both heads have.
        extra_hidden: states of a third model, such as a critic, at the same positions.
        extra_head: its head; the function then takes its raw outputs as a third argument.
        memory: bytes that the temporary arrays of one chunk may take.

    Returns:
        The results of all chunks in one tensor `[positions, ...]`, without gradient.

    >>> hidden, head = torch.eye(2), Head(torch.eye(2))
    >>> map_vocabulary(lambda q, p: q.argmax(-1), hidden, head, hidden, head).tolist()
    [0, 1]
    """
    size = vocabulary or min(h.vocabulary for h in (student_head, teacher_head, extra_head) if h is not None)
    student, teacher = student_head.gathered().narrow(size), teacher_head.gathered().narrow(size)
    extra = None if extra_head is None else extra_head.gathered().narrow(size)
    # An empty chunk gives the result its trailing shape when there are no positions at all.
    chunks = list(slices(len(student_hidden), chunk_size(size, memory))) or [slice(0, 0)]
    with torch.no_grad():
        return torch.cat(
            [
                function(
                    student.logits(student_hidden[rows]).log_softmax(-1),
                    teacher.logits(teacher_hidden[rows]).log_softmax(-1),
                    *(() if extra is None or extra_hidden is None else (extra.logits(extra_hidden[rows]),)),
                )
                for rows in chunks
            ]
        )
