"""Every random draw of a run, from one seed: a draw is named by its purpose and its place.

Draws depend on what they are for (`order`, `mixture`, `sampling`, …) and on where they stand (step, row),
never on what was drawn before. So a resumed run needs no generator state, and neither batching nor the
number of processes changes what is sampled.
"""

import zlib

import numpy as np


def generator(seed: int, purpose: str, *place: int) -> np.random.Generator:
    """Return the generator of one purpose at one place.

    Args:
        seed: the run's seed, not negative.
        purpose: what the draw is for.
        place: where it stands, for instance (step, row); not negative.

    >>> generator(0, "mixture", 3).random() == generator(0, "mixture", 3).random()
    True
    >>> generator(0, "mixture", 3).random() == generator(0, "mixture", 4).random()
    False
    """
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), len(place), *place])
