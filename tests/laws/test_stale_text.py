"""Text of an older student, weighed, has the gradient of the student's own: every response is enumerated."""

import math

import pytest
import torch
from tests.toy import TabularModel, every_response

from tutelage.methods import METHODS
from tutelage.rollouts.rollout import LOG_WEIGHT, Rollout
from tutelage.rollouts.state_weights import state_weights

NAMES = ("on-policy-kd", "gkd", "minillm-single-step", "imitkd")


def models() -> tuple[TabularModel, TabularModel, TabularModel]:
    """The student as it is, as it was, and the teacher."""
    return tuple(TabularModel(3, 3, seed, stop=0) for seed in (1, 2, 3))  # pyright: ignore


def gradient(name: str, writer: TabularModel, weigh: bool, cap: float | None = None) -> torch.Tensor:
    """The gradient of the expected sum over positions, of text that `writer` writes."""
    student, _, teacher = models()
    text, total = every_response(writer), torch.zeros(())
    for row, response in enumerate(text.responses):
        with torch.no_grad():
            own, theirs = student.step_logps(response).tolist(), writer.step_logps(response).tolist()
        part = text.select([row])
        if weigh:
            weights = state_weights([own], [theirs], cap=cap)
            part = part.with_values(**{LOG_WEIGHT: [[math.log(weight) for weight in weights[0]]]})
        terms = METHODS[name]().terms(part, student, teacher.frozen(), 3)  # pyright: ignore
        total = total + math.exp(sum(theirs)) * terms.losses["student"]
    total.backward()
    assert student.table.grad is not None
    return student.table.grad


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_the_student_s_own_text(name: str) -> None:
    student, before, _ = models()
    wanted = gradient(name, student, weigh=False)
    torch.testing.assert_close(gradient(name, before, weigh=True), wanted, rtol=1e-10, atol=1e-12)
    assert (gradient(name, before, weigh=False) - wanted).norm() > 0.05 * wanted.norm()


def test_a_cap_leans_towards_the_older_text() -> None:
    student, before, _ = models()
    wanted, plain = gradient(NAMES[0], student, weigh=False), gradient(NAMES[0], before, weigh=False)
    capped = gradient(NAMES[0], before, weigh=True, cap=1.2)
    assert 0 < (capped - wanted).norm() < (plain - wanted).norm()
    torch.testing.assert_close(gradient(NAMES[0], student, weigh=True, cap=1.0), wanted)  # nothing to weigh


def test_weights_by_hand() -> None:
    """Probabilities ½·¼ of two tokens to the student, ¼·¾ to the writer: 1, 2, 2/3 before each of three tokens."""
    own, theirs = [[0.5, 0.25, 0.1]], [[0.25, 0.75, 0.9]]
    logs = [[list(map(math.log, row)) for row in rows] for rows in (own, theirs)]
    assert state_weights(*logs)[0] == pytest.approx([1.0, 2.0, 2 / 3])
    assert state_weights(*logs, cap=1.5)[0] == pytest.approx([1.0, 1.5, 2 / 3])
    assert state_weights([[]], [[]]) == [[]]


def test_weights_of_the_positions_in_the_loss_reach_it_and_are_told() -> None:
    student, _, teacher = models()
    text = Rollout.of([(0,)], [(1, 2, 0)], masks=[[True, False, True]], writer="student")
    weighed = text.with_values(**{LOG_WEIGHT: [[math.log(3.0), math.log(9.0), math.log(0.5)]]})
    method = METHODS["on-policy-kd"]()
    first, last = (
        method.terms(Rollout.of([(0,)], [(1, 2, 0)], masks=[mask], writer="student"), student, teacher, 3)  # pyright: ignore
        for mask in ([True, False, False], [False, False, True])
    )
    terms = method.terms(weighed, student, teacher, 3)  # pyright: ignore
    assert terms.losses["student"].item() == pytest.approx(
        3.0 * first.losses["student"].item() + 0.5 * last.losses["student"].item()
    )
    assert terms.metrics["importance_weight"].item() == pytest.approx(3.5)
    assert "importance_weight" not in first.metrics
