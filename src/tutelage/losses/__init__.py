"""The vocabulary engine: divergences and log-probabilities from hidden states, never from kept logits."""

from tutelage.losses.bridged import shared_divergence, sorted_distance
from tutelage.losses.head import Head
from tutelage.losses.linear import Scores, linear_divergence
from tutelage.losses.mapping import map_vocabulary
from tutelage.losses.top_k import top_k_divergence

__all__ = [
    "Head",
    "Scores",
    "linear_divergence",
    "map_vocabulary",
    "shared_divergence",
    "sorted_distance",
    "top_k_divergence",
]
