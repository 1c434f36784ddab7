"""f-distill against exact enumeration: every response of a tabular student and teacher, with its probability."""

import math

import pytest
import torch
from tests.definitions import divergence, kl
from tests.tiny_models import STOP, own_logits, pair
from tests.toy import PROMPT, TabularModel

from tutelage.config import Decoding
from tutelage.methods import FDistill, OnPolicyKD, SupervisedKD
from tutelage.rollouts.rollout import Rollout, joined
from tutelage.rollouts.samplers import Sources

TOYS = {"three tokens": (3, 3, None), "end of sequence": (4, 3, 3)}


@pytest.fixture(params=TOYS, ids=str)
def models(request) -> tuple[TabularModel, TabularModel]:
    vocabulary, length, stop = TOYS[request.param]
    student = TabularModel(vocabulary, length, seed=1, stop=stop)
    return student, TabularModel(vocabulary, length, seed=2, stop=stop).frozen()


def expected(method: FDistill, student: TabularModel, teacher: TabularModel) -> tuple[float, torch.Tensor]:
    """Expected loss and gradient over the teacher's and the student's text; no gradient through the probabilities."""
    total = torch.zeros((), dtype=torch.float64)
    for writer, model in (("teacher", teacher), ("student", student)):
        if (writer == "student" and method.divergence == "kl") or (
            writer == "teacher" and method.divergence in ("rkl", "engine")
        ):
            continue
        for sequence in model.sequences():
            rollout = Rollout.of([PROMPT], [sequence], writer=writer)
            terms = method.terms(rollout, student, teacher)
            total = total + model.logp(sequence).exp().detach() * terms.losses["student"]
    (gradient,) = torch.autograd.grad(total, student.table)
    return total.item(), gradient


def value(method: FDistill, student: TabularModel, teacher: TabularModel) -> float:
    return expected(method, student, teacher)[0]


def sequence_divergence(name: str, student: TabularModel, teacher: TabularModel, weight: float = 0.5) -> torch.Tensor:
    """The divergence between the two distributions over whole responses; differentiable."""
    q = torch.stack([student.logp(s) for s in student.sequences()]).exp()
    p = torch.stack([teacher.logp(s) for s in student.sequences()]).exp()
    assert q.sum().item() == pytest.approx(1)
    if name == "js":
        m = weight * p + (1 - weight) * q
        return weight * kl(p, m) + (1 - weight) * kl(q, m)
    if name == "engine":
        return -(q * p.log()).sum()
    return {"kl": kl(p, q), "rkl": kl(q, p), "tvd": (p - q).abs().sum() / 2}[name]


def truth(name: str, models, weight: float = 0.5) -> tuple[float, torch.Tensor]:
    exact = sequence_divergence(name, *models, weight)
    (gradient,) = torch.autograd.grad(exact, models[0].table)
    return exact.item(), gradient


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


def test_kl_is_the_kl_of_whole_sequences(models) -> None:
    found, gradient = expected(FDistill(divergence="kl"), *models)
    wanted, slope = truth("kl", models)
    assert found == pytest.approx(wanted, rel=1e-10)
    assert error(gradient, slope) < 1e-10


@pytest.mark.parametrize("name", ["rkl", "engine"])
def test_rkl_and_engine_have_the_sequence_value_and_through_sampling_its_gradient(models, name) -> None:
    wanted, slope = truth(name, models)
    assert value(FDistill(divergence=name), *models) == pytest.approx(wanted, rel=1e-10)
    assert error(expected(FDistill(divergence=name, through_sampling=True), *models)[1], slope) < 1e-10
    stopped = expected(FDistill(divergence=name), *models)[1]
    assert error(stopped, slope) > 0.05


@pytest.mark.parametrize("weight", [0.5, 0.15, 0.75])
def test_exact_js_is_the_js_of_whole_sequences(models, weight) -> None:
    method = FDistill(divergence="js", exact=True, mixture=weight, through_sampling=True)
    wanted, slope = truth("js", models, weight)
    assert value(method, *models) / 2 == pytest.approx(wanted, rel=1e-10)
    assert error(expected(method, *models)[1] / 2, slope) < 1e-10


def test_what_the_stopped_gradient_leaves_out(models) -> None:
    """Exact js without through_sampling has the right value, and misses the score function of the prefix only."""
    student, teacher = models
    _, slope = truth("js", models)
    stopped = expected(FDistill(divergence="js", exact=True), *models)[1] / 2
    left_out = torch.zeros((), dtype=torch.float64)
    for sequence in student.sequences():
        q, p = student.distributions(sequence).detach(), teacher.distributions(sequence)
        steps_q, steps_p = student.step_logps(sequence), teacher.step_logps(sequence)
        odds = torch.cat([torch.zeros(1, dtype=torch.float64), (steps_p - steps_q).detach().cumsum(0)[:-1]])
        w = odds.sigmoid()[:, None]
        steps = kl(q.exp(), w * p.exp() + (1 - w) * q.exp())
        before = torch.cat([torch.zeros(1, dtype=torch.float64), steps_q.cumsum(0)[:-1]])  # log q(y_<t)
        left_out = left_out + student.logp(sequence).exp().detach() * (before * steps).sum() / 2
    (missing,) = torch.autograd.grad(left_out, student.table)
    assert error(stopped + missing, slope) < 1e-10
    assert error(stopped, slope) > 0.05


def test_the_token_average_is_not_exact() -> None:
    """By how much, on the toy of three tokens: the value and the direction of the gradient."""
    student, teacher = TabularModel(3, 3, seed=1), TabularModel(3, 3, seed=2).frozen()
    wanted, slope = truth("js", (student, teacher))
    found = value(FDistill(divergence="js"), student, teacher) / 2
    gradient = expected(FDistill(divergence="js", through_sampling=True), student, teacher)[1]
    assert (wanted, found) == (pytest.approx(0.2045, abs=1e-4), pytest.approx(0.2312, abs=1e-4))
    assert error(gradient / 2, slope) == pytest.approx(0.337, abs=1e-3)


def test_sequence_tvd_is_below_the_sum_over_steps(models) -> None:
    wanted, _ = truth("tvd", models)
    bound = value(FDistill(divergence="tvd"), *models) / 2
    assert wanted < bound < 3
    student, teacher = models
    by_hand = torch.zeros((), dtype=torch.float64)
    for sequence in student.sequences():
        steps = divergence(
            "total_variation", student.distributions(sequence).exp(), teacher.distributions(sequence).exp()
        )
        by_hand = by_hand + (student.logp(sequence).exp() + teacher.logp(sequence).exp()) * steps.sum() / 2
    assert bound == pytest.approx(by_hand.item(), rel=1e-10)
    (slope,) = torch.autograd.grad(by_hand, student.table)
    method = FDistill(divergence="tvd", through_sampling=True)
    assert error(expected(method, *models)[1] / 2, slope) < 1e-10


def test_engine_is_rkl_with_the_entropy_of_the_student_removed(models) -> None:
    student, teacher = models
    for sequence in list(student.sequences())[::5]:
        rollout = Rollout.of([PROMPT], [sequence], writer="student")
        rkl, engine = (
            FDistill(divergence=d).terms(rollout, student, teacher).losses["student"] for d in ("rkl", "engine")
        )
        logq = student.distributions(sequence)
        entropy = -(logq.exp() * logq).sum()
        torch.testing.assert_close(engine, rkl + entropy, rtol=1e-12, atol=1e-12)
        ours, theirs = (torch.autograd.grad(x, student.table)[0] for x in (engine, rkl + entropy))
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def written(writer: str, seed: int) -> Rollout:
    generator = torch.Generator().manual_seed(seed)
    lengths = [1, 4, 7, 3]
    responses = [(*torch.randint(2, 50, (n - 1,), generator=generator).tolist(), STOP) for n in lengths]
    return Rollout.of([[3, 4, 5], [6], [7, 8], [9, 10, 11, 12]], responses, writer=writer)


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_kl_is_supervised_kd_on_teacher_text_and_rkl_is_on_policy_reverse_kl(kind: str) -> None:
    student, teacher = pair(kind)
    for ours, theirs, writer in (
        (FDistill(divergence="kl"), SupervisedKD(), "teacher"),
        (FDistill(divergence="rkl"), OnPolicyKD(divergence="reverse_kl"), "student"),
    ):
        for reduction in ("token", "sequence"):
            rollout = written(writer, 0)
            first = type(ours)(divergence=ours.divergence, reduction=reduction)
            second = type(theirs)(divergence=theirs.divergence, reduction=reduction)
            assert first.units(rollout) == second.units(rollout)
            losses = [m.terms(rollout, student, teacher).losses["student"] for m in (first, second)]
            gradients = [torch.autograd.grad(loss, list(student.model.parameters())) for loss in losses]
            assert torch.equal(*losses)
            assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_js_on_the_same_text_twice_is_jsd_one_half() -> None:
    """Its halves are taken on different text; where the text is the same, they make up the token's JSD."""
    student, teacher = pair("gpt2")
    twice = joined([written("teacher", 0), written("student", 0)])
    ours = FDistill(divergence="js").terms(twice, student, teacher).losses["student"]
    jsd = SupervisedKD(divergence="jsd(0.5)").terms(written("teacher", 0), student, teacher).losses["student"]
    torch.testing.assert_close(ours, 2 * jsd, rtol=1e-12, atol=0)
    skewed = FDistill(divergence="js", mixture=0.15).terms(twice, student, teacher).losses["student"]
    jsd = SupervisedKD(divergence="jsd(0.15)").terms(written("teacher", 0), student, teacher).losses["student"]
    torch.testing.assert_close(skewed, 2 * jsd, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
@pytest.mark.parametrize(
    ("method", "names"), [("tvd", ("total_variation",) * 2), ("js", ("skew_forward_kl(0.5)", "skew_reverse_kl(0.5)"))]
)
def test_each_text_has_its_own_half_and_no_position_is_shifted(kind: str, method: str, names: tuple[str, str]) -> None:
    """Against transformers' own logits, one sequence at a time: the first token of a response counts as the others."""
    student, teacher = pair(kind)
    texts = {"teacher": written("teacher", 1), "student": written("student", 2)}
    both = joined([texts["student"], texts["teacher"]]).select([4, 0, 5, 1, 6, 2, 7, 3])
    wanted = 0.0
    for name, rollout in zip(names, texts.values(), strict=True):
        for prompt, response in zip(rollout.prompts, rollout.responses, strict=True):
            q, p = (own_logits(m, prompt, response).softmax(-1) for m in (student.model, teacher.model.model))
            wanted = wanted + divergence(name, q, p).sum()
    found = FDistill(divergence=method).terms(both, student, teacher).losses["student"]
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("divergence", ["js", "tvd", "rkl"])
def test_micro_batches_and_padding_change_nothing(divergence: str) -> None:
    student, teacher = pair("gpt2")
    method = FDistill(divergence=divergence, exact=divergence == "js", through_sampling=True)
    both = joined([written("teacher", 1), written("student", 2)])
    results = []
    for tokens in (1, 30, 10_000):
        student.model.zero_grad(set_to_none=True)
        terms = [method.terms(part, student, teacher) for part in both.micro_batches(tokens)]
        sum(part.losses.get("student", 0) for part in terms).backward()
        results.append({n: p.grad.clone() for n, p in student.model.named_parameters()})
    for other in results[1:]:
        for name, gradient in results[0].items():
            torch.testing.assert_close(gradient, other[name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("options", [{"divergence": "js", "exact": True}, {"divergence": "tvd"}, {"divergence": "rkl"}])
def test_no_gradient_goes_into_the_teacher_and_equal_models_have_none(options) -> None:
    student, teacher = pair("gpt2")
    teacher.model.model.requires_grad_(True)  # even if someone thaws it
    both = joined([written("teacher", 1), written("student", 2)])
    FDistill(**options, through_sampling=True).terms(both, student, teacher).losses["student"].backward()
    assert all(p.grad is None for p in teacher.model.model.parameters())
    same = TabularModel(3, 3, seed=1)
    _, gradient = expected(FDistill(**options, through_sampling=True), same, TabularModel(3, 3, seed=1).frozen())
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "kl", "exact": True}, "about divergence 'js'"),
        ({"divergence": "tvd", "mixture": 0.3}, "about divergence 'js'"),
        ({"divergence": "js", "exact": True, "temperature": 2.0}, "temperature 1"),
        ({"divergence": "kl", "through_sampling": True}, "student's text"),
        ({"divergence": "rkl", "through_sampling": True, "reduction": "sequence"}, "reduction 'token'"),
        ({"divergence": "rkl", "through_sampling": True, "student_decoding": Decoding(top_p=0.9)}, "top_p 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        FDistill(**options)
    assert math.isfinite(FDistill().mixture)


@pytest.mark.parametrize("fresh", [False, True])
def test_the_teacher_writes_once_or_anew(fresh) -> None:
    made = {}
    sources = Sources(
        data=lambda: None,
        student=lambda decoding: made.setdefault("student", decoding),
        teacher=lambda decoding: made.setdefault("once", decoding),
        fresh_teacher=lambda decoding: made.setdefault("anew", decoding),
        seed=0,
        steps=1,
    )
    FDistill(divergence="js", fresh_teacher=fresh).sampler(sources)
    assert set(made) == {"student", "anew" if fresh else "once"}


@pytest.mark.parametrize("name", ["rkl", "engine"])
def test_without_the_teachers_text_there_is_nothing_to_write_anew(name) -> None:
    with pytest.raises(ValueError, match="fresh_teacher is about the teacher's text"):
        FDistill(divergence=name, fresh_teacher=True)
