"""Divergences against their float64 definitions, their bounds, their limits, and numbers worked out by hand."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.definitions import DIVERGENCES, divergence, kl
from torch import Tensor

from tutelage import config, divergences
from tutelage.divergences import named

each = pytest.mark.parametrize("text", DIVERGENCES)
NO_TOKEN = -math.inf


def tensor(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@st.composite
def logits_pairs(draw, impossible: bool = True) -> tuple[Tensor, Tensor]:
    """Student's and teacher's logits; some tokens nearly or (−∞) exactly impossible for either."""
    size = draw(st.integers(2, 50))
    span = draw(st.sampled_from([0.1, 2.0, 30.0]))
    numbers = arrays(np.float64, size, elements=st.floats(-span, span, allow_subnormal=False))
    pair = []
    for _ in range(2):
        values = draw(numbers)
        if impossible:
            absent = draw(arrays(np.bool_, size, elements=st.booleans()))
            absent[draw(st.integers(0, size - 1))] = False
            values = np.where(absent, NO_TOKEN, values)
        pair.append(torch.from_numpy(values))
    return pair[0], pair[1]


def gradient_of_definition(text: str, student_logits: Tensor, teacher: Tensor) -> Tensor:
    """∂D/∂student_logits by autograd; tokens the student cannot say are constants."""
    possible = student_logits.isfinite()
    variable = student_logits[possible].clone().requires_grad_()
    student = torch.zeros_like(student_logits).masked_scatter(possible, variable.softmax(-1))
    divergence(text, student, teacher).backward()
    gradient = torch.zeros_like(student_logits)
    gradient[possible] = variable.grad
    return gradient


def gradient_by_slope(text: str, student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """The formula that divergences.py promises."""
    slope = named(text).slope(student_logp, teacher_logp)
    return slope - student_logp.exp() * slope.sum(-1, keepdim=True)


def public(text: str, student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """The public function of that name."""
    name, _, rest = text.partition("(")
    parameter = [float(rest.rstrip(")"))] if rest else []
    return getattr(divergences, name)(student_logp, teacher_logp, *parameter)


@each
@given(pair=logits_pairs())
@example(pair=(tensor([0.0, NO_TOKEN]), tensor([NO_TOKEN, 0.0])))
@example(pair=(tensor([0.0, NO_TOKEN, 3.0]), tensor([0.0, NO_TOKEN, -3.0])))
@example(pair=(tensor([0.0, -700.0, -800.0]), tensor([-700.0, 0.0, -800.0])))
def test_value_is_the_definition(text: str, pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair
    expected = divergence(text, student.softmax(-1), teacher.softmax(-1))
    assume(not expected.isnan())
    for function in (named(text), lambda q, p: public(text, q, p)):
        value = function(student.log_softmax(-1), teacher.log_softmax(-1))
        # A probability of e^-800 is 0 in the definition but not in log-probabilities.
        if expected.isinf():
            assert value > 30 * (1 - 1e-9)
        else:
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)


@each
def test_value_where_one_side_is_exactly_impossible(text: str) -> None:
    student, teacher = tensor([0.5, 0.5, 0.0, 0.0]), tensor([0.0, 0.25, 0.75, 0.0])
    value = named(text)(student.log(), teacher.log())
    torch.testing.assert_close(value, divergence(text, student, teacher), rtol=1e-12, atol=0)
    assert value.isinf() == (text in ("forward_kl", "reverse_kl"))


@each
@given(pair=logits_pairs())
def test_gradient_is_that_of_the_definition(text: str, pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair
    expected = gradient_of_definition(text, student, teacher.softmax(-1))
    assume(expected.isfinite().all())
    assume(divergence(text, student.softmax(-1), teacher.softmax(-1)).isfinite())
    if text == "total_variation":  # no derivative where the two are equal
        gaps = (student.softmax(-1) - teacher.softmax(-1)).abs()
        assume(bool((gaps[student.isfinite()] > 1e-12).all()))
    found = gradient_by_slope(text, student.log_softmax(-1), teacher.log_softmax(-1))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@each
@given(pair=logits_pairs(impossible=False))
def test_slope_is_the_derivative_of_the_term(text: str, pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    assume(bool(((student.exp() - teacher.exp()).abs() > 1e-12).all()))
    student.requires_grad_()
    (expected,) = torch.autograd.grad(named(text).term(student, teacher).sum(), student)
    found = named(text).slope(student.detach(), teacher)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@each
@given(pair=logits_pairs())
def test_gradient_over_logits_sums_to_zero(text: str, pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    assume(named(text)(student, teacher).isfinite())
    assert gradient_by_slope(text, student, teacher).sum().abs() < 1e-10


@each
@given(pair=logits_pairs())
def test_identical_distributions_have_no_divergence_and_no_gradient(text: str, pair: tuple[Tensor, Tensor]) -> None:
    student = pair[0].log_softmax(-1)
    assert named(text)(student, student).abs() < 1e-13
    assert gradient_by_slope(text, student, student).abs().max() < 1e-13


@each
@given(pair=logits_pairs())
def test_different_distributions_have_a_positive_divergence(text: str, pair: tuple[Tensor, Tensor]) -> None:
    """Pinsker's inequality: KL ≥ 2 TV², for the mixtures with the share of the distance that they keep."""
    student, teacher = pair
    name, _, rest = text.partition("(")
    parameter = float(rest.rstrip(")") or "nan")
    share = {
        "forward_kl": 1.0,
        "reverse_kl": 1.0,
        "jsd": parameter * (1 - parameter),
        "total_variation": 0.5,
        "skew_forward_kl": (1 - parameter) ** 2,
        "skew_reverse_kl": (1 - parameter) ** 2,
    }[name]
    distance = (student.softmax(-1) - teacher.softmax(-1)).abs().sum() / 2
    value = named(text)(student.log_softmax(-1), teacher.log_softmax(-1))
    assert value >= 2 * share * distance**2 - 1e-13


@given(pair=logits_pairs(), beta=st.floats(0.01, 0.99))
def test_jsd_is_bounded_by_the_entropy_of_its_weight(pair: tuple[Tensor, Tensor], beta: float) -> None:
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert divergences.jsd(student, teacher, beta) <= bound + 1e-12


@given(pair=logits_pairs())
def test_total_variation_is_at_most_one(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    assert divergences.total_variation(student, teacher) <= 1 + 1e-12


@given(pair=logits_pairs(), alpha=st.floats(0.01, 0.99))
def test_skew_kls_are_bounded_by_minus_log_alpha(pair: tuple[Tensor, Tensor], alpha: float) -> None:
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    assert divergences.skew_forward_kl(student, teacher, alpha) <= -math.log(alpha) + 1e-12
    assert divergences.skew_reverse_kl(student, teacher, alpha) <= -math.log(alpha) + 1e-12


def test_disjoint_distributions_reach_the_bounds() -> None:
    student, teacher = tensor([NO_TOKEN, 0.0]), tensor([0.0, NO_TOKEN])
    assert divergences.jsd(student, teacher, 0.1).item() == pytest.approx(0.325083, abs=1e-6)
    assert divergences.total_variation(student, teacher).item() == 1
    assert divergences.skew_forward_kl(student, teacher, 0.1).item() == pytest.approx(math.log(10))
    assert divergences.skew_reverse_kl(student, teacher, 0.1).item() == pytest.approx(math.log(10))


@given(pair=logits_pairs(impossible=False))
def test_jsd_goes_over_into_the_kls(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair[0] / 10, pair[1] / 10  # KLs of at most a few nats, so that the limit is near
    q, p = student.softmax(-1), teacher.softmax(-1)
    assume((q - p).abs().sum() > 1e-2)
    small = 1e-7
    towards_forward = divergences.jsd(q.log(), p.log(), small) / small
    towards_reverse = divergences.jsd(q.log(), p.log(), 1 - small) / small
    torch.testing.assert_close(towards_forward, kl(p, q), rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(towards_reverse, kl(q, p), rtol=1e-3, atol=1e-7)


@given(pair=logits_pairs(impossible=False))
def test_skew_kls_go_over_into_the_kls(pair: tuple[Tensor, Tensor]) -> None:
    q, p = (pair[0] / 10).softmax(-1), (pair[1] / 10).softmax(-1)
    torch.testing.assert_close(divergences.skew_forward_kl(q.log(), p.log(), 1e-9), kl(p, q), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(divergences.skew_reverse_kl(q.log(), p.log(), 1e-9), kl(q, p), rtol=1e-5, atol=1e-9)


@given(pair=logits_pairs(), beta=st.floats(0.05, 0.95))
def test_swapping_the_models_mirrors_beta(pair: tuple[Tensor, Tensor], beta: float) -> None:
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    there = divergences.jsd(student, teacher, beta)
    torch.testing.assert_close(there, divergences.jsd(teacher, student, 1 - beta), rtol=1e-9, atol=1e-12)


# q = (0.5, 0.3, 0.2), p = (0.1, 0.3, 0.6): worked out with a pocket calculator from the formulas.
HAND = {
    "forward_kl": 0.1 * math.log(0.2) + 0.6 * math.log(3),
    "reverse_kl": 0.5 * math.log(5) - 0.2 * math.log(3),
    # β = 0.1: m = 0.1 p + 0.9 q = (0.46, 0.30, 0.24)
    "jsd(0.1)": 0.1 * (0.1 * math.log(10 / 46) + 0.6 * math.log(2.5))
    + 0.9 * (0.5 * math.log(50 / 46) + 0.2 * math.log(20 / 24)),
    "total_variation": 0.4,
    # m = 0.1 p + 0.9 q for the forward one, 0.9 p + 0.1 q = (0.14, 0.30, 0.56) for the reverse one
    "skew_forward_kl(0.1)": 0.1 * math.log(10 / 46) + 0.6 * math.log(60 / 24),
    "skew_reverse_kl(0.1)": 0.5 * math.log(50 / 14) + 0.2 * math.log(20 / 56),
}


@pytest.mark.parametrize("text", HAND)
def test_value_worked_out_by_hand(text: str) -> None:
    student, teacher = tensor([0.5, 0.3, 0.2]).log(), tensor([0.1, 0.3, 0.6]).log()
    assert named(text)(student, teacher).item() == pytest.approx(HAND[text], rel=1e-12)
    if text != "total_variation":  # the directions differ, so a swap of student and teacher would show
        assert named(text)(teacher, student).item() != pytest.approx(HAND[text], rel=1e-2)


def test_beta_weighs_the_teacher() -> None:
    student, teacher = tensor([0.5, 0.3, 0.2]).log(), tensor([0.1, 0.3, 0.6]).log()
    swapped = 0.9 * (0.1 * math.log(10 / 14) + 0.6 * math.log(60 / 56))
    swapped += 0.1 * (0.5 * math.log(50 / 14) + 0.2 * math.log(20 / 56))
    assert divergences.jsd(student, teacher, 0.9).item() == pytest.approx(swapped)
    assert divergences.jsd(student, teacher, 0.1).item() == pytest.approx(HAND["jsd(0.1)"])
    assert abs(swapped - HAND["jsd(0.1)"]) > 5e-3


def test_skew_kl_has_little_of_the_teacher_in_the_mixture() -> None:
    """methods.md §2: with the weights swapped the loss is bounded by log(1/0.9) and teaches nothing."""
    student, teacher = tensor([0.5, 0.5]), tensor([0.85, 0.15])
    right = 0.85 * math.log(0.85 / 0.535) + 0.15 * math.log(0.15 / 0.465)
    wrong = 0.85 * math.log(0.85 / 0.815) + 0.15 * math.log(0.15 / 0.185)
    assert right == pytest.approx(0.2238, abs=1e-4)
    assert wrong == pytest.approx(0.0043, abs=1e-4)
    assert divergences.skew_forward_kl(student.log(), teacher.log(), 0.1).item() == pytest.approx(right)
    assert divergences.skew_reverse_kl(teacher.log(), student.log(), 0.1).item() == pytest.approx(right)


@each
@given(pair=logits_pairs(), shift=st.floats(-100, 100))
def test_a_constant_on_the_logits_changes_nothing(text: str, pair: tuple[Tensor, Tensor], shift: float) -> None:
    student, teacher = pair
    value = named(text)(student.log_softmax(-1), teacher.log_softmax(-1))
    moved_student = named(text)((student + shift).log_softmax(-1), teacher.log_softmax(-1))
    moved_teacher = named(text)(student.log_softmax(-1), (teacher + shift).log_softmax(-1))
    torch.testing.assert_close(moved_student, value, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(moved_teacher, value, rtol=1e-9, atol=1e-11)


@each
def test_positions_do_not_mix(text: str) -> None:
    student, teacher = torch.randn(2, 3, 7).double().log_softmax(-1), torch.randn(2, 3, 7).double().log_softmax(-1)
    value = named(text)(student, teacher)
    assert value.shape == (2, 3)
    torch.testing.assert_close(value[1, 2], named(text)(student[1, 2], teacher[1, 2]), rtol=0, atol=0)


def test_the_table_of_recipes_names_every_public_function_and_its_parameter() -> None:
    functions = {
        name: function
        for name, function in vars(divergences).items()
        if inspect.isfunction(function)
        and function.__module__ == divergences.__name__
        and not name.startswith("_")
        and name not in ("named", "parametrised")
    }
    found = {}
    for name, function in functions.items():
        first, second, *rest = inspect.signature(function).parameters
        assert (first, second) == ("student_logp", "teacher_logp")
        found[name] = rest[0] if rest else None
        assert len(rest) <= 1
    assert found == config.DIVERGENCES


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("kl", "unknown divergence 'kl'"),
        ("jsd", "needs its parameter beta"),
        ("jsd(0)", "strictly between 0 and 1"),
        ("jsd(1)", "strictly between 0 and 1"),
        ("skew_forward_kl(-0.1)", "strictly between 0 and 1"),
        ("reverse_kl(0.5)", "takes no parameter"),
    ],
)
def test_wrong_names_and_parameters_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint.replace("(", r"\(")):
        named(text)
