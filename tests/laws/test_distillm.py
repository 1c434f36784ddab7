"""DistiLLM and DistiLLM-2 against float64 definitions on transformers' own logits, and by enumeration."""

import math

import pytest
import torch
from tests.definitions import divergence, kl
from tests.tiny_models import STOP, own_logits, pair, ragged
from tests.toy import PROMPT, TabularModel

from tutelage.estimators import skew_weights
from tutelage.methods import DistiLLM, DistiLLM2, OnPolicyKD, SupervisedKD
from tutelage.methods.objective import Context
from tutelage.models.teachers import LocalTeacher
from tutelage.rollouts.rollout import Rollout, joined

KINDS = ["gpt2", "bart"]


def written(writer: str, seed: int) -> Rollout:
    generator = torch.Generator().manual_seed(seed)
    responses = [(*torch.randint(2, 50, (n - 1,), generator=generator).tolist(), STOP) for n in (1, 4, 7)]
    return Rollout.of([[3, 4, 5], [6], [7, 8]], responses, writer=writer)


def distributions(student, teacher: LocalTeacher, rollout: Rollout) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Student's and teacher's probabilities of each sequence, from transformers itself."""
    return [
        tuple(own_logits(m, prompt, response).softmax(-1) for m in (student.model, teacher.model.model))
        for prompt, response in zip(rollout.prompts, rollout.responses, strict=True)
    ]


def gradients(loss: torch.Tensor, student) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(student.model.parameters()), retain_graph=True, materialize_grads=True))


def assert_close(ours: list[torch.Tensor], theirs: list[torch.Tensor], rtol: float = 1e-8) -> None:
    for first, second in zip(ours, theirs, strict=True):
        torch.testing.assert_close(first, second, rtol=rtol, atol=1e-10)


# DistiLLM


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["skew_forward_kl(0.1)", "skew_reverse_kl(0.1)"])
def test_text_of_data_student_and_buffer_has_the_same_loss_from_its_first_token_on(kind: str, name: str) -> None:
    """The student's batches are shifted as the data's are: every position, the first and the last too, counts once."""
    student, teacher = pair(kind)
    for writer in ("data", "student"):
        rollout = written(writer, 1)
        found = DistiLLM(divergence=name).terms(rollout, student, teacher).losses["student"]
        wanted = sum(divergence(name, q, p).sum() for q, p in distributions(student, teacher, rollout))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)
        assert_close(gradients(found, student), gradients(wanted, student), 1e-7)


def test_a_shift_by_one_would_be_seen() -> None:
    """The first token's divergence is a part of the loss that no other token's replaces."""
    student, teacher = pair("gpt2")
    whole = written("student", 1)
    first = Rollout.of(whole.prompts, [r[:1] for r in whole.responses], writer="student")
    rest = Rollout.of(
        [p + r[:1] for p, r in zip(whole.prompts[1:], whole.responses[1:], strict=True)],
        [r[1:] for r in whole.responses[1:]],
        writer="student",
    )
    parts = [DistiLLM().terms(r, student, teacher).losses["student"] for r in (whole, first, rest)]
    torch.testing.assert_close(parts[0], parts[1] + parts[2], rtol=1e-9, atol=0)
    assert parts[1] > 0.05


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_student_never_repeats_its_own_text(share: float) -> None:
    """No cross-entropy on student text, fresh or out of the buffer, whatever the share: it would collapse."""
    student, teacher = pair("gpt2")
    own, data = written("student", 1), written("data", 1)
    with_share, without = DistiLLM(cross_entropy=share), DistiLLM(cross_entropy=0.0)
    losses = [m.terms(own, student, teacher).losses["student"] for m in (with_share, without)]
    assert torch.equal(*losses)
    both = [m.terms(data, student, teacher) for m in (with_share, without)]
    mixed = (1 - share) * both[1].losses["student"] + share * both[1].metrics["cross_entropy"]
    torch.testing.assert_close(both[0].losses["student"], mixed, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("skewed", "limit"), [("skew_forward_kl", "forward_kl"), ("skew_reverse_kl", "reverse_kl")], ids=str
)
def test_without_skew_it_is_the_kl(skewed: str, limit: str) -> None:
    student, teacher = pair("gpt2")
    rollout = written("student", 2)
    wanted = gradients(OnPolicyKD(divergence=limit).terms(rollout, student, teacher).losses["student"], student)
    distances = []
    for alpha in (1e-3, 1e-5, 1e-7):
        loss = DistiLLM(divergence=f"{skewed}({alpha})").terms(rollout, student, teacher).losses["student"]
        found = gradients(loss, student)
        distances.append(sum((a - b).norm() for a, b in zip(found, wanted, strict=True)).item())
    scale = sum(g.norm() for g in wanted).item()
    assert distances[0] / scale < 0.05
    assert distances[2] < distances[1] < distances[0]
    assert distances[2] / scale < 1e-5


def test_on_data_it_is_supervised_kd_with_a_skewed_divergence() -> None:
    student, teacher = pair("gpt2")
    first = DistiLLM(divergence="skew_forward_kl(0.1)").terms(ragged(), student, teacher).losses["student"]
    second = SupervisedKD(divergence="skew_forward_kl(0.1)").terms(ragged(), student, teacher).losses["student"]
    assert torch.equal(first, second)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_plain_text_has_a_term_of_its_own(reduction: str) -> None:
    student, teacher = pair("gpt2")
    method = DistiLLM(text_rows=2, text_weight=0.5, reduction=reduction)
    text = Rollout.of([[5], [6]], [[7, 8, 9, 10], [11, 12, 13, 14]], writer="text")
    responses = written("data", 1)
    both = method.terms(joined([responses, text]).select([3, 0, 1, 4, 2]), student, teacher)
    assert method.units(joined([responses, text])) == {"student": 12 if reduction == "token" else 3, "text": 8}
    cross_entropy = sum(
        -own_logits(student.model, p, r).log_softmax(-1)[range(4), list(r)].sum()
        for p, r in zip(text.prompts, text.responses, strict=True)
    )
    torch.testing.assert_close(both.losses["text"], 0.5 * cross_entropy, rtol=1e-9, atol=0)
    alone = method.terms(responses, student, teacher)
    torch.testing.assert_close(both.losses["student"], alone.losses["student"], rtol=1e-9, atol=0)
    assert "text" not in alone.losses
    only = method.terms(text, student, teacher)
    assert set(only.losses) == {"text"}
    assert both.counts["divergence"] == 12
    assert both.counts["text_cross_entropy"] == 8


# DistiLLM-2


def cald(student, teacher, rollout: Rollout, alpha, beta: float, held: bool) -> torch.Tensor:
    """The definition: per-sequence token means, SKL on the teacher's text and SRKL on the student's."""
    total = torch.zeros((), dtype=torch.float64)
    alphas = [alpha] * len(rollout) if isinstance(alpha, float) else alpha
    for writer, a, (q, p) in zip(rollout.writers, alphas, distributions(student, teacher, rollout), strict=True):
        if writer == "teacher":
            total = total + (2 - beta) * kl(p, a * p + (1 - a) * q).mean()
        else:
            total = total + beta * kl(q, (1 - a) * p + a * (q.detach() if held else q)).mean()
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("beta", [1.0, 1.5])
def test_cald_is_the_definition(kind: str, held: bool, beta: float) -> None:
    student, teacher = pair(kind)
    both = joined([written("teacher", 1), written("student", 2)]).select([0, 3, 1, 4, 2, 5])
    method = DistiLLM2(alpha=0.2, beta=beta, detach_mixture=held)
    found = method.terms(both, student, teacher).losses["student"]
    wanted = cald(student, teacher, both, 0.2, beta, held)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)
    assert_close(gradients(found, student), gradients(wanted, student), 1e-7)
    assert method.units(both) == {"student": 6}


def test_a_held_mixture_changes_the_gradient_not_the_value() -> None:
    student, teacher = pair("gpt2")
    held, through = (
        DistiLLM2(detach_mixture=d).terms(written("student", 2), student, teacher).losses["student"]
        for d in (True, False)
    )
    torch.testing.assert_close(held, through, rtol=1e-12, atol=0)
    distance = sum((a - b).norm() for a, b in zip(gradients(held, student), gradients(through, student), strict=True))
    assert distance > 0.01


def context(student, teacher, progress: float = 0.0) -> Context:
    return Context(student, teacher, None, {}, None, [], 64, progress)


def test_the_weight_curriculum_rises_over_the_first_half() -> None:
    student, teacher = pair("gpt2")
    both = joined([written("teacher", 1), written("student", 2)])
    method = DistiLLM2(beta_curriculum=True)
    for progress, beta in ((0.0, 1.0), (0.25, 1.25), (0.5, 1.5), (0.9, 1.5)):
        prepared = method.prepare(both, context(student, teacher, progress))
        found = method.terms(prepared, student, teacher).losses["student"]
        torch.testing.assert_close(found, cald(student, teacher, both, 0.1, beta, True), rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_skew_curriculum_is_the_formula(kind: str) -> None:
    student, teacher = pair(kind)
    both = joined([written("teacher", 1), written("student", 2)]).select([0, 3, 1, 4, 2, 5])
    gaps: dict[str, list[float]] = {"teacher": [], "student": []}
    pairs = distributions(student, teacher, both)
    for writer, response, (q, p) in zip(both.writers, both.responses, pairs, strict=True):
        means = [d[range(len(response)), list(response)].log().mean().exp().item() for d in (q, p)]
        gaps[writer].append(means[1] - means[0] if writer == "teacher" else means[0] - means[1])
    alphas = []
    for writer in both.writers:
        gap, mean = gaps[writer][sum(w == writer for w in both.writers[: len(alphas)])], math.fsum(gaps[writer]) / 3
        alphas.append(min(0.9, max(0.01, 1 - (1 - 0.9) * mean / (gap + 1e-5))))
    method = DistiLLM2(alpha=0.9, alpha_curriculum=True)
    prepared = method.prepare(both, context(student, teacher))
    assert [row[0] for row in prepared.values["alpha"]] == pytest.approx(alphas, rel=1e-6)
    assert kind == "bart" or len(set(alphas)) > 1  # on BART's text all are as far apart as can be
    found = method.terms(prepared, student, teacher).losses["student"]
    torch.testing.assert_close(found, cald(student, teacher, both, alphas, 1.0, True), rtol=1e-6, atol=0)


def test_skews_by_hand() -> None:
    """Gaps 0.6 and 0.2, mean 0.4: 1 − 0.9 · 0.4 / 0.6 = 0.4 → 0.1, and 1 − 0.9 · 0.4 / 0.2 < 0 → 0.01."""
    writer, reader = [[math.log(0.8)] * 2, [math.log(0.5)]], [[math.log(0.2)] * 2, [math.log(0.3)]]
    assert skew_weights(writer, reader, 0.1) == pytest.approx([0.1, 0.01])
    # Gaps 0.40 and 0.38, mean 0.39, alpha 0.5: 1 − 0.5 · 0.39 / 0.40 = 0.5125 → 0.5, and 1 − 0.5 · 0.39 / 0.38 = 0.4868
    writer, reader = [[math.log(0.8)], [math.log(0.58)]], [[math.log(0.4)], [math.log(0.2)]]
    assert skew_weights(writer, reader, 0.5) == pytest.approx([0.5, 1 - 0.5 * 0.39 / 0.38001], rel=1e-9)


def test_both_texts_need_no_gradient_through_sampling_where_models_agree() -> None:
    """At the optimum, student = teacher, every sequence's gradient is zero, held mixture or not."""
    student, teacher = TabularModel(4, 3, seed=1, stop=3), TabularModel(4, 3, seed=1, stop=3).frozen()
    for writer in ("teacher", "student"):
        for sequence in student.sequences():
            loss = (
                DistiLLM2().terms(Rollout.of([PROMPT], [sequence], writer=writer), student, teacher).losses["student"]
            )
            (gradient,) = torch.autograd.grad(loss, student.table)
            assert abs(loss.item()) < 1e-12
            assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("method", [DistiLLM(), DistiLLM2(), DistiLLM2(detach_mixture=False)])
def test_no_gradient_goes_into_the_teacher(method) -> None:
    student, teacher = pair("gpt2")
    teacher.model.model.requires_grad_(True)  # even if someone thaws it
    both = joined([written("teacher", 1), written("student", 2)])
    method.terms(both, student, teacher).losses["student"].backward()
    assert all(p.grad is None for p in teacher.model.model.parameters())


def test_a_weight_that_would_pass_two_is_refused() -> None:
    with pytest.raises(ValueError, match=r"give at most 1.5 \(got 1.7\)"):
        DistiLLM2(beta=1.7, beta_curriculum=True)
