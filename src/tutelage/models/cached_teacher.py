"""Teachers that remember: what they said of fixed text is read from disk, and the model itself is not run."""

import time
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.divergences import Divergence
from tutelage.errors import InputError
from tutelage.losses.head import Head
from tutelage.losses.linear import PointwiseFunction, Scores
from tutelage.losses.top_k import top_k_divergence
from tutelage.models.language_model import LanguageModel
from tutelage.models.score_store import ScoreStore, row_keys
from tutelage.models.teachers import LocalTeacher, Teacher, head_on
from tutelage.models.top_k_coding import padded
from tutelage.rollouts.rollout import Rollout

HEAD = "head.safetensors"
"""The file of a store that holds the teacher's head."""


class _Reading(Teacher):
    """Part of the teachers that read from a store, and ask the model itself, where it is at hand, about other text.

    Args:
        store: what was scored.
        device: where the results are wanted.
        live: the model.
    """

    def __init__(self, store: ScoreStore, device: torch.device, live: LocalTeacher | None) -> None:
        self.live = live
        self._store, self._device = store, device
        self._reading = 0.0

    @property
    def model(self) -> LanguageModel | None:
        """The model, where it is at hand."""
        return None if self.live is None else self.live.model

    @property
    def seconds(self) -> float:
        """Time spent on the teacher's part so far."""
        return self._reading + (0.0 if self.live is None else self.live.seconds)


class CachedTeacher(_Reading):
    """A teacher whose hidden states on fixed text lie on disk.

    Rows of a micro-batch that are not there are scored by the model itself, where it is at hand.

    Args:
        store: rows of `HiddenStates`, and the head.
        device: where the results are wanted.
        live: the model, for other text than that of the store.

    Raises:
        InputError: the store has no head.
    """

    def __init__(self, store: ScoreStore, device: torch.device, live: LocalTeacher | None = None) -> None:
        super().__init__(store, device, live)
        self._head = stored_head(store, device) if live is None else live.head

    @property
    def head(self) -> Head:
        """The teacher's output head."""
        return self._head

    @torch.no_grad()
    def hidden(self, rollout: Rollout) -> Float[Tensor, "positions width"]:
        """Return the final hidden states that predict the masked response tokens; no gradient.

        Raises:
            InputError: a row is not in the store, and there is no model to score it.
        """
        held, others = _apart(self._store, rollout)
        start = time.perf_counter()
        rows = {row: self._store.get(key)["hidden"] for row, key in held.items()}
        self._reading += time.perf_counter() - start
        if others:
            part = rollout.select(others)
            rows |= dict(zip(others, _at_hand(self.live).hidden(part).split(list(part.positions_of)), strict=True))
        dtype = reduce(torch.promote_types, (states.dtype for states in rows.values()), self._head.weight.dtype)
        return torch.cat([rows[row].to(self._device, dtype) for row in sorted(rows)])


class TopKTeacher(_Reading):
    """A teacher whose most probable tokens on fixed text lie on disk: it can be compared with, and nothing more.

    Args:
        store: rows of `TopK`.
        device: where the results are wanted.
        temperature: what the teacher's logits were divided by.
        live: the model, for what an evaluation asks; objectives get what is in the store.
    """

    def __init__(
        self, store: ScoreStore, device: torch.device, temperature: float = 1.0, live: LocalTeacher | None = None
    ) -> None:
        super().__init__(store, device, live)
        self._temperature = temperature

    @property
    def head(self) -> Head:
        """The model's output head."""
        return _at_hand(self.live).head

    def hidden(self, rollout: Rollout) -> Float[Tensor, "positions width"]:
        """Return the model's final hidden states.

        Raises:
            InputError: the model is not at hand.
        """
        return _at_hand(self.live).hidden(rollout)

    def compare(
        self,
        student_hidden: Float[Tensor, "positions student_width"],
        student_head: Head,
        rollout: Rollout,
        divergence: str | Divergence | PointwiseFunction,
        **options: Any,
    ) -> Scores:
        """Compare on the stored tokens and one bucket for all others, as `top_k_divergence` does.

        Raises:
            InputError: a row is not in the store.
        """
        start = time.perf_counter()
        held, others = _apart(self._store, rollout)
        if others:
            raise InputError(
                "a top-k teacher cache has no scores of text that is written during the run; use "
                "teacher_cache.kind: hidden, which has the model score such text"
            )
        columns = padded([self._store.get(key) for key in held.values()])
        ids, logp, target = (column.to(self._device) for column in columns)
        self._reading += time.perf_counter() - start
        options["recorded_temperature"] = self._temperature
        scores = top_k_divergence(student_hidden, student_head, ids, logp, divergence, **options)
        return scores if options.get("targets") is None else replace(scores, teacher_logp=target)


def stored_head(store: ScoreStore, device: torch.device) -> Head:
    """Return the head that a store keeps.

    Raises:
        InputError: it keeps none.
    """
    found = store.file(HEAD)
    if found is None:
        raise InputError(f"{store.folder} has no {HEAD}; `tutelage cache RECIPE` writes it")
    mapped, notes = found
    # Products may round otherwise where memory begins at odd addresses, as it does in a mapped file.
    tensors = {name: tensor.clone() for name, tensor in mapped.items()}
    return head_on(Head(tensors["weight"], tensors.get("bias"), **notes), device)


def store_head(store: ScoreStore, head: Head) -> None:
    """Keep a head beside the rows."""
    tensors = {"weight": head.weight} if head.bias is None else {"weight": head.weight, "bias": head.bias}
    notes = {"scale": head.scale, "softcap": head.softcap}
    store.add_file(HEAD, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, notes)


def _apart(store: ScoreStore, rollout: Rollout) -> tuple[dict[int, bytes], list[int]]:
    """Which sequences with tokens in the loss are in the store, and which are not."""
    positions = rollout.positions_of
    keys = {row: key for row, key in enumerate(row_keys(rollout)) if positions[row]}
    held = {row: key for row, key in keys.items() if key in store}
    return held, [row for row in keys if row not in held]


def _at_hand(live: LocalTeacher | None) -> LocalTeacher:
    if live is None:
        raise InputError(
            "the teacher is asked about text that is not in its cache, and its weights were not loaded; run "
            "`tutelage cache RECIPE` for the text of this run, or leave teacher_cache.kind out"
        )
    return live
