"""Scores on disk: found by their row, whole or not there, and never taken for somebody else's."""

import json
from pathlib import Path

import pytest
import torch

from tutelage.errors import InputError
from tutelage.models import score_store
from tutelage.models.score_store import MANIFEST, ScoreStore, row_keys
from tutelage.rollouts.rollout import Rollout

MINE = {"teacher": "abc", "kind": "hidden"}
TEXT = Rollout.of([[3, 4], [5], [6], [7, 8, 9]], [[6, 7, 1], [8, 1], [1], [2, 2, 2, 2, 1]])
KEYS = row_keys(TEXT)


def records(dtype: torch.dtype = torch.float32) -> list[dict[str, torch.Tensor]]:
    """A state for each token, and a stream of bytes of another length."""
    return [
        {"hidden": torch.randn(n, 3).to(dtype), "ids": torch.randint(0, 255, (2 * n - 1,), dtype=torch.uint8)}
        for n in TEXT.positions_of
    ]


def filled(folder: Path, rows: list[dict[str, torch.Tensor]]) -> ScoreStore:
    """Two shards of two rows each, and a file of its own."""
    store = ScoreStore(folder, MINE)
    store.add_file("head.safetensors", {"weight": torch.ones(2, 2)}, {"scale": 2.0, "softcap": None})
    store.add(KEYS[:2], rows[:2])
    store.add(KEYS[2:], rows[2:])
    return store


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_row_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = records(dtype)
    for store in (filled(tmp_path, rows), ScoreStore(tmp_path, MINE)):
        assert len(store) == 4
        for row in (2, 0, 3, 1, 1):
            found = store.get(KEYS[row])
            assert found.keys() == rows[row].keys()
            for name, tensor in rows[row].items():
                assert found[name].dtype == tensor.dtype
                assert torch.equal(found[name], tensor)
        assert store.file("head.safetensors")[1] == {"scale": 2.0, "softcap": None}  # type: ignore[index]
        assert store.size == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))


def test_a_row_is_its_prompt_response_and_mask_and_nothing_else() -> None:
    same = Rollout.of([[3, 4]], [[6, 7, 1]], writer="teacher", items=[17], logps=[[0.0] * 3])
    assert row_keys(same)[0] == KEYS[0]
    others = [
        Rollout.of([[3]], [[4, 6, 7, 1]]),
        Rollout.of([[3, 4]], [[6, 7, 1]], masks=[[False, True, True]]),
        Rollout.of([[4, 3]], [[6, 7, 1]]),
        Rollout.of([[3, 4]], [[6, 7]]),
    ]
    assert len({KEYS[0], *(row_keys(other)[0] for other in others)}) == 5


def test_rows_that_are_not_there_are_not_there(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path / "none", MINE)
    assert len(store) == store.size == store.size_of("head.safetensors") == 0
    assert KEYS[0] not in store
    assert store.file("head.safetensors") is None
    assert not (tmp_path / "none").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def swap(path: Path) -> None:
    other = next(shard for shard in shards(path.parent) if shard != path)
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (Path.unlink, "is missing"),
        (cut, "the manifest says"),
        (flip, "does not match its checksum"),
        (swap, "the manifest says|checksum"),
    ],
)
def test_a_damaged_shard_is_named_and_only_its_rows_are_captured_anew(tmp_path: Path, damage, fault: str) -> None:
    rows = records()
    filled(tmp_path, rows)
    complete = {path.name: path.read_bytes() for path in shards(tmp_path)}
    bad, good = shards(tmp_path)
    damage(bad)
    with pytest.raises(InputError, match=rf"{bad.name} .*({fault}).*`tutelage cache RECIPE`"):
        ScoreStore(tmp_path, MINE)
    told: list[str] = []
    store = ScoreStore(tmp_path, MINE, on_damage=lambda path, fault: told.append(path.name))
    assert told == [bad.name]
    missing = [row for row in range(4) if KEYS[row] not in store]
    assert missing in ([0, 1], [2, 3])
    untouched = good.stat().st_mtime_ns
    store.add([KEYS[row] for row in missing], [rows[row] for row in missing])
    assert {path.name: path.read_bytes() for path in shards(tmp_path)} == complete
    assert good.stat().st_mtime_ns == untouched
    assert len(ScoreStore(tmp_path, MINE)) == 4


def test_a_kill_while_a_shard_is_written_costs_that_shard_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = records()
    store = ScoreStore(tmp_path, MINE)
    store.add(KEYS[:2], rows[:2])
    with monkeypatch.context() as patch:

        def killed(tensors, path, metadata) -> None:
            Path(path).write_bytes(b"half a shard")
            raise KeyboardInterrupt

        patch.setattr(score_store, "save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            store.add(KEYS[2:], rows[2:])
    again = ScoreStore(tmp_path, MINE)
    assert [key in again for key in KEYS] == [True, True, False, False]
    again.add(KEYS[2:], rows[2:])
    assert torch.equal(ScoreStore(tmp_path, MINE).get(KEYS[3])["hidden"], rows[3]["hidden"])


def test_a_kill_between_a_shard_and_the_manifest_leaves_the_old_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = records()
    store = ScoreStore(tmp_path, MINE)
    store.add(KEYS[:2], rows[:2])
    with monkeypatch.context() as patch:
        patch.setattr(ScoreStore, "_write_manifest", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.add(KEYS[2:], rows[2:])
    assert len(ScoreStore(tmp_path, MINE)) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": {}}', '{"files": {"a": {"size": 1}}, "schema": 1}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: str) -> None:
    filled(tmp_path, records())
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(InputError, match=rf"{MANIFEST} cannot be read"):
        ScoreStore(tmp_path, MINE)
    assert len(ScoreStore(tmp_path, MINE, on_damage=lambda path, fault: None)) == 0


def test_somebody_elses_scores_are_refused_with_the_difference(tmp_path: Path) -> None:
    filled(tmp_path, records())
    with pytest.raises(InputError, match="teacher: abc there, xyz here"):
        ScoreStore(tmp_path, {**MINE, "teacher": "xyz"})
    with pytest.raises(InputError, match=r"mass: None there, 0\.5 here"):
        ScoreStore(tmp_path, {**MINE, "mass": 0.5})
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(InputError, match="format 99"):
        ScoreStore(tmp_path, MINE)


def test_what_is_not_known_here_is_not_compared_and_not_forgotten(tmp_path: Path) -> None:
    filled(tmp_path, records())
    store = ScoreStore(tmp_path, {**MINE, "teacher": None})
    store.add_file("more.safetensors", {"a": torch.zeros(1)})
    assert len(ScoreStore(tmp_path, MINE)) == 4
