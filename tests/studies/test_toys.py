"""The studies without models, against closed forms and simulation."""

import random
from itertools import product

import numpy as np
import pytest

from tutelage.demo import task
from tutelage.studies import imitation_gap, mode_seeking
from tutelage.studies.courier import crossings

WEIGHTS, MEANS, DEVIATIONS = [0.6, 0.4], [-2.0, 2.0], [0.6, 0.9]
TEACHER = mode_seeking.mixture(WEIGHTS, MEANS, DEVIATIONS)


def test_forward_kl_matches_the_moments_of_the_mixture():
    mean, deviation = mode_seeking.fitted(lambda q, p: mode_seeking.kl(p, q), TEACHER)
    wanted = np.dot(WEIGHTS, MEANS)
    variance = np.dot(WEIGHTS, np.square(DEVIATIONS) + np.square(MEANS)) - wanted**2
    assert (mean, deviation) == pytest.approx((wanted, variance**0.5), abs=1e-3)


def test_reverse_kl_takes_the_larger_mode():
    mean, deviation = mode_seeking.fitted(mode_seeking.kl, TEACHER)
    assert (mean, deviation) == pytest.approx((-2.0, 0.6), abs=0.05)


def test_jsd_is_the_forward_kl_at_one_end_and_the_reverse_kl_at_the_other():
    student = mode_seeking.gaussian(0.0, 1.5)
    assert mode_seeking.jsd(student, TEACHER, 1e-5) / 1e-5 == pytest.approx(mode_seeking.kl(TEACHER, student), rel=0.01)
    close = mode_seeking.mixture([0.5, 0.5], [-1.0, 1.0], [1.0, 1.0])
    assert mode_seeking.jsd(student, close, 1 - 1e-5) / 1e-5 == pytest.approx(mode_seeking.kl(student, close), rel=0.01)


def drawn(seed: int):
    draws = np.random.default_rng(seed)
    shapes = [(3**t, 3) for t in range(3)]
    policies = [[draws.dirichlet(np.ones(3), size=shape[0]) for shape in shapes] for _ in range(2)]
    return *policies, [draws.uniform(-1, 1, size=shape) for shape in shapes]


def by_enumeration(policy, values, gamma):
    """E Σ_t γ^t values(s_t, a_t) over every sequence."""
    total = 0.0
    for sequence in product(range(3), repeat=3):
        chance, state, found = 1.0, 0, 0.0
        for t, token in enumerate(sequence):
            found += gamma**t * values[t][state, token]
            chance *= policy[t][state, token]
            state = 3 * state + token
        total += chance * found
    return total


def test_worth_is_its_definition():
    student, _, reward = drawn(0)
    assert imitation_gap.worth(student, reward, 0.9) == pytest.approx(by_enumeration(student, reward, 0.9))


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_the_moment_of_q_is_the_gap(gamma):
    """Both performance-difference identities: off-policy with the student's Q, on-policy with the teacher's."""
    student, teacher, reward = drawn(1)
    gap = by_enumeration(teacher, reward, gamma) - by_enumeration(student, reward, gamma)
    off = imitation_gap.moment(imitation_gap.action_values(student, reward, gamma), student, teacher, teacher, gamma)
    on = imitation_gap.moment(imitation_gap.action_values(teacher, reward, gamma), student, teacher, student, gamma)
    assert (off, on) == pytest.approx((gap, gap))


def test_the_bound_is_reached_by_the_sign():
    student, teacher, _ = drawn(2)
    best = [2.0 * np.sign(p - q) for q, p in zip(student, teacher, strict=True)]
    found = imitation_gap.moment(best, student, teacher, teacher, 0.9)
    assert found == pytest.approx(4.0 * imitation_gap.total_variation(student, teacher, teacher, 0.9))


def test_crossings_have_one_right_choice():
    """The right neighbour begins a shortest way, the others make the way longer."""
    for row in crossings(task.problems(40, random.Random(3), test=True), random.Random(0)):
        words = row["prompt"].split()
        addresses, walked = words[1:8:2], words[words.index("towns") + 1 :]
        town, goal = [word for word in walked if word != "drop"][-1], addresses[1 + walked.count("drop")]
        away = {near: task.distances(goal)[near] for near in row["choices"]}
        assert set(row["choices"]) == set(task.ROADS[town].values())
        assert [near for near in away if away[near] < task.distances(goal)[town]] == [row["answer"]]
