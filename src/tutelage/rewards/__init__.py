"""Rewards: what a response is worth, one number each, for the methods that learn from a reward.

`Reward` is what a recipe says; `Reward.scorer()` is the function behind it. One file holds one kind.
"""

from tutelage.rewards.reward import Reward, Scorer

__all__ = ["Reward", "Scorer"]
