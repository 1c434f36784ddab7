"""Tabular policies in float64: every sequence can be enumerated, so every expectation is exact.

A `TabularModel` stands in for a `LanguageModel` (and, frozen, for a `Teacher`): its hidden states are one-hot rows,
one a prefix, and its head weight is the table of logits `[vocabulary, prefixes]`, so the real engine and the real
methods run on it unchanged. There is one prompt, `(0,)`.
"""

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor, nn

from tutelage.losses import Head
from tutelage.models.teachers import Teacher
from tutelage.rollouts.rollout import Rollout

PROMPT = (0,)


class TabularModel(Teacher):
    """A policy with free logits for every prefix.

    Args:
        vocabulary: number of tokens.
        length: longest response.
        seed: of the logits.
        stop: token that ends a response; `None` gives responses of `length` tokens, all of them.
    """

    is_encoder_decoder = False
    device = torch.device("cpu")

    def __init__(self, vocabulary: int, length: int, seed: int, stop: int | None = None, scale: float = 1.0) -> None:
        self.vocabulary, self.length, self.stop = vocabulary, length, stop
        self.stop_ids = () if stop is None else (stop,)
        alphabet = [token for token in range(vocabulary) if token != stop]
        self.prefixes = [prefix for size in range(length) for prefix in product(alphabet, repeat=size)]
        self._row = {prefix: row for row, prefix in enumerate(self.prefixes)}
        generator = torch.Generator().manual_seed(seed)
        logits = scale * torch.randn(vocabulary, len(self.prefixes), generator=generator, dtype=torch.float64)
        self.model = nn.ParameterDict({"table": nn.Parameter(logits)})
        self.network = self.model
        self.seconds = 0.0

    @property
    def table(self) -> nn.Parameter:
        """The logits, `[vocabulary, prefixes]`."""
        return self.model["table"]

    @property
    def head(self) -> Head:
        """The table as a head."""
        return Head(self.table)

    def frozen(self) -> "TabularModel":
        """Return the model as a teacher: no gradient."""
        self.model.requires_grad_(False)
        return self

    def hidden(self, rollout: Rollout) -> Tensor:
        """One-hot rows of the prefixes at the masked positions."""
        rows = [
            self._row[response[:position]]
            for response, mask in zip(rollout.responses, rollout.masks, strict=True)
            for position, seen in enumerate(mask)
            if seen
        ]
        return torch.eye(len(self.prefixes), dtype=torch.float64)[rows]

    def targets(self, rollout: Rollout, vocabulary: int | None = None) -> Tensor:
        """The ids at the masked positions."""
        return torch.tensor(rollout.targets)

    def sequences(self) -> Iterator[tuple[int, ...]]:
        """Every response there is."""
        if self.stop is None:
            yield from product(range(self.vocabulary), repeat=self.length)
            return
        for prefix in self.prefixes:
            yield (*prefix, self.stop)
            if len(prefix) == self.length - 1:
                yield from ((*prefix, token) for token in range(self.vocabulary) if token != self.stop)

    def step_logps(self, sequence: tuple[int, ...]) -> Tensor:
        """Log-probability of each token of a response given those before it; differentiable."""
        rows = [self._row[sequence[:position]] for position in range(len(sequence))]
        return self.table.log_softmax(0).T[rows, list(sequence)]

    def distributions(self, sequence: tuple[int, ...]) -> Tensor:
        """Log-probabilities of all tokens at each position of a response, `[length, vocabulary]`; differentiable."""
        return self.table.log_softmax(0).T[[self._row[sequence[:position]] for position in range(len(sequence))]]

    def logp(self, sequence: tuple[int, ...]) -> Tensor:
        """Log-probability of a whole response; differentiable."""
        return self.step_logps(sequence).sum()


def every_response(model: TabularModel, writer="student") -> Rollout:
    """A rollout that holds every response once."""
    responses = list(model.sequences())
    return Rollout.of([PROMPT] * len(responses), responses, writer=writer)
