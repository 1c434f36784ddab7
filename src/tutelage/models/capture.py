"""Capturing: a teacher reads fixed text once, and what it says is put on disk, shard by shard.

Which rows make a shard, and which of them are read together, follows from the rows alone. So a capture that was
interrupted goes on with the same micro-batches, and ends with the same bits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tutelage.models.kept_scores import Kind
from tutelage.models.score_store import ScoreStore, row_keys
from tutelage.models.teachers import LocalTeacher
from tutelage.rollouts.rollout import Rollout
from tutelage.sealing import Seal
from tutelage.world import world

SHARD_BYTES = 64 * 2**20
"""About how large a shard is: what a kill can lose, and what is in memory while one is written."""
_KEY_AND_ENDS = 56  # bytes of a row's key and of where its tensors end, at most


@dataclass(frozen=True)
class Shard:
    """Rows that are, or will be, stored together."""

    rows: tuple[int, ...]
    """Rows of the text."""
    missing: tuple[int, ...]
    """Those of them that are not in the store."""


@dataclass(frozen=True)
class Capture:
    """What a store still lacks of a text.

    Build it with `plan_capture`.
    """

    text: Rollout
    keys: tuple[bytes, ...]
    shards: tuple[Shard, ...]
    bytes_a_token: float

    @property
    def rows(self) -> int:
        """Different rows with tokens in the loss."""
        return sum(len(shard.rows) for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Their tokens in the loss."""
        return self._count([row for shard in self.shards for row in shard.rows])

    @property
    def missing_tokens(self) -> int:
        """Tokens that are not in the store."""
        return self._count([row for shard in self.shards for row in shard.missing])

    def bytes_of(self, tokens: int) -> int:
        """Return what so many tokens of this text take on disk, at most."""
        rows = self.rows * tokens / max(1, self.tokens)
        return round(tokens * self.bytes_a_token + rows * _KEY_AND_ENDS)

    def run(
        self,
        store: ScoreStore,
        teacher: LocalTeacher,
        kind: Kind,
        micro_batch_tokens: int,
        on_progress: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        """Score what is missing: each process of a run scores and writes its share of the shards, the first one lists
        them, and the others have to open the store anew.

        Args:
            store: takes the rows; each shard is on the disk before the process begins another one.
            teacher: reads the text.
            kind: what is kept.
            micro_batch_tokens: tokens (padding included) in one forward pass.
            on_progress: told the number of tokens done, shard by shard; what it raises ends the capture.
        """
        everyone, waiting = world(), [shard.missing for shard in self.shards if shard.missing]

        def write(missing: tuple[int, ...]) -> tuple[str, Seal]:
            part = self.text.select(missing)
            records = {}
            for rows in part.micro_batch_rows(micro_batch_tokens):
                records |= dict(zip(rows, kind.records(teacher, part.select(rows)), strict=True))
            return store.write([self.keys[row] for row in missing], [records[row] for row in range(len(part))])

        everyone.main_does(lambda: store.enter({}))
        for first in range(0, len(waiting), everyone.size):
            together = waiting[first : first + everyone.size]
            mine = [together[place] for place in everyone.share(len(together))]
            files = everyone.collect(everyone.agreed(partial(list, map(write, mine))), len(together))
            everyone.main_does(partial(store.enter, dict(files)))
            on_progress(sum(self._count(list(missing)) for missing in together))

    def _count(self, rows: list[int]) -> int:
        positions = self.text.positions_of
        return sum(positions[row] for row in rows)


def plan_capture(text: Rollout, store: ScoreStore, bytes_a_token: float, shard_bytes: int = SHARD_BYTES) -> Capture:
    """Cut a text into shards, and find what is missing of each.

    Args:
        text: rows in any order, and as often as one likes.
        store: what there is already.
        bytes_a_token: what a token costs on disk.
        shard_bytes: about how large a shard is.
    """
    keys, positions, lengths = row_keys(text), text.positions_of, text.lengths
    rows = {key: row for row, key in enumerate(keys) if positions[row]}
    shards: list[list[int]] = []
    filled = float("inf")
    for key in sorted(rows, key=lambda key: (-lengths[rows[key]], key)):
        row = rows[key]
        cost = positions[row] * bytes_a_token
        if filled + cost > shard_bytes:
            shards.append([])
            filled = 0.0
        shards[-1].append(row)
        filled += cost
    plan = tuple(Shard(tuple(part), tuple(row for row in part if keys[row] not in store)) for part in shards)
    return Capture(text, tuple(keys), plan, bytes_a_token)
