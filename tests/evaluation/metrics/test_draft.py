"""Speculative decoding: acceptance and calls by enumeration, and transformers' assisted generation."""

from collections import Counter

import pytest
import scipy.stats
import torch
from tests.evaluation.metrics.readings import shares
from tests.evaluation.metrics.subjects import ITEMS, model, subject
from tests.tiny_models import STOP, language_model, own_logits
from tests.toy import TabularModel

from tutelage.config import Decoding
from tutelage.evaluation.assisted import write_assisted
from tutelage.evaluation.metrics.draft import Draft, expected_calls
from tutelage.evaluation.score import Score


def _calls_by_the_algorithm(target: TabularModel, draft: TabularModel, drafted: int) -> float:
    """Expected calls of the target by walking every course that speculative sampling can take."""
    p, q = (m.table.detach().softmax(0).T for m in (target, draft))

    def ended(prefix) -> bool:
        return len(prefix) == target.length or prefix[-1:] == (target.stop,)

    def calls(prefix) -> float:
        return 0.0 if ended(prefix) else 1.0 + within(prefix, drafted)

    def within(prefix, left: int) -> float:
        if ended(prefix):
            return 0.0
        row = target.prefixes.index(prefix)
        total = 0.0
        for token in range(target.vocabulary):
            theirs, own = p[row, token].item(), q[row, token].item()
            if left == 0:
                total += theirs * calls((*prefix, token))
            else:
                total += min(theirs, own) * within((*prefix, token), left - 1)
                total += max(theirs - own, 0.0) * calls((*prefix, token))
        return total

    return calls(())


@pytest.mark.parametrize("drafted", [1, 2, 3, 5])
def test_expected_calls_are_those_of_the_algorithm(drafted: int) -> None:
    target, draft = TabularModel(3, 4, 2, stop=0), TabularModel(3, 4, 1, stop=0)
    p, q = target, draft
    expected = 0.0
    for text in target.sequences():
        accepted = (q.step_logps(text) - p.step_logps(text)).clamp(max=0).exp().tolist()
        expected += p.logp(text).exp().item() * expected_calls(accepted, drafted)
    assert expected == pytest.approx(_calls_by_the_algorithm(target, draft, drafted), abs=1e-12)


@pytest.mark.parametrize(("rate", "drafted"), [(0.7, 3), (0.25, 1), (1.0, 4), (0.0, 2)])
def test_formula_is_the_sum_of_chances(rate: float, drafted: int) -> None:
    rows = {"a": (3 * rate, 3.0, 3.0 * drafted), "b": (7 * rate, 7.0, 7.0 * drafted)}
    found = Score(rows, "", "higher", reduction="block_efficiency").measurement()
    assert found.value == pytest.approx(sum(rate**n for n in range(drafted + 1)))
    long = [rate] * 20000  # the formula is the limit for long text whose tokens are accepted at one rate
    if drafted < 4:
        assert 20000 / expected_calls(long, drafted) == pytest.approx(found.value, rel=1e-3)


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_acceptance_and_efficiency_are_their_definitions(kind: str) -> None:
    metric = Draft(draft_tokens=2, max_new_tokens=5, measured_items=0)
    looked_at = subject(metric, kind)
    found = {name: score.measurement().value for name, score in metric.measure(looked_at).scores.items()}
    teacher = looked_at.teacher.model  # pyright: ignore
    for name, by in (("acceptance_teacher_text", teacher), ("acceptance_student_text", looked_at.student)):
        total, tokens, calls = 0.0, 0, 0.0
        texts = looked_at.write("", Decoding(max_new_tokens=5), seed=0, by=by)
        for prompt, response in zip(texts.prompts, texts.responses, strict=True):
            student_share, teacher_share = shares(looked_at, prompt, response)
            total += torch.minimum(student_share, teacher_share).sum().item()
            tokens += len(response)
            at = range(len(response)), list(response)
            calls += expected_calls((student_share[at] / teacher_share[at]).clamp(max=1).tolist(), 2)
        rate = total / tokens
        assert found[name] == pytest.approx(100 * rate, rel=1e-5)
        if by is teacher:
            assert found["block_efficiency_formula"] == pytest.approx(1 + rate + rate**2, rel=1e-5)
            assert found["block_efficiency"] == pytest.approx(tokens / calls, rel=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bart", "t5"])
def test_assisted_generation_is_lossless_and_takes_the_calls_foretold(kind: str) -> None:
    metric = Draft(draft_tokens=3, max_new_tokens=12)
    student = _near(kind)
    looked_at = subject(metric, kind, student=student, teacher=model(kind, 2))
    own_settings = student.network.generation_config
    found = metric.measure(looked_at)
    assert found.notes == []
    values = {name: score.measurement().value for name, score in found.scores.items()}
    assert values["lossless_greedy"] == 100
    assert 1 < values["block_efficiency_greedy"] < 4
    measured = values["measured_block_efficiency_greedy"]
    if kind == "bart":  # in transformers, drafts that BART reads from its cache differ from its forward pass
        assert 0.9 * values["block_efficiency_greedy"] < measured <= values["block_efficiency_greedy"]
    else:
        assert measured == pytest.approx(values["block_efficiency_greedy"])
    assert 1 <= values["measured_block_efficiency"] <= 4
    assert values["speedup_greedy"] > 0
    assert student.network.generation_config is own_settings


def _near(kind: str):
    """A student near the teacher of seed 2, so that some drafts are accepted."""
    student = model(kind, 2)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in student.network.parameters():
            parameter.add_(0.08 * torch.randn_like(parameter))
    return student


def test_law_of_two_sampled_tokens_is_the_targets() -> None:
    target, draft = language_model("gpt2", 4, vocabulary=4), language_model("gpt2", 5, vocabulary=4)
    prompt, count = (2, 3), 600
    seen = Counter(
        write_assisted(target, draft, prompt, draft_tokens=2, max_new_tokens=2, sample=True, seed=seed).response
        for seed in range(count)
    )
    expected = {}
    with torch.no_grad():
        for first in range(4):
            p = own_logits(target.network, prompt, (first, 0)).softmax(-1)  # pyright: ignore
            if first == STOP:
                expected[(first,)] = p[0, first].item()
            else:
                expected |= {(first, second): (p[0, first] * p[1, second]).item() for second in range(4)}
        q = own_logits(draft.network, prompt, (0, 0)).softmax(-1)  # pyright: ignore
        own = own_logits(target.network, prompt, (0, 0)).softmax(-1)  # pyright: ignore
    assert sum(expected.values()) == pytest.approx(1)
    assert set(seen) <= set(expected)
    assert (q - own)[0].abs().sum() > 0.3  # a draft whose law would be told apart
    cells = [key for key, share in expected.items() if share * count >= 5]
    rest = [key for key in expected if key not in cells]
    counts = [seen[key] for key in cells] + [sum(seen[key] for key in rest)] * bool(rest)
    wanted = [count * expected[key] for key in cells] + [count * sum(expected[key] for key in rest)] * bool(rest)
    assert scipy.stats.chisquare(counts, wanted).pvalue > 0.01


def test_a_student_that_is_its_teacher_and_one_item() -> None:
    metric = Draft(draft_tokens=2, max_new_tokens=9)
    found = metric.measure(subject(metric, student=model("gpt2", 3), teacher=model("gpt2", 3), items=ITEMS[:1])).scores
    values = {name: score.measurement().value for name, score in found.items()}
    for name in ("acceptance_teacher_text", "acceptance_student_text", "acceptance_greedy"):
        assert values[name] == pytest.approx(100)
    assert values["block_efficiency_formula"] == pytest.approx(3)
    assert values["measured_block_efficiency_greedy"] == pytest.approx(values["block_efficiency"], abs=1)


def test_heads_of_different_sizes_are_not_measured() -> None:
    metric = Draft(max_new_tokens=3)
    looked_at = subject(metric, student=language_model("gpt2", 1, vocabulary=24))
    found = metric.measure(looked_at)
    assert found.notes == ["assisted generation is not measured: heads of 24 and 22 rows"]
    assert "speedup_greedy" not in found.scores
    assert 0 < found.scores["acceptance_teacher_text"].measurement().value < 100
