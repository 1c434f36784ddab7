"""A teacher that looks at each text once."""

import torch
from tests.toy import PROMPT, TabularModel

from tutelage.models.remembering import RememberingTeacher
from tutelage.rollouts.rollout import Rollout


class Counting(TabularModel):
    asked = 0

    def hidden(self, rollout):
        self.asked += 1
        return super().hidden(rollout)


def test_it_asks_once_for_each_text_and_answers_as_the_teacher_does():
    teacher = Counting(vocabulary=3, length=3, seed=0)
    remembering = RememberingTeacher(teacher)
    one = Rollout.of([PROMPT], [(0, 1, 2)])
    same_text = Rollout.of([PROMPT], [(0, 1, 2)], writer="student", items=[7])
    shorter_mask = Rollout.of([PROMPT], [(0, 1, 2)], masks=[(True, False, True)])
    other = Rollout.of([PROMPT], [(0, 2, 2)])
    for rollout in (one, same_text, shorter_mask, other, one, other, shorter_mask):
        assert torch.equal(remembering.hidden(rollout), TabularModel.hidden(teacher, rollout))
    assert teacher.asked == 3
    assert remembering.head is teacher.head or torch.equal(remembering.head.weight, teacher.head.weight)
    assert not remembering.hidden(one).requires_grad
