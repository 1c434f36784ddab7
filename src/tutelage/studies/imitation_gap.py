"""The bounds behind moment matching, checked on tasks small enough to enumerate.

A policy is a list of tables, one a step: `policy[t][state]` is the distribution of the next token, and the states are
the V^t prefixes. Rewards and critics have the same shape.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.studies.figures import Figure, Outcome, Series, TextTable

Tables = list[NDArray[np.float64]]


def run(settings: Mapping[str, Any]) -> list[Outcome]:
    """Draw students, teachers and rewards and compare gap, moment distances and bounds; `tutelage study` calls it.

    Args:
        settings: `vocabulary`, `length`, `discount`, `instances`, `critics` (functions in the class besides Q) and
            `seed`.
    """
    draws = np.random.default_rng(settings["seed"])
    found = [instance(draws, settings) for _ in range(settings["instances"])]
    columns = {key: [each[key] for each in found] for key in found[0]}
    rows, slack = [], 1e-9
    for side in ("off", "on"):
        gap, distance, bound = columns["gap"], columns[f"moment_{side}"], columns[f"bound_{side}"]
        held = [
            sum(g <= d + slack for g, d in zip(gap, distance, strict=True)),
            sum(d <= b + slack for d, b in zip(distance, bound, strict=True)),
        ]
        ratios = [np.median([d / b for d, b in zip(distance, bound, strict=True)]),
                  np.median([g / d for g, d in zip(gap, distance, strict=True) if g > 0])]  # fmt: skip
        rows.append([f"{side}-policy", *(f"{h} of {len(found)}" for h in held), *(f"{ratio:.3f}" for ratio in ratios)])
    head = [
        "",
        "gap ≤ moment distance",
        "moment distance ≤ 2B Σ γ^t TV",
        "distance / bound, median",
        "gap / distance, median",
    ]
    table = TextTable("bounds", "Both inequalities, exact by enumeration", head, rows, values=columns)
    points = [
        Series(f"{side}-policy", columns["gap"], columns[f"moment_{side}"], joined=False) for side in ("off", "on")
    ]
    limits = [min(columns["gap"]), max(columns["gap"])]
    points.append(Series("the gap itself", limits, limits, fitted=True))
    figure = Figure("gap", "Moment distance by imitation gap", "imitation gap", "moment distance", points)
    return [table, figure]


def instance(draws: np.random.Generator, settings: Mapping[str, Any]) -> dict[str, float]:
    """Gap, moment distances and bounds of one student, teacher and reward, all drawn at random."""
    vocabulary, length, gamma = settings["vocabulary"], settings["length"], settings["discount"]
    shapes = [(vocabulary**t, vocabulary) for t in range(length)]
    student, teacher = ([_softmax(draws.normal(size=shape)) for shape in shapes] for _ in range(2))
    reward = [draws.uniform(-1, 1, size=shape) for shape in shapes]
    values = {"off": action_values(student, reward, gamma), "on": action_values(teacher, reward, gamma)}
    found = {"gap": worth(teacher, reward, gamma) - worth(student, reward, gamma)}
    for side, writer in (("off", teacher), ("on", student)):
        reach = max(np.abs(table).max() for table in values[side])
        others = [[draws.uniform(-reach, reach, size=shape) for shape in shapes] for _ in range(settings["critics"])]
        sums = [moment(f, student, teacher, writer, gamma) for f in (values[side], *others)]
        found[f"moment_{side}"] = max(abs(total) for total in sums)  # the class has −f with f
        found[f"bound_{side}"] = 2 * reach * total_variation(student, teacher, writer, gamma)
    return found


def occupancy(policy: Tables) -> list[NDArray[np.float64]]:
    """How likely each prefix is at each step."""
    reached = [np.ones(1)]
    for table in policy[:-1]:
        reached.append((reached[-1][:, None] * table).reshape(-1))
    return reached


def action_values(policy: Tables, reward: Tables, gamma: float) -> Tables:
    """Q(s, a) of a policy, backwards from the last step."""
    values = [reward[-1]]
    for step in range(len(reward) - 2, -1, -1):
        following = (policy[step + 1] * values[0]).sum(1).reshape(reward[step].shape)
        values.insert(0, reward[step] + gamma * following)
    return values


def worth(policy: Tables, reward: Tables, gamma: float) -> float:
    """J: the expected discounted reward of a policy."""
    return float((policy[0] * action_values(policy, reward, gamma)[0]).sum())


def moment(f: Tables, student: Tables, teacher: Tables, writer: Tables, gamma: float) -> float:
    """E Σ_t γ^t (E_teacher f − E_student f) at the states of whoever writes."""
    gaps = [((p - q) * values).sum(1) for q, p, values in zip(student, teacher, f, strict=True)]
    return _discounted(gaps, writer, gamma)


def total_variation(student: Tables, teacher: Tables, writer: Tables, gamma: float) -> float:
    """E Σ_t γ^t TV(teacher, student) at the states of whoever writes."""
    return _discounted([0.5 * np.abs(p - q).sum(1) for q, p in zip(student, teacher, strict=True)], writer, gamma)


def _discounted(columns: Sequence[NDArray[np.float64]], writer: Tables, gamma: float) -> float:
    return float(sum(gamma**t * (w * c).sum() for t, (w, c) in enumerate(zip(occupancy(writer), columns, strict=True))))


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)
