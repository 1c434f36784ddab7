"""How text that an older student wrote is weighed."""

import math

from tutelage.estimators import Ragged, importance_weights


def state_weights(student_logps: Ragged, behaviour_logps: Ragged, *, cap: float | None = None) -> list[list[float]]:
    """Return how much more probable the text before each token is to the student than to the policy that wrote it.

    What a position adds to a loss depends on the tokens before it, and not on its own: a divergence between two models'
    distributions is an example. The sum over positions of what it adds, times this weight, has the expectation over the
    student's text that the plain sum has over the writer's, if nothing is capped. A cap makes the variance bounded, and
    the estimate lean towards the writer's text.

    Formula: w_t = min(c, Π_{t' < t} q(y_t') / p̃(y_t')), so that w_1 = 1.

    Args:
        student_logps: log q of each token, nats.
        behaviour_logps: log p̃ of each token under the very distribution that it was drawn from, nats.
        cap: c, at least 1; `None` caps nothing.

    >>> [round(weight, 3) for weight in state_weights([[-1.0, -1.0, -3.0]], [[-1.5, -1.5, -0.1]])[0]]
    [1.0, 1.649, 2.718]
    >>> state_weights([[-1.0, -1.0, -3.0]], [[-2.0, -1.5, -0.1]], cap=2.0)
    [[1.0, 2.0, 2.0]]

    Reference: Ionides 2008, "Truncated importance sampling", for the cap.
    """
    largest = math.inf if cap is None else cap
    prefixes = importance_weights(student_logps, behaviour_logps, "prefix")
    return [[min(weight, largest) for weight in [1.0, *row][: len(row)]] for row in prefixes]
