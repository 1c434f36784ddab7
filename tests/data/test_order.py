"""The order of rows: permutations, one after the other, entered at any step."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data import Order
from tutelage.errors import InputError


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5), st.booleans())
def test_each_epoch_is_a_permutation(rows: int, size: int, seed: int, shuffle: bool) -> None:
    order = Order(rows, seed, shuffle)
    steps = -(-3 * rows // size)
    stream = [row for step in range(steps) for row in order.batch(step, size)]
    assert len(stream) == steps * size
    for epoch in range(3):
        assert sorted(stream[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_batches_depend_on_nothing_but_the_step() -> None:
    order = Order(rows=100, seed=3)
    forward = [order.batch(step, 7) for step in range(60)]
    assert forward[::-1] == [Order(rows=100, seed=3).batch(step, 7) for step in reversed(range(60))]
    assert forward[30:] == [Order(rows=100, seed=3).batch(step, 7) for step in range(30, 60)]


def test_the_stream_does_not_depend_on_the_batch_size() -> None:
    order = Order(rows=11, seed=1)
    assert [row for step in range(6) for row in order.batch(step, 5)] == order.batch(0, 30)


def test_epochs_and_seeds_differ() -> None:
    order = Order(rows=50, seed=0)
    assert order.batch(0, 50) != order.batch(1, 50)
    assert order.batch(0, 50) != Order(rows=50, seed=1).batch(0, 50)
    firsts = Counter(Order(rows=4, seed=seed).batch(0, 1)[0] for seed in range(400))
    assert all(60 < firsts[row] < 140 for row in range(4))


def test_unshuffled() -> None:
    order = Order(rows=3, seed=0, shuffle=False)
    assert [order.batch(step, 2) for step in range(3)] == [[0, 1], [2, 0], [1, 2]]


def test_rows_are_plain_integers() -> None:
    assert all(type(row) is int for row in Order(rows=5, seed=0).batch(0, 5))


def test_epochs_and_steps() -> None:
    order = Order(rows=30, seed=0)
    assert order.epoch(0, 8) == 0.0
    assert order.epoch(15, 4) == 2.0
    assert order.steps(1, 30) == 1
    assert order.steps(1, 8) == 4
    assert order.steps(0.1, 3) == 1
    assert order.steps(0.01, 8) == 1
    assert order.steps(2.5, 25) == 3


def test_nothing_to_order() -> None:
    with pytest.raises(InputError, match="got 0 rows"):
        Order(rows=0, seed=0)
    with pytest.raises(InputError, match="seed -1"):
        Order(rows=1, seed=-1)
