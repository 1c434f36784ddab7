"""Risks against one reading a text, and against the entropies that they are made of."""

import pytest
import torch
from tests.evaluation.metrics.readings import shares
from tests.evaluation.metrics.subjects import ITEMS, model, subject

from tutelage.config import Decoding
from tutelage.evaluation.metrics.risks import Risks


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_risks_are_their_definition(kind: str) -> None:
    metric = Risks(samples=2, max_new_tokens=5)
    looked_at = subject(metric, kind)
    found = {name: score.measurement().value for name, score in metric.measure(looked_at).scores.items()}
    for name, writer, reader in (
        ("likelihood_risk", looked_at.student, 1),
        ("coverage_risk", looked_at.teacher.model, 0),  # pyright: ignore
    ):
        total, tokens = 0.0, 0
        for seed in range(2):
            texts = looked_at.write("", Decoding(max_new_tokens=5), seed=seed, by=writer)
            for prompt, response in zip(texts.prompts, texts.responses, strict=True):
                logp = shares(looked_at, prompt, response)[reader].log()
                total -= sum(logp[at, token].item() for at, token in enumerate(response))
                tokens += len(response)
        assert found[name] == pytest.approx(total / tokens, rel=1e-5)
        assert found[f"{name}_per_sequence"] == pytest.approx(total / (2 * len(ITEMS)), rel=1e-5)


def test_a_collapsed_student_has_little_likelihood_risk_and_much_coverage_risk() -> None:
    teacher, student = model("gpt2", 2), model("gpt2", 2)
    norm = student.network.transformer.ln_f  # pyright: ignore
    with torch.no_grad():  # logits × 4: the teacher at a temperature of ¼
        norm.weight.mul_(4.0)
        norm.bias.mul_(4.0)
    metric = Risks(samples=20, max_new_tokens=3)
    found = []
    for who in (student, teacher):
        scores = metric.measure(subject(metric, student=who, teacher=model("gpt2", 2))).scores
        found.append([scores[name].measurement().value for name in ("likelihood_risk", "coverage_risk")])
    sharp, same = found
    assert same[0] == pytest.approx(same[1])
    assert sharp[0] < 0.9 * same[0]
    assert sharp[1] > 1.5 * same[1]


def test_one_item() -> None:
    metric = Risks()
    found = metric.measure(subject(metric, "t5", items=ITEMS[:1])).scores["coverage_risk"].measurement()
    assert found.low == found.value == found.high > 0
