"""The loop that writes: sequences side by side, those that end leave, waiting prompts take their place."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tutelage.config import Decoding
from tutelage.randomness import generator
from tutelage.rollouts.ngrams import Ngrams
from tutelage.rollouts.rollout import Ids
from tutelage.rollouts.sampling import draw, logp_of, truncated

Place = tuple[int, ...]
Written = tuple[list[Ids], list[tuple[float, ...]] | None]

_ENOUGH_TO_LEAVE = 1 / 4  # where leaving copies the whole cache
_ENOUGH_TO_JOIN = 1 / 8  # reading a prompt costs about a step, for one as for several


class Policy(Protocol):
    """Who chooses the next token of a batch of sequences: one model, or several that read along together.

    What it returns are logits over the temperature, `[sequences, vocabulary]`.
    """

    @property
    def joins(self) -> bool:
        """Whether new prompts may join sequences that are under way, and any may leave at little cost."""
        ...

    def read(self, prompts: Sequence[Ids]) -> Tensor:
        """Read prompts, each a new sequence at the end of the batch; return the logits of their first tokens."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Read one token of each sequence; return the logits of the next."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these sequences only, in this order; they are numbered on the CPU."""
        ...


def write(
    policy: Policy,
    prompts: Sequence[Ids],
    places: Sequence[Place],
    decoding: Decoding,
    *,
    stop_ids: tuple[int, ...],
    seed: int,
    device: torch.device,
    on_progress: Callable[[int], None] | None = None,
    histories: Sequence[Ids] | None = None,
) -> Written:
    """Write one response to each prompt, at most `decoding.batch_size` of them at a time.

    Args:
        policy: chooses the tokens; its batch is empty.
        prompts: ids, none of them empty.
        places: one a prompt; what is drawn depends on the seed and the place alone.
        decoding: strategy (not beam search), truncation, length, batch size; the temperature is the policy's.
        stop_ids: ids that end a response and are part of it.
        seed: the run's seed.
        device: of the policy's logits.
        on_progress: told how many more sequences are done, whenever some are.
        histories: what stands before each response, for `no_repeat_ngram_size`; the prompts by default.

    Returns:
        The responses, and the log-probability of each token under the distribution it was drawn from.
    """
    texts = _Texts(prompts if histories is None else histories, places, decoding, stop_ids, seed, device)
    waiting = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), prompts[row], row))
    rows = chosen = torch.zeros(0, dtype=torch.long, device=device)
    open_rows = torch.ones(0, dtype=torch.bool, device=device)
    while waiting or len(rows):
        is_open = open_rows.tolist()  # the one time in a step that a device is waited for
        remaining = sum(is_open)
        ended = len(rows) - remaining
        if ended and (policy.joins or remaining == 0 or ended >= _ENOUGH_TO_LEAVE * len(rows)):
            kept = torch.tensor(_closed_up(is_open), dtype=torch.long)
            policy.keep(kept)
            kept = kept.to(device)
            rows, chosen, open_rows = rows[kept], chosen[kept], open_rows[kept]
            if on_progress is not None:
                on_progress(ended)
        room = decoding.batch_size - len(rows)
        if waiting and (remaining == 0 or (policy.joins and room >= _ENOUGH_TO_JOIN * decoding.batch_size)):
            new, waiting = waiting[:room], waiting[room:]
            logits = policy.read([prompts[row] for row in new])
            new = torch.tensor(new, device=device)
            rows, open_rows = torch.cat([rows, new]), torch.cat([open_rows, torch.ones_like(new, dtype=torch.bool)])
            first, open_rows[-len(new) :] = texts.append(new, open_rows[-len(new) :], logits)
            chosen = torch.cat([chosen, first])
        elif remaining:
            chosen, open_rows = texts.append(rows, open_rows, policy.step(chosen))
    return texts.ragged()


def _closed_up(is_open: Sequence[bool]) -> list[int]:
    """The sequences that go on, moved as little as possible: the last ones fill the gaps that others left."""
    remaining = sum(is_open)
    last = (row for row in range(remaining, len(is_open)) if is_open[row])
    return [row if is_open[row] else next(last) for row in range(remaining)]


class _Texts:
    """What has been written so far, of all sequences."""

    def __init__(
        self,
        histories: Sequence[Ids],
        places: Sequence[Place],
        decoding: Decoding,
        stop_ids: tuple[int, ...],
        seed: int,
        device: torch.device,
    ) -> None:
        size = (len(places), decoding.max_new_tokens)
        self._decoding = decoding
        self._stops = torch.tensor(stop_ids, device=device)
        self._tokens = torch.zeros(size, dtype=torch.long, device=device)
        self._logps = torch.zeros(size, dtype=torch.float64, device=device)
        self._lengths = torch.zeros(len(places), dtype=torch.long, device=device)
        draws = [generator(seed, "sampling", *place).random(size[1]) for place in places]
        length = decoding.no_repeat_ngram_size
        self._ngrams = Ngrams(length, histories) if length else None
        self._uniforms = torch.from_numpy(np.array(draws).reshape(size)).to(device)

    def append(self, rows: Tensor, open_rows: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Choose a token for each of these sequences and write it down for the open ones.

        Returns:
            The tokens, and which sequences are open still.
        """
        position = self._lengths[rows].clamp(max=self._decoding.max_new_tokens - 1)
        chosen, logp = self._choose(logits, rows, position)
        self._tokens[rows, position] = torch.where(open_rows, chosen, self._tokens[rows, position])
        self._logps[rows, position] = torch.where(open_rows, logp.double(), self._logps[rows, position])
        self._lengths[rows] += open_rows
        if self._ngrams is not None:
            for row, token, is_open in zip(rows.tolist(), chosen.tolist(), open_rows.tolist(), strict=True):
                if is_open:
                    self._ngrams.append(row, token)
        over = torch.isin(chosen, self._stops) | (position + 1 == self._decoding.max_new_tokens)
        return chosen, open_rows & ~over

    def _choose(self, logits: Tensor, rows: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        if self._ngrams is not None:
            logits = self._ngrams.allowed(logits, rows.tolist())
        if self._decoding.strategy == "greedy":
            chosen = logits.argmax(-1)
            return chosen, logp_of(logits, chosen)
        logits = truncated(logits, self._decoding.top_k, self._decoding.top_p)
        return draw(logits, self._uniforms[rows, position], overwrite=True)

    def ragged(self) -> Written:
        """The responses and their log-probabilities."""
        ends = self._lengths.tolist()
        tokens, logps = self._tokens.tolist(), self._logps.tolist()
        return (
            [tuple(row[:end]) for row, end in zip(tokens, ends, strict=True)],
            [tuple(row[:end]) for row, end in zip(logps, ends, strict=True)],
        )
