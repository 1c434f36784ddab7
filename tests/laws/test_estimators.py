"""Returns, weights, baselines and KL estimators against their definitions and against enumeration."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage import estimators
from tutelage.estimators import (
    clipped_surrogate,
    importance_weights,
    kl_k1,
    kl_k2,
    kl_k3,
    leave_one_out,
    length_normalised,
    log_ratio_rewards,
    mixture_logps,
    returns,
    whitened,
)

numbers = st.floats(-5, 5)
ragged = st.lists(st.lists(numbers, max_size=6), min_size=1, max_size=5)


@given(ragged, st.sampled_from([0.0, 0.5, 0.95, 1.0]), st.booleans(), st.booleans())
def test_returns_are_their_double_sum(rewards, discount, include_current, reward_to_go):
    found = returns(rewards, discount=discount, include_current=include_current, reward_to_go=reward_to_go)
    for row, values in zip(rewards, found, strict=True):
        assert len(values) == len(row)
        for t, value in enumerate(values):
            start = t if reward_to_go else 0
            wanted = sum(discount ** (s - start) * row[s] for s in range(start, len(row)))
            assert value == pytest.approx(wanted - (0 if include_current else row[t]), abs=1e-9)


def test_discounting_is_by_distance_not_by_place():
    """TRL discounts by the absolute place: the last return would be γ² r_3 there."""
    assert returns([[0.0, 0.0, 1.0]], discount=0.5) == [[0.25, 0.5, 1.0]]


@pytest.mark.parametrize(
    ("divisor", "wanted"),
    [
        # T = 5; the numbers of summands in Σ_{t' > t} are 4, 3, 2, 1, 0
        ("paper", [1 / 3, 1 / 2, 1, 1, 1]),  # T − t − 1 = 3, 2, 1, 0, −1: held at 1
        ("future", [1 / 4, 1 / 3, 1 / 2, 1, 1]),
        ("remaining", [1 / 5, 1 / 4, 1 / 3, 1 / 2, 1]),
    ],
)
def test_length_normalisation_by_hand(divisor, wanted):
    assert length_normalised([[1.0] * 5, [], [1.0]], divisor) == [pytest.approx(wanted), [], [1.0]]


def test_the_last_token_has_no_future_whatever_divides_it():
    for divisor in ("paper", "future", "remaining"):
        for length in (1, 2, 3):
            row = length_normalised(returns([[2.0] * length], include_current=False), divisor)[0]
            assert row[-1] == 0.0
            assert all(math.isfinite(value) for value in row)


def test_a_constant_reward_is_its_own_mean():
    """Dividing by the number of summands gives the mean of the rewards: R_t by T − t + 1, R_{t+1} by T − t."""
    rewards = [[3.0] * 4, [3.0]]
    assert length_normalised(returns(rewards), "remaining") == rewards
    assert length_normalised(returns(rewards, include_current=False), "future") == [[3.0, 3.0, 3.0, 0.0], [0.0]]


def test_importance_weights_by_hand():
    student = [[math.log(x) for x in (0.5, 0.2, 0.9)], [math.log(0.1)]]
    behaviour = [[math.log(x) for x in (0.25, 0.4, 0.3)], [math.log(0.2)]]
    wanted = {
        "none": [[1, 1, 1], [1]],
        "token": [[2, 0.5, 3], [0.5]],
        "prefix": [[2, 1, 3], [0.5]],
        "sequence": [[3, 3, 3], [0.5]],
    }
    for kind, rows in wanted.items():
        found = importance_weights(student, behaviour, kind)
        assert [pytest.approx(row) for row in rows] == found


def test_the_mixture_is_of_probabilities():
    found = mixture_logps([[math.log(0.5), -1000.0]], [[math.log(0.1), -3.0]], 0.2)[0]
    assert found == pytest.approx([math.log(0.8 * 0.5 + 0.2 * 0.1), math.log(0.2) - 3])
    assert mixture_logps([[-1.0]], [[-math.inf]], 0) == [[-1.0]]
    assert mixture_logps([[-math.inf]], [[-2.0]], 1) == [[-2.0]]


def test_rewards_are_scaled_before_they_are_clipped():
    assert log_ratio_rewards([[-1.0, -1.0]], [[-3.0, -0.5]], scale=2.0, clip=3.0) == [[-3.0, 1.0]]


@given(ragged)
def test_whitening_has_mean_zero_and_variance_one_over_the_mask_alone(values):
    masks = [[place % 3 != 1 for place in range(len(row))] for row in values]
    found = whitened(values, masks)
    seen = [v for row, mask in zip(found, masks, strict=True) for v, kept in zip(row, mask, strict=True) if kept]
    before = [v for row, mask in zip(values, masks, strict=True) for v, kept in zip(row, mask, strict=True) if kept]
    if before and max(before) - min(before) > 1e-2:
        assert sum(seen) / len(seen) == pytest.approx(0, abs=1e-9)
        assert sum(v * v for v in seen) / len(seen) == pytest.approx(1, rel=1e-2)
    assert all(v == 0 for row, mask in zip(found, masks, strict=True) for v, k in zip(row, mask, strict=True) if not k)
    strange = [
        [v if kept else 1e9 for v, kept in zip(r, mask, strict=True)] for r, mask in zip(values, masks, strict=True)
    ]
    assert whitened(strange, masks) == found
    assert whitened([], []) == []


def test_leave_one_out_is_the_mean_of_the_others():
    values = [[1.0, 2.0], [3.0], [5.0, 7.0, 9.0], [10.0], [20.0], [30.0]]
    wanted = [[4.0, 3.5], [3.0], [2.0, 1.0, 0.0], [25.0], [20.0], [15.0]]
    assert leave_one_out(values, 3) == wanted
    changed = [values[0], [-100.0], *values[2:]]
    assert leave_one_out(changed, 3)[1] == wanted[1]  # its own return is not in its baseline
    for samples in (1, 4):
        with pytest.raises(ValueError, match="groups of"):
            leave_one_out(values, samples)


LOGITS = torch.tensor([[0.3, -1.0, 0.7, 0.1], [-0.5, 0.4, 1.1, -0.2]], dtype=torch.float64)


def slopes() -> dict[str, torch.Tensor]:
    """Gradients of both KLs, and of each estimator in expectation: by backpropagation, and as minus a reward."""
    q_logits, p = LOGITS[0].clone().requires_grad_(), LOGITS[1].log_softmax(0)
    q = q_logits.log_softmax(0)
    weights = q.detach().exp()

    def slope(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, q_logits, retain_graph=True)[0]

    found = {"reverse": slope((q.exp() * (q - p)).sum()), "forward": slope((p.exp() * (p - q)).sum())}
    for name, estimator in (("k1", kl_k1), ("k2", kl_k2), ("k3", kl_k3)):
        found[name] = slope((weights * estimator(q, p)).sum())
        found[f"{name} as a reward"] = slope((weights * estimator(q, p).detach() * q).sum())
    return found


def test_kl_estimators_in_expectation():
    q, p = LOGITS.log_softmax(-1)
    exact = (q.exp() * (q - p)).sum()
    torch.testing.assert_close((q.exp() * kl_k1(q, p)).sum(), exact)
    torch.testing.assert_close((q.exp() * kl_k3(q, p)).sum(), exact)
    assert not torch.isclose((q.exp() * kl_k2(q, p)).sum(), exact, rtol=0.01)
    assert (kl_k3(q, p) >= 0).all()
    assert (kl_k2(q, p) >= 0).all()
    assert (kl_k1(q, p) < 0).any()


@pytest.mark.parametrize(
    ("estimator", "wanted"),
    [
        ("k1", lambda s: torch.zeros_like(s["reverse"])),
        ("k2", lambda s: s["reverse"]),
        ("k3", lambda s: s["forward"]),
        ("k1 as a reward", lambda s: s["reverse"]),
        ("k3 as a reward", lambda s: s["reverse"] - s["forward"]),
    ],
)
def test_gradients_of_the_kl_estimators_are_as_documented(estimator, wanted):
    found = slopes()
    torch.testing.assert_close(found[estimator], wanted(found), rtol=1e-10, atol=1e-12)


def test_only_k1_is_the_reward_of_the_reverse_kl():
    found = slopes()
    for name in ("k2", "k3"):
        assert not torch.allclose(found[f"{name} as a reward"], found["reverse"], rtol=0.05)
    # log_ratio_rewards, which the methods use, is minus k1
    q, p = LOGITS.log_softmax(-1)
    assert log_ratio_rewards([q.tolist()], [p.tolist()])[0] == pytest.approx((-kl_k1(q, p)).tolist())


@pytest.mark.parametrize(
    ("rule", "advantage", "wanted"),
    [
        # ρ = 0.5, 1, 1.5 at ε = 0.2: the slope of the objective with respect to log ρ
        ("pessimistic", 2.0, [1.0, 2.0, 0.0]),
        ("pessimistic", -2.0, [0.0, -2.0, -3.0]),
        ("sign_blind", 2.0, [1.0, 2.0, 0.0]),
        ("sign_blind", -2.0, [-1.0, -2.0, 0.0]),
    ],
)
def test_clipping_by_hand(rule, advantage, wanted):
    log_ratio = torch.tensor([0.5, 1.0, 1.5]).log().requires_grad_()
    value = clipped_surrogate(log_ratio, torch.full((3,), advantage), torch.ones(3), clip=0.2, rule=rule)
    assert torch.autograd.grad(value.sum(), log_ratio)[0].tolist() == pytest.approx(wanted)


def test_the_weight_is_part_of_the_clipped_ratio():
    log_ratio = torch.zeros(3, requires_grad=True)
    value = clipped_surrogate(log_ratio, torch.ones(3), torch.tensor([0.5, 1.1, 1.5]), clip=0.2)
    assert value.tolist() == pytest.approx([0.5, 1.1, 1.2])
    assert torch.autograd.grad(value.sum(), log_ratio)[0].tolist() == pytest.approx([0.5, 1.1, 0.0])
    free = clipped_surrogate(log_ratio, torch.ones(3), torch.tensor([0.5, 1.1, 1.5]), clip=None)
    assert free.tolist() == pytest.approx([0.5, 1.1, 1.5])


def test_no_gradient_goes_into_advantages_and_weights():
    log_ratio, advantage, weight = (torch.full((2,), 0.1, requires_grad=True) for _ in range(3))
    clipped_surrogate(log_ratio, advantage, weight, clip=0.2).sum().backward()
    assert log_ratio.grad is not None
    assert advantage.grad is None
    assert weight.grad is None


def test_every_public_function_has_a_formula():
    functions = [getattr(estimators, name) for name in dir(estimators) if not name.startswith("_")]
    ours = [f for f in functions if getattr(f, "__module__", "") == "tutelage.estimators"]
    assert len(ours) > 9
    assert all(f.__doc__ for f in ours)
