"""Which checkpoint is the best one so far, by a metric that a recipe names."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tutelage.errors import InputError


def best_step(rule: str | None, evaluations: Sequence[Mapping[str, Any]], steps: Collection[int]) -> set[int]:
    """Return the step with the best evaluation among those of checkpoints; the earliest of equals.

    Args:
        rule: `lowest METRIC`, `highest METRIC`, or `None` for no such wish.
        evaluations: those of a run, each with `step` and `metrics`.
        steps: where there are checkpoints.

    Returns:
        One step, or none.

    >>> found = [{"step": s, "metrics": {"loss": {"value": v}}} for s, v in ((0, 9.0), (10, 2.0), (20, 3.0))]
    >>> best_step("lowest loss", found, [10, 20]), best_step("highest loss", found, [10, 20])
    ({10}, {20})
    """
    if rule is None:
        return set()
    direction, metric = rule.split()
    values = {e["step"]: e["metrics"][metric]["value"] for e in evaluations if metric in e["metrics"]}
    sign = 1 if direction == "lowest" else -1
    held = sorted(step for step in steps if step in values)
    return {min(held, key=lambda step: sign * values[step])} if held else set()


def check_rule(rule: str | None, metrics: Collection[str]) -> None:
    """Refuse a wish that names no metric of the run's evaluations.

    Raises:
        InputError: it does not.
    """
    if rule is not None and rule.split()[1] not in metrics:
        raise InputError(f"train.keep_best is '{rule}', but the evaluation has {', '.join(metrics)}")
