"""A teacher that is asked the same several times within a step, and looks at each text once."""

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.losses.head import Head
from tutelage.models.teachers import Teacher
from tutelage.rollouts.rollout import Rollout


class RememberingTeacher(Teacher):
    """A teacher in front of another one, whose hidden states it keeps for as long as it lives.

    Where a step goes over its micro-batches several times (a critic's update before the student's, the gradient of
    each term on its own), the teacher's states stay what they are. Make one for each step: it keeps positions × width
    numbers, and frees them when it goes.

    Args:
        teacher: who is asked once for each micro-batch.
    """

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._known: dict[tuple, Tensor] = {}

    @property
    def head(self) -> Head:
        """The teacher's output head."""
        return self._teacher.head

    def hidden(self, rollout: Rollout) -> Float[Tensor, "positions width"]:
        """Return the final hidden states that predict the masked response tokens; no gradient."""
        text = (rollout.prompts, rollout.responses, rollout.masks)
        if text not in self._known:
            with torch.no_grad():
                self._known[text] = self._teacher.hidden(rollout)
        return self._known[text]
