"""What two models say of one text at a time, by transformers' own logits: the slow and certain way."""

import torch
from tests.tiny_models import own_logits
from torch import Tensor


def shares(looked_at, prompt: tuple[int, ...], response: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The student's and the teacher's probabilities at each response token, `[tokens, vocabulary]`."""
    with torch.no_grad():
        return (
            own_logits(looked_at.student.network, prompt, response).double().softmax(-1),
            own_logits(looked_at.teacher.model.network, prompt, response).double().softmax(-1),
        )
