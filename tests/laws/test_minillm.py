"""MiniLLM's estimators against the gradient of the reverse KL of whole sequences, by enumeration of every response.

The gradients come out of the method's own `prepare` and `terms`, run on each response alone and weighed by its
probability under the policy that writes.
"""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from tests.toy import PROMPT, TabularModel
from torch import Tensor

from tutelage.estimators import mixture_logps
from tutelage.methods import GKD, MiniLLM, MiniLLMSingleStep
from tutelage.methods.objective import Context
from tutelage.rollouts.rollout import Rollout

TOYS = {"three": {"vocabulary": 3, "length": 3}, "ends": {"vocabulary": 4, "length": 3, "stop": 0}}
toys = pytest.mark.parametrize("toy", TOYS)

EXACTLY = MiniLLM(teacher_share=0, length_normalisation="none", clip=None)
"""Single + Long on the student's own text, as derived; nothing approximated."""
MIXED = replace(EXACTLY, teacher_share=0.2)
OFFICIAL = MiniLLM(
    weigh_single_step=False,
    include_current=True,
    discount=0.95,
    length_normalisation="remaining",
    whiten=True,
    estimates="rollout",
    behaviour="recomputed",
    clip_rule="pessimistic",
    reward_scale=2.0,
    reward_clip=100.0,
    average_over="tokens",
)
"""What recipes/minillm-official-code.yaml sets."""


def models(toy: str, seed: int = 0) -> tuple[TabularModel, TabularModel]:
    return TabularModel(**TOYS[toy], seed=seed), TabularModel(**TOYS[toy], seed=seed + 100).frozen()


def context(student, teacher) -> Context:
    return Context(student, teacher, None, {}, None, [], 1000)  # pyright: ignore[reportArgumentType]


def mixture(student: TabularModel, teacher: TabularModel, share: float, response: tuple[int, ...]) -> list[float]:
    logps = [model.step_logps(response).tolist() for model in (student, teacher)]
    return mixture_logps([logps[0]], [logps[1]], share)[0]


def gradient(method: MiniLLM, rollout: Rollout, student, teacher) -> Tensor:
    """Of the prepared rollout's loss, averaged as the method says."""
    prepared = method.prepare(rollout, context(student, teacher))
    loss = method.terms(prepared, student, teacher).losses["student"] / method.units(prepared)["student"]
    return torch.autograd.grad(loss, student.table)[0]


def expected(
    method: MiniLLM, student: TabularModel, teacher: TabularModel, writer: TabularModel | None = None
) -> Tensor:
    """The expectation over every response; `writer` is the student that the mixture was made of."""
    total = torch.zeros_like(student.table)
    for response in student.sequences():
        logps = mixture(writer or student, teacher, method.teacher_share, response)
        rollout = Rollout.of([PROMPT], [response], writer="mixed", logps=[logps])
        total += math.exp(sum(logps)) * gradient(method, rollout, student, teacher)
    return total


def exact(student: TabularModel, teacher: TabularModel) -> Tensor:
    """Autograd through the enumerated Σ q(y) log(q(y) / p(y))."""
    loss = torch.stack(
        [student.logp(y).exp() * (student.logp(y) - teacher.logp(y).detach()) for y in student.sequences()]
    ).sum()
    return torch.autograd.grad(loss, student.table)[0]


def error(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def cosine(found: Tensor, wanted: Tensor) -> float:
    return float(torch.cosine_similarity(found.flatten(), wanted.flatten(), dim=0))


def test_the_reference_is_the_slope_of_the_reverse_kl():
    """Autograd through the enumeration against finite differences of it."""
    student, teacher = models("ends")
    wanted = exact(student, teacher)

    def divergence() -> float:
        with torch.no_grad():
            return float(sum(student.logp(y).exp() * (student.logp(y) - teacher.logp(y)) for y in student.sequences()))

    for place in [(0, 0), (1, 2), (3, 5)]:
        values = []
        for shift in (1e-5, -2e-5):
            student.table.data[place] += shift
            values.append(divergence())
        student.table.data[place] += 1e-5
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(wanted[place]), rel=1e-5, abs=1e-9)


@toys
@pytest.mark.parametrize("estimates", ["current", "rollout"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"include_current": True, "single_step": False},
        {"include_current": True, "single_step": False, "baseline": "one"},
        {"baseline": "one"},
        {"importance": "full"},
        {"behaviour": "recomputed"},
        {"clip": 0.2},
        {"clip": 0.2, "clip_rule": "pessimistic"},
    ],
    ids=str,
)
def test_exact_on_the_students_own_text(toy, estimates, changes):
    """Single + Long, Σ R ∇log q and Σ (R − 1) ∇log q are all the gradient of the reverse KL."""
    student, teacher = models(toy)
    method = replace(EXACTLY, estimates=estimates, **changes)
    assert error(expected(method, student, teacher), exact(student, teacher)) < 1e-10


@toys
@pytest.mark.parametrize("share", [0.2, 0.9])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"include_current": True, "single_step": False},
        {"baseline": "one"},
        {"estimates": "rollout"},
        {"estimates": "rollout", "behaviour": "recomputed"},
    ],
    ids=str,
)
def test_full_importance_weights_are_exact_on_mixed_text(toy, share, changes):
    student, teacher = models(toy)
    method = replace(MIXED, teacher_share=share, importance="full", **changes)
    assert error(expected(method, student, teacher), exact(student, teacher)) < 1e-10


@toys
def test_full_importance_weights_are_exact_on_text_of_an_older_student(toy):
    """Recorded log p̃ and estimates at the current weights: later inner epochs are as exact as the first."""
    student, teacher = models(toy)
    older = TabularModel(**TOYS[toy], seed=7)
    method = replace(MIXED, importance="full")
    assert error(expected(method, student, teacher, older), exact(student, teacher)) < 1e-10
    stale = replace(method, behaviour="recomputed")  # p̃ of the current student is not what wrote it
    assert error(expected(stale, student, teacher, older), exact(student, teacher)) > 0.05


INEXACT = [
    # What is approximated, and the largest error and the cosine with the exact gradient: fixed length, with an end.
    ({"importance": "none"}, (0.136, 0.9924), (0.252, 0.9966)),
    ({"importance": "token"}, (0.092, 0.9925), (0.24, 0.9968)),
    ({"importance": "prefix"}, (0.057, 0.9978), (0.12, 0.9964)),
    ({"teacher_share": 0, "length_normalisation": "paper"}, (0.061, 0.9988), (0.158, 0.9888)),
    ({"teacher_share": 0, "length_normalisation": "future"}, (0.081, 0.9954), (0.232, 0.9833)),
    ({"teacher_share": 0, "length_normalisation": "remaining"}, (0.091, 0.9932), (0.246, 0.9804)),
    ({"teacher_share": 0, "discount": 0.95}, (0.012, 0.9999), (0.02, 0.9999)),
    ({"teacher_share": 0, "discount": 0}, (0.123, 0.9862), (0.331, 0.9627)),
    ({"teacher_share": 0, "single_step": False}, (0.931, 0.2022), (0.912, 0.7551)),
    ({"teacher_share": 0, "include_current": True}, (0.931, 0.9966), (0.912, 0.9928)),
    ({"importance": "token", "length_normalisation": "paper", "clip": 0.2}, (0.125, 0.9914), (0.298, 0.99)),
]
LONGER = {"fixed": {"vocabulary": 2, "length": 5}, "ends": {"vocabulary": 3, "length": 5, "stop": 0}}


@pytest.mark.parametrize(("changes", "fixed", "ends"), INEXACT, ids=str)
def test_inexact_by_the_measured_amount(changes, fixed, ends):
    for sizes, wanted in ((LONGER["fixed"], fixed), (LONGER["ends"], ends)):
        student, teacher = TabularModel(**sizes, seed=0), TabularModel(**sizes, seed=100).frozen()
        found, true = expected(replace(MIXED, **changes), student, teacher), exact(student, teacher)
        assert error(found, true) == pytest.approx(wanted[0], abs=6e-4)
        assert cosine(found, true) == pytest.approx(wanted[1], abs=6e-5)


def test_single_step_alone_is_inexact_and_is_gkd_with_reverse_kl():
    """Without what follows: MiniLLM with γ = 0, minillm-single-step, and GKD(1, reverse KL) are one gradient."""
    student, teacher = models("ends")
    total = torch.zeros_like(student.table)
    for response in student.sequences():
        rollout = Rollout.of([PROMPT], [response], writer="student")
        single = MiniLLMSingleStep().terms(rollout, student, teacher).losses["student"]
        gkd = GKD(student_fraction=1, divergence="reverse_kl").terms(rollout, student, teacher).losses["student"]
        assert torch.equal(single, gkd)
        total += student.logp(response).exp().item() * torch.autograd.grad(single, student.table)[0]
    short_sighted = expected(replace(EXACTLY, discount=0), student, teacher)
    assert error(short_sighted, total) < 1e-10
    assert error(total, exact(student, teacher)) == pytest.approx(0.319, abs=6e-4)
    assert cosine(total, exact(student, teacher)) == pytest.approx(0.9461, abs=6e-5)


def official_gradient(method: MiniLLM, student: TabularModel, teacher: TabularModel, size: int) -> Tensor:
    """Of a collection that has each response as often as it is expected among about `size` responses."""
    responses, logps = [], []
    for response in student.sequences():
        mixed = mixture(student, teacher, method.teacher_share, response)
        count = round(size * math.exp(sum(mixed)))
        responses += [response] * count
        logps += [mixed] * count
    rollout = Rollout.of([PROMPT] * len(responses), responses, writer="mixed", logps=logps)
    return gradient(method, rollout, student, teacher)


def test_the_official_estimator_points_elsewhere_by_the_measured_angle():
    for sizes, angle in ((LONGER["fixed"], 0.983), (LONGER["ends"], 0.980)):
        student, teacher = TabularModel(**sizes, seed=0), TabularModel(**sizes, seed=100).frozen()
        true = exact(student, teacher)
        assert cosine(official_gradient(OFFICIAL, student, teacher, 4000), true) == pytest.approx(angle, abs=6e-4)
        unbiased = replace(MIXED, importance="full", estimates="rollout")
        assert cosine(official_gradient(unbiased, student, teacher, 4000), true) > 0.99999  # the counts are fine enough


@pytest.mark.parametrize("share", [0, 0.2])
def test_leave_one_out_is_exact_and_varies_less(share):
    """Two samples a prompt, every pair of them: the expectation is the same as without a baseline; the variance is
    smaller where all of a prompt's returns are alike, here because the student avoids what the teacher would say."""
    sizes = {"vocabulary": 3, "length": 2, "stop": 0}
    student, teacher = TabularModel(**sizes, seed=0), TabularModel(**sizes, seed=100).frozen()
    student.table.data[2] -= 4
    teacher.table.data[2] += 4
    method = replace(EXACTLY, teacher_share=share, importance="full", estimates="rollout", samples=2)
    spread = {}
    for baseline in ("none", "leave_one_out"):
        mean, square = torch.zeros_like(student.table), 0.0
        for pair_of in product(list(student.sequences()), repeat=2):
            logps = [mixture(student, teacher, share, response) for response in pair_of]
            rollout = Rollout.of([PROMPT] * 2, pair_of, writer="mixed", items=[0, 0], logps=logps)
            found = gradient(
                replace(method, baseline=baseline, include_current=True, single_step=False), rollout, student, teacher
            )
            probability = math.exp(sum(map(sum, logps)))
            mean += probability * found
            square += probability * float(found.square().sum())
        assert error(mean, exact(student, teacher)) < 1e-10
        spread[baseline] = square - float(mean.square().sum())
    assert spread["leave_one_out"] < 0.8 * spread["none"]


@toys
@pytest.mark.parametrize("rule", ["sign_blind", "pessimistic"])
def test_nothing_is_clipped_at_the_first_inner_step(toy, rule):
    """The ratio is 1 before the first update, so that clipped and unclipped agree; afterwards they need not."""
    student, teacher = models(toy)
    clipped = replace(EXACTLY, importance="none", estimates="rollout", clip=0.2, clip_rule=rule)
    free = replace(clipped, clip=None)
    responses = list(student.sequences())
    logps = [student.step_logps(response).tolist() for response in responses]
    rollout = Rollout.of([PROMPT] * len(responses), responses, logps=logps)
    prepared = clipped.prepare(rollout, context(student, teacher))

    def slope(method: MiniLLM) -> tuple[Tensor, float]:
        terms = method.terms(prepared, student, teacher)
        return torch.autograd.grad(terms.losses["student"], student.table)[0], terms.metrics["clipped"].item()

    (first, clipped_positions), (other, _) = slope(clipped), slope(free)
    assert torch.equal(first, other)
    assert clipped_positions == 0
    with torch.no_grad():
        student.table.add_(1.5 * torch.randn_like(student.table))
    (first, clipped_positions), (other, _) = slope(clipped), slope(free)
    assert error(first, other) > 0.05
    assert clipped_positions > 0


@pytest.mark.parametrize("estimates", ["current", "rollout"])
@pytest.mark.parametrize("rule", ["sign_blind", "pessimistic"])
def test_the_gradient_is_that_of_the_loss_where_values_are_fixed(estimates, rule):
    """Finite differences of the loss that is reported; with `current` they move the advantage too, and disagree."""
    student, teacher = models("ends")
    method = replace(MIXED, importance="token", clip=0.2, clip_rule=rule, estimates=estimates)
    responses = list(student.sequences())
    logps = [mixture(student, teacher, 0.2, response) for response in responses]
    prepared = method.prepare(Rollout.of([PROMPT] * len(responses), responses, logps=logps), context(student, teacher))
    with torch.no_grad():
        student.table.add_(0.1 * torch.randn_like(student.table))

    def loss() -> Tensor:
        return method.terms(prepared, student, teacher).losses["student"]

    (slope,) = torch.autograd.grad(loss(), student.table)
    numeric = torch.zeros_like(slope)
    for place in [(row, column) for row in range(slope.shape[0]) for column in range(slope.shape[1])]:
        values = []
        for shift in (1e-6, -2e-6):
            student.table.data[place] += shift
            values.append(loss().item())
        student.table.data[place] += 1e-6
        numeric[place] = (values[0] - values[1]) / 2e-6
    if estimates == "rollout":
        assert error(slope, numeric) < 1e-6
    else:
        assert error(slope, numeric) > 0.05  # advantages are not differentiated through


def test_no_gradient_reaches_the_teacher_or_goes_through_the_values():
    student, teacher = models("three")
    teacher.model.requires_grad_(True)
    responses = list(student.sequences())
    logps = [mixture(student, teacher, 0.2, response) for response in responses]
    for estimates in ("current", "rollout"):
        method = MiniLLM(estimates=estimates)
        prepared = method.prepare(
            Rollout.of([PROMPT] * len(responses), responses, logps=logps), context(student, teacher)
        )
        assert all(isinstance(v, float) for rows in prepared.values.values() for row in rows for v in row)
        method.terms(prepared, student, teacher).losses["student"].backward()
        assert teacher.table.grad is None
        assert student.table.grad is not None
