"""The one carrier of text: prompts with responses, whoever wrote them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Ids = tuple[int, ...]
Writer = Literal["data", "teacher", "student", "mixed", "text"]
Values = tuple[tuple[float, ...], ...]

LOG_WEIGHT = "log_importance_weight"
"""The values of a rollout by which its positions are weighed: logarithms, so that 0 leaves a position as it is."""


@dataclass(frozen=True)
class Rollout:
    """Prompts with their responses as ids; ragged, without padding.

    A row of a data set is a rollout that the data wrote. The mask says which response tokens the loss and
    the metrics see; it is the only mask there is. All of them are seen in generated text; in a conversation
    of several turns, those of the user are not.

    >>> rollout = Rollout.of([[5, 6]], [[7, 8, 1]])
    >>> len(rollout), rollout.positions, rollout.writers
    (1, 3, ('data',))
    """

    prompts: tuple[Ids, ...]
    responses: tuple[Ids, ...]
    masks: tuple[tuple[bool, ...], ...]
    writers: tuple[Writer, ...]
    """Who wrote each response."""
    items: tuple[int, ...]
    """Which row of the data each prompt is."""
    logps: tuple[tuple[float, ...], ...] | None = None
    """Log-probability of each response token under the distribution it was drawn from, nats."""
    values: Mapping[str, Values] = field(default_factory=dict)
    """Further numbers for each response token, by name, that a method computed once (`Objective.prepare`)."""

    @classmethod
    def of(
        cls,
        prompts: Iterable[Sequence[int]],
        responses: Iterable[Sequence[int]],
        *,
        masks: Iterable[Sequence[bool]] | None = None,
        writer: Writer = "data",
        items: Sequence[int] | None = None,
        logps: Iterable[Sequence[float]] | None = None,
    ) -> "Rollout":
        """Build a rollout from any sequences; every response token is in the mask unless one is given.

        Raises:
            ValueError: the lists differ in length, or a mask differs in length from its response.
        """
        prompts = tuple(tuple(p) for p in prompts)
        responses = tuple(tuple(r) for r in responses)
        masks = tuple((True,) * len(r) for r in responses) if masks is None else tuple(tuple(m) for m in masks)
        items = tuple(range(len(prompts))) if items is None else tuple(items)
        if not len(prompts) == len(responses) == len(masks) == len(items):
            raise ValueError(
                f"{len(prompts)} prompts, {len(responses)} responses, {len(masks)} masks and {len(items)} items: "
                "give as many of each"
            )
        for row, (response, mask) in enumerate(zip(responses, masks, strict=True)):
            if len(response) != len(mask):
                raise ValueError(f"response {row} has {len(response)} tokens, its mask {len(mask)}: give as many")
        kept = None if logps is None else tuple(tuple(v) for v in logps)
        return cls(prompts, responses, masks, (writer,) * len(prompts), items, kept)

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.prompts)

    @property
    def positions(self) -> int:
        """Number of response tokens in the mask, over all sequences."""
        return sum(self.positions_of)

    @property
    def positions_of(self) -> tuple[int, ...]:
        """The same for each sequence."""
        return tuple(map(sum, self.masks))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each prompt and response together."""
        return tuple(len(p) + len(r) for p, r in zip(self.prompts, self.responses, strict=True))

    @property
    def targets(self) -> tuple[int, ...]:
        """The ids at the masked positions, sequence after sequence: what the hidden states predict."""
        return tuple(
            token
            for response, mask in zip(self.responses, self.masks, strict=True)
            for token, seen in zip(response, mask, strict=True)
            if seen
        )

    def select(self, rows: Sequence[int]) -> "Rollout":
        """Return the given sequences, in the given order."""

        def pick(column):
            return tuple(column[r] for r in rows)

        return replace(
            self,
            prompts=pick(self.prompts),
            responses=pick(self.responses),
            masks=pick(self.masks),
            writers=pick(self.writers),
            items=pick(self.items),
            logps=None if self.logps is None else pick(self.logps),
            values={name: pick(column) for name, column in self.values.items()},
        )

    def with_values(self, **values: Iterable[Sequence[float]]) -> "Rollout":
        """Return the rollout with more numbers, one for each response token, masked or not.

        Raises:
            ValueError: they are not as many as there are response tokens.
        """
        columns = {name: tuple(tuple(row) for row in column) for name, column in values.items()}
        wanted = tuple(map(len, self.responses))
        for name, column in columns.items():
            if tuple(map(len, column)) != wanted:
                raise ValueError(f"values '{name}' have {tuple(map(len, column))} entries, the responses {wanted}")
        return replace(self, values={**self.values, **columns})

    def masked(self, column: Values) -> list[float]:
        """Return the numbers at the masked positions, in the order of `targets`."""
        return [
            value
            for row, mask in zip(column, self.masks, strict=True)
            for value, seen in zip(row, mask, strict=True)
            if seen
        ]

    def micro_batches(self, tokens: int) -> list["Rollout"]:
        """Cut into parts whose padded size is at most `tokens`, sequences of similar length together.

        A sequence longer than that makes a part of its own.

        >>> rollout = Rollout.of([[1]] * 3, [[2] * 9, [2], [2] * 8])
        >>> [part.lengths for part in rollout.micro_batches(20)]
        [(10, 9), (2,)]
        """
        return [self.select(part) for part in self.micro_batch_rows(tokens)]

    def micro_batch_rows(self, tokens: int) -> list[list[int]]:
        """Return which sequences each of the `micro_batches` has, to put what is found on them back in order."""
        lengths = self.lengths
        order = sorted(range(len(self)), key=lambda row: (-lengths[row], row))
        parts: list[list[int]] = []
        for row in order:
            if parts and (len(parts[-1]) + 1) * lengths[parts[-1][0]] <= tokens:
                parts[-1].append(row)
            else:
                parts.append([row])
        return parts


def joined(rollouts: Sequence[Rollout]) -> Rollout:
    """Put rollouts one after the other.

    Log-probabilities are kept if all of them have some; values that only some have are 0 for the others.
    """

    def chain(name: str) -> tuple:
        return tuple(value for rollout in rollouts for value in getattr(rollout, name))

    def column(name: str) -> Values:
        blank = [tuple((0.0,) * len(r) for r in rollout.responses) for rollout in rollouts]
        return tuple(
            row for rollout, zeros in zip(rollouts, blank, strict=True) for row in rollout.values.get(name, zeros)
        )

    recorded = all(rollout.logps is not None for rollout in rollouts)
    names = dict.fromkeys(name for rollout in rollouts for name in rollout.values)
    return Rollout(
        prompts=chain("prompts"),
        responses=chain("responses"),
        masks=chain("masks"),
        writers=chain("writers"),
        items=chain("items"),
        logps=chain("logps") if recorded and rollouts else None,
        values={name: column(name) for name in names},
    )


def rollout_of(state: Mapping[str, Any]) -> Rollout:
    """Return the rollout that `asdict` and JSON took apart."""

    def nested(rows) -> tuple:
        return tuple(tuple(row) for row in rows)

    return Rollout(
        prompts=nested(state["prompts"]),
        responses=nested(state["responses"]),
        masks=nested(state["masks"]),
        writers=tuple(state["writers"]),
        items=tuple(state["items"]),
        logps=None if state["logps"] is None else nested(state["logps"]),
        values={name: nested(rows) for name, rows in state["values"].items()},
    )
