"""Exposure bias: the estimator's expectation by enumeration, and the metric on real models by one reading a text."""

import numpy as np
import pytest
import torch
from tests.definitions import kl
from tests.evaluation.metrics.subjects import ITEMS, model, subject
from tests.tiny_models import STOP, own_logits
from tests.toy import PROMPT, TabularModel, every_response

from tutelage.config import Decoding
from tutelage.divergences import forward_kl
from tutelage.evaluation.metrics.exposure_bias import ExposureBias, accumulated
from tutelage.evaluation.sequences import comparison, per_sequence
from tutelage.rollouts.rollout import Rollout

LENGTH = 4


def _pair() -> tuple[TabularModel, TabularModel]:
    return TabularModel(3, LENGTH, 1, stop=0), TabularModel(3, LENGTH, 2, stop=0).frozen()


def _defined(writer: TabularModel, student: TabularModel, teacher: TabularModel) -> np.ndarray:
    """Σ_{t≤l} Σ over prefixes of t − 1 tokens of their probability × KL(teacher ‖ student), by walking the tree."""
    steps = np.zeros(LENGTH)
    own, q, p = (m.table.detach().softmax(0).T for m in (writer, student, teacher))
    for prefix, kls in zip(writer.prefixes, kl(p, q).tolist(), strict=True):
        chance = 1.0
        for at, token in enumerate(prefix):
            chance *= own[writer.prefixes.index(prefix[:at])][token].item()
        steps[len(prefix)] += chance * kls
    return steps.cumsum()


@pytest.mark.parametrize("who", [0, 1])
def test_expectation_over_all_texts_is_the_definition(who: int) -> None:
    student, teacher = _pair()
    writer = (student, teacher)[who]
    texts = every_response(writer)
    found = accumulated(per_sequence(comparison(forward_kl, student, teacher), texts, 50), LENGTH)
    chances = np.array([writer.logp(text).exp().item() for text in texts.responses])
    assert chances.sum() == pytest.approx(1)
    assert chances @ found == pytest.approx(_defined(writer, student, teacher), abs=1e-12)


def test_the_first_token_counts() -> None:
    student, teacher = _pair()
    texts = Rollout.of([PROMPT], [(0,)])  # ends at once
    found = accumulated(per_sequence(comparison(forward_kl, student, teacher), texts, 50), 2)
    first = kl(teacher.table.softmax(0)[:, 0], student.table.softmax(0)[:, 0]).item()
    assert found[0].tolist() == pytest.approx([first, first])
    assert first > 0.1


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_metric_is_its_formula(kind: str) -> None:
    metric = ExposureBias(samples=3, max_new_tokens=5, lengths=(2, 5, 15))
    looked_at = subject(metric, kind)
    found = metric.measure(looked_at)
    totals = {}
    for by in (looked_at.student, looked_at.teacher.model):  # pyright: ignore
        steps = np.zeros(5)
        for seed in range(3):
            texts = looked_at.write("", Decoding(max_new_tokens=5), seed=seed, by=by)
            for prompt, response in zip(texts.prompts, texts.responses, strict=True):
                with torch.no_grad():
                    q = own_logits(looked_at.student.network, prompt, response).softmax(-1)
                    p = own_logits(looked_at.teacher.model.network, prompt, response).softmax(-1)  # pyright: ignore
                steps[: len(response)] += kl(p, q).numpy() / (3 * len(ITEMS))
        totals[by] = steps.cumsum()
    own, teachers = totals.values()
    wanted = 100 * (own - teachers) / teachers
    assert found.curves["exposure_bias"].y == pytest.approx(wanted, rel=1e-5)
    assert set(found.scores) == {
        "exposure_bias", "exposure_bias_2", "student_text_accumulated_kl", "teacher_text_accumulated_kl"
    }  # fmt: skip
    assert found.scores["exposure_bias"].measurement().value == pytest.approx(wanted[4], rel=1e-5)
    assert found.scores["exposure_bias_2"].measurement().value == pytest.approx(wanted[1], rel=1e-5)
    assert found.scores["student_text_accumulated_kl"].measurement().value == pytest.approx(own[4], rel=1e-5)
    low, high = found.curves["exposure_bias"].low, found.curves["exposure_bias"].high
    assert low is not None
    assert high is not None
    assert (np.array(low) < wanted)[1:].all()  # the first token has the same prefix in both
    assert (np.array(high) > wanted)[1:].all()


def test_a_student_that_is_its_teacher_errs_nowhere() -> None:
    metric = ExposureBias(samples=2)
    found = metric.measure(subject(metric, student=model("gpt2", 3), teacher=model("gpt2", 3)))
    for writer in ("student", "teacher"):
        assert found.scores[f"{writer}_text_accumulated_kl"].measurement().value == pytest.approx(0, abs=1e-12)


def test_one_item_and_text_without_an_end() -> None:
    student = model("gpt2", 1)
    student.stop_ids = (STOP,)
    metric = ExposureBias(samples=1, max_new_tokens=1, lengths=(1,))
    found = metric.measure(subject(metric, student=student, items=ITEMS[:1])).scores
    assert "exposure_bias_1" not in found
    # The first token's distribution does not depend on who writes.
    assert found["exposure_bias"].measurement().value == pytest.approx(0, abs=1e-6)
