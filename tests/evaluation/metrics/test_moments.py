"""Distances along responses against their definitions, and critics that approach what no critic can pass."""

import pytest
import torch
from tests.definitions import divergence
from tests.evaluation.metrics.readings import shares
from tests.evaluation.metrics.subjects import ITEMS, model, subject
from tests.toy import TabularModel, every_response

from tutelage.errors import InputError
from tutelage.evaluation.distances import distance_sums
from tutelage.evaluation.metrics.moments import Moments, fresh_critic


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
@pytest.mark.parametrize("off", ["teacher_text", "references"])
def test_distances_are_their_definitions(kind: str, off) -> None:
    metric = Moments(off=off, bound=2.0, discount=0.7, critic_steps=3)
    looked_at = subject(metric, kind)
    found = metric.measure(looked_at).scores
    assert len(found) == 10
    teachers = looked_at.write("", seed=0, by=looked_at.teacher.model)  # pyright: ignore
    texts = {"off": teachers if off == "teacher_text" else looked_at.references, "on": looked_at.write("", seed=0)}
    for side, rollout in texts.items():
        for name in ("total_variation", "forward_kl", "reverse_kl"):
            rows = {}
            for item, prompt, response in zip(ITEMS, rollout.prompts, rollout.responses, strict=True):
                values = divergence(name, *shares(looked_at, prompt, response)).tolist()
                rows[item.place] = sum(0.7**at * value for at, value in enumerate(values))
            score = found[f"{name}_{side}"]
            assert {place: row[0] for place, row in score.rows.items()} == pytest.approx(rows, rel=1e-5)
        moments = found[f"moment_{side}"].rows
        totals = found[f"total_variation_{side}"].rows
        critic = found[f"critic_{side}"].rows
        assert list(critic) == ["a:2", "a:4"]
        for place, (value, _) in moments.items():
            assert value == pytest.approx(4 * totals[place][0])
            assert place not in critic or 0 != critic[place][0] <= value


@pytest.mark.parametrize("discount", [1.0, 0.6])
def test_a_critic_approaches_the_closed_form(discount: float) -> None:
    student, teacher = TabularModel(3, 3, 1, stop=0), TabularModel(3, 3, 2, stop=0).frozen()
    texts = every_response(teacher)
    reached = []
    for steps in (3, 30, 300):
        settings = Moments(bound=0.5, discount=discount, critic_steps=steps, critic_rate=0.3)
        critic = fresh_critic(student, teacher, [texts], settings)
        sums = distance_sums(student, teacher, texts, discount, 100, critic=critic)
        closed = sum(sums["total_variation"].values())  # 2B = 1
        assert all(value <= sums["total_variation"][row] + 1e-12 for row, value in sums["critic"].items())
        reached.append(sum(sums["critic"].values()) / closed)
    assert 0 < reached[0] < reached[1] < reached[2] <= 1
    assert reached[2] > 0.99


def test_a_critic_learns_what_holds_on_other_items() -> None:
    student, teacher = model("gpt2", 1), model("gpt2", 2, width=24)
    metric = Moments(critic_steps=150, discount=0.9)
    items = [item for item in ITEMS for _ in range(8)]
    items = [type(item)(f"{item.place}.{n}", *list(vars(item).values())[1:]) for n, item in enumerate(items)]
    found = metric.measure(
        subject(metric, student=student, teacher=teacher, items=items, micro_batch_tokens=200)
    ).scores
    for side in ("off", "on"):
        held_out = found[f"critic_{side}"]
        closed = sum(found[f"moment_{side}"].rows[place][0] for place in held_out.rows) / len(held_out.rows)
        assert len(held_out.rows) == 20
        assert 0.5 * closed < held_out.measurement().value <= closed


def test_models_are_not_changed() -> None:
    metric = Moments(critic_steps=2)
    looked_at = subject(metric)
    before = [p.clone() for p in looked_at.student.network.parameters()]
    with torch.no_grad():  # as the coordinator calls it
        metric.measure(looked_at)
    assert all(torch.equal(a, b) for a, b in zip(before, looked_at.student.network.parameters(), strict=True))
    assert all(p.grad is None for p in looked_at.student.network.parameters())


def test_a_student_that_is_its_teacher() -> None:
    metric = Moments(critic_steps=5)
    found = metric.measure(subject(metric, student=model("gpt2", 3), teacher=model("gpt2", 3))).scores
    assert found["moment_on"].measurement().value == pytest.approx(0, abs=1e-12)
    assert found["critic_on"].measurement().value == pytest.approx(0, abs=1e-12)


def test_one_item_has_no_critic() -> None:
    metric = Moments()
    found = metric.measure(subject(metric, "t5", items=ITEMS[:1]))
    assert "critic_on" not in found.scores
    assert found.scores["moment_on"].measurement().value > 0
    assert found.notes == ["one item: no critic, which needs others to learn from"]


def test_references_that_are_not_there_are_refused() -> None:
    metric = Moments(off="references", critic_steps=0)
    with pytest.raises(InputError, match="compares with references, and the task has none"):
        metric.measure(subject(metric, references=False))
