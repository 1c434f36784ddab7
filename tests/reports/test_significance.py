"""Paired tests against scipy's, against enumeration, and by simulation."""

from itertools import product

import numpy as np
import pytest
from scipy import stats
from tests.reports.records import mean_of

from tutelage.errors import InputError
from tutelage.evaluation.score import Score
from tutelage.reports.significance import holm, paired_difference

DRAWS = np.random.default_rng(7)
FIRST, SECOND = DRAWS.normal(0.4, 1.0, 60), DRAWS.normal(0.0, 1.0, 60)


def test_mean_difference_agrees_with_scipy():
    found = paired_difference(mean_of(*FIRST), mean_of(*SECOND))
    gaps = FIRST - SECOND
    exchanged = stats.permutation_test(
        (FIRST, SECOND), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=99_999, rng=np.random.default_rng(1),
    )  # fmt: skip
    drawn = stats.bootstrap((gaps,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2))
    assert found.value == pytest.approx(gaps.mean())
    assert found.p_value == pytest.approx(exchanged.pvalue, abs=0.006)
    ends = drawn.confidence_interval
    assert [found.low, found.high] == pytest.approx([ends.low, ends.high], abs=0.03)


def test_few_items_are_exchanged_in_every_way():
    first, second = FIRST[:9], SECOND[:9]
    gaps = first - second
    means = [np.mean(gaps * signs) for signs in product([1, -1], repeat=9)]
    wanted = np.mean(np.abs(means) >= abs(gaps.mean()) - 1e-12)
    assert paired_difference(mean_of(*first), mean_of(*second)).p_value == wanted


def test_perplexity_is_resampled_as_a_ratio_of_sums():
    counts = DRAWS.integers(1, 20, 50).astype(float)
    totals = [counts * DRAWS.gamma(4.0, 0.5, 50) for _ in range(2)]
    scores = [
        Score({f"i{k}": (t, c) for k, (t, c) in enumerate(zip(total, counts, strict=True))}, "", "lower", "perplexity")
        for total in totals
    ]

    def gap(a, b, n, axis=-1):
        return np.exp(a.sum(axis) / n.sum(axis)) - np.exp(b.sum(axis) / n.sum(axis))

    found = paired_difference(*scores)
    drawn = stats.bootstrap((*totals, counts), gap, paired=True, method="percentile", n_resamples=20_000, rng=3)
    assert found.value == pytest.approx(gap(*totals, counts))
    ends = drawn.confidence_interval
    assert [found.low, found.high] == pytest.approx([ends.low, ends.high], rel=0.05)


def test_interval_holds_the_truth_and_the_test_keeps_its_level():
    """Over many data sets without a difference: 95 % of the intervals hold 0, 5 % of the p-values are below 0.05."""
    held, alarms, rounds = 0, 0, 200
    for _ in range(rounds):
        common = DRAWS.normal(size=40)
        first, second = common + DRAWS.normal(size=40), common + DRAWS.normal(size=40)
        found = paired_difference(mean_of(*first), mean_of(*second))
        held += found.low <= 0 <= found.high
        alarms += found.p_value < 0.05
    assert 0.90 <= held / rounds <= 0.985
    assert 0.015 <= alarms / rounds <= 0.10


def test_pairing_finds_what_unpaired_intervals_hide():
    common = DRAWS.normal(0, 10, 80)
    found = paired_difference(mean_of(*(common + 0.5)), mean_of(*(common + DRAWS.normal(0, 0.3, 80))))
    assert found.p_value < 0.001
    assert found.low > 0


def test_equal_models_do_not_differ():
    assert paired_difference(mean_of(*FIRST), mean_of(*FIRST)).p_value == 1.0


def test_items_that_differ_are_refused():
    with pytest.raises(InputError, match=r"1 are in the first alone, 0 in the second alone \(such as rows.jsonl:2\)"):
        paired_difference(mean_of(1, 2, 3), mean_of(1, 2))


def test_numbers_without_items_are_refused():
    with pytest.raises(InputError, match="no sum over items"):
        paired_difference(Score({}, "%", "higher"), Score({}, "%", "higher"))


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, and never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
