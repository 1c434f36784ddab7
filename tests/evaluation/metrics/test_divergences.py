"""Divergences on each kind of text against the papers' definitions, one reading a text."""

from dataclasses import replace

import pytest
from tests.definitions import divergence
from tests.evaluation.metrics.readings import shares
from tests.evaluation.metrics.subjects import ITEMS, model, subject

from tutelage.errors import InputError
from tutelage.evaluation.metrics.divergences import Divergences

DEFINED = {
    "forward_kl": "forward_kl",
    "reverse_kl": "reverse_kl",
    "jsd": "jsd(0.5)",
    "total_variation": "total_variation",
}
EVERY = ("student_text", "references", "teacher_text", "answers")


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_divergences_are_their_definitions(kind: str) -> None:
    metric = Divergences(texts=EVERY)
    looked_at = subject(metric, kind)
    answers = [looked_at.write("", seed=seed) for seed in (5, 6)]
    looked_at = replace(looked_at, rollouts=answers)
    texts = {
        "student_text": [looked_at.write("", seed=0)],
        "references": [looked_at.references],
        "teacher_text": [looked_at.write("", seed=0, by=looked_at.teacher.model)],  # pyright: ignore
        "answers": answers,
    }
    found = metric.measure(looked_at).scores
    assert len(found) == 20
    for text, rollouts in texts.items():
        totals, tokens = dict.fromkeys([*DEFINED, "same_top_token"], 0.0), 0
        for rollout in rollouts:
            for prompt, response in zip(rollout.prompts, rollout.responses, strict=True):
                student, teacher = shares(looked_at, prompt, response)
                for name, definition in DEFINED.items():
                    totals[name] += divergence(definition, student, teacher).sum().item()
                totals["same_top_token"] += 100.0 * (student.argmax(-1) == teacher.argmax(-1)).sum().item()
                tokens += len(response)
        for name, total in totals.items():
            score = found[f"{name}_{text}"]
            assert score.measurement().value == pytest.approx(total / tokens, rel=1e-5, abs=1e-9)
            assert list(score.rows) == [item.place for item in ITEMS]


def test_a_student_that_is_its_teacher() -> None:
    metric = Divergences()
    found = metric.measure(subject(metric, student=model("gpt2", 3), teacher=model("gpt2", 3))).scores
    assert found["same_top_token_student_text"].measurement().value == 100
    for name in DEFINED:
        assert found[f"{name}_student_text"].measurement().value == pytest.approx(0, abs=1e-12)


def test_what_it_uses_follows_its_texts() -> None:
    assert Divergences().uses == {"teacher"}
    assert Divergences(texts=("answers",)).uses == {"teacher", "text"}


def test_references_that_are_not_there_are_refused() -> None:
    metric = Divergences()
    with pytest.raises(InputError, match="compares with references, and the task has none"):
        metric.measure(subject(metric, references=False))


def test_one_item() -> None:
    metric = Divergences(texts=("teacher_text",))
    found = metric.measure(subject(metric, "t5", items=ITEMS[:1], references=False)).scores
    assert found["jsd_teacher_text"].measurement().n == 1
