"""Forbidding n-grams to come twice."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.rollouts.rollout import Ids


class Ngrams:
    """The n-grams that each of some sequences has so far, and so the tokens that would repeat one.

    >>> ngrams = Ngrams(2, [(5, 6, 5)])
    >>> ngrams.allowed(torch.zeros(1, 8), [0]).isinf().nonzero().tolist()
    [[0, 6]]

    Args:
        length: n; no n consecutive tokens may come twice.
        histories: what each sequence begins with.

    Reference: Paulus et al. 2017 (arXiv 1705.04304), §2.5; the same tokens are forbidden as by transformers'
        `no_repeat_ngram_size`, which counts the prompt of a decoder-only model too.
    """

    def __init__(self, length: int, histories: Sequence[Ids]) -> None:
        self._length = length
        self._last: list[Ids] = [()] * len(histories)
        self._followers: list[defaultdict[Ids, list[int]]] = [defaultdict(list) for _ in histories]
        for row, history in enumerate(histories):
            for token in history:
                self.append(row, token)

    def append(self, row: int, token: int) -> None:
        """A sequence goes on with a token."""
        before = self._last[row]
        if len(before) == self._length - 1:
            self._followers[row][before].append(token)
        self._last[row] = (*before, token)[-(self._length - 1) :] if self._length > 1 else ()

    def allowed(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """Return the logits, one row for each of these sequences, with −∞ for tokens that would repeat an n-gram."""
        banned = [
            (at, token)
            for at, row in enumerate(rows)
            if len(self._last[row]) == self._length - 1
            for token in self._followers[row].get(self._last[row], ())
        ]
        if not banned:
            return logits
        places = torch.tensor(banned, device=logits.device)
        return logits.index_put(tuple(places.T), logits.new_tensor(-torch.inf))
