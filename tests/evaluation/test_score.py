"""Numbers over items: their value, their interval, and what is kept of them."""

import math

import numpy as np
import pytest

from tutelage.evaluation.score import REDUCTIONS, RESAMPLES, Score, resampled


def test_the_value_is_a_function_of_sums_over_items():
    score = Score({"a": (6.0, 2.0), "b": (1.0, 1.0)}, "nats a token", "lower")
    assert score.measurement().value == pytest.approx(7 / 3)
    perplexity = Score(score.rows, "", "lower", reduction="perplexity")
    assert perplexity.measurement().value == pytest.approx(math.exp(7 / 3))


def test_weights_count():
    score = Score.of({"a": 1.0, "b": 4.0}, weights={"a": 3.0, "b": 1.0}, unit="", better="higher")
    assert score.measurement().value == pytest.approx(7 / 4)


def test_seeds_are_averaged_within_items_first():
    seeds = [{"a": 0.0, "b": 100.0}, {"a": 100.0, "b": 100.0}]
    score = Score.over_seeds(seeds, unit="%", better="higher")
    assert score.measurement().value == 75.0
    assert score.by_seed == [50.0, 100.0]
    assert score.measurement().n == 2


def test_a_resample_has_as_many_items_as_there_are():
    counts = resampled(7)
    assert counts.shape == (RESAMPLES, 7)
    assert (counts.sum(1) == 7).all()
    assert counts.mean() == pytest.approx(1.0)


@pytest.mark.parametrize("reduction", ["mean", "perplexity"])
def test_the_interval_is_that_of_resampling_by_hand(reduction):
    rng = np.random.default_rng(0)
    rows = {
        str(at): (float(v * w), float(w))
        for at, (v, w) in enumerate(zip(rng.random(40), rng.integers(1, 9, 40), strict=True))
    }
    found = Score(rows, "", "lower", reduction=reduction).measurement()
    table, rng = np.array(list(rows.values())), np.random.default_rng(5)
    values = [REDUCTIONS[reduction](table[rng.integers(0, 40, 40)].sum(0)) for _ in range(4000)]
    low, high = np.quantile(values, [0.025, 0.975])
    width = high - low
    assert abs(found.low - low) < 0.08 * width
    assert abs(found.high - high) < 0.08 * width


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        values = rng.exponential(size=60)
        found = Score.of({str(i): float(v) for i, v in enumerate(values)}, unit="", better="lower").measurement(trial)
        hits += found.low <= 1.0 <= found.high
    assert 0.87 <= hits / 200 <= 0.99


def test_a_share_has_an_interval_that_holds_at_its_ends():
    none_right = Score.of({str(i): 0.0 for i in range(10)}, unit="%", better="higher").measurement()
    assert none_right.low == pytest.approx(0.0, abs=1e-9)
    assert none_right.high == pytest.approx(27.75, abs=0.01)  # Wilson's interval of 0 of 10


def test_nothing_is_no_number():
    found = Score({}, "%", "higher").measurement()
    assert math.isnan(found.value)
    assert found.n == 0
