"""Trackers get the numbers of a run, and go on with it; their failing is one line."""

import json
import sqlite3
import struct
import time
from contextlib import suppress

import pytest

from tutelage.training import tracking
from tutelage.training.aside import Aside


def logged(name, folder, *steps):
    """What a tracker's own thread says of a run with these steps."""
    said = []
    (tracker,) = tracking.trackers(folder, (name,), 0, said.append)
    tracker._patience = 90.0  # a machine that others use too
    for step in steps:
        tracker.log(step, {"loss": 1 / step, "writer": "student", "nan": float("nan")})
    tracker.close()
    return said


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No login, and a terminal that nobody answers at."""
    for variable in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


def test_wandb_without_a_login_writes_into_the_runs_folder_and_goes_on(offline, tmp_path):
    pytest.importorskip("wandb")
    (tmp_path / "config.yaml").write_text("seed: 5\n", encoding="utf-8")
    assert logged("wandb", tmp_path, 1, 2) == []
    assert logged("wandb", tmp_path, 3) == []
    wanted = [{1: 1.0, 2: 0.5}, {3: pytest.approx(1 / 3)}]
    for _ in range(300):  # its own process writes the file, and a record may be half there
        with suppress(Exception):
            if found_in_wandb(tmp_path) == wanted:
                break
        time.sleep(0.1)
    assert found_in_wandb(tmp_path) == wanted
    runs = {path.stem.removeprefix("run-") for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb")}
    assert runs == {(tmp_path / "tracker_id").read_text()}


def found_in_wandb(folder):
    """The losses by step, session after session: records of Weights & Biases in a log as LevelDB's."""
    from wandb.proto import wandb_internal_pb2 as records

    sessions = []
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        raw, place, losses = path.read_bytes(), 7, {}
        assert len(raw) < 32768  # one block, so no record is cut
        while place < len(raw):
            length, whole = struct.unpack_from("<HB", raw, place + 4)
            assert whole == 1
            record = records.Record.FromString(raw[place + 7 : place + 7 + length])
            items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            if "loss" in items:
                assert "writer" not in items
                losses[record.history.step.num or int(items["_step"])] = json.loads(items["loss"])
            place += 7 + length
        sessions.append(losses)
    return sessions


def test_wandb_is_asked_for_online_only_where_there_is_a_login(offline, tmp_path, monkeypatch):
    assert not tracking._has_login("api.wandb.ai")
    (tmp_path / "none").write_text("machine api.wandb.ai login user password key\n")
    assert tracking._has_login("api.wandb.ai")
    assert not tracking._has_login("elsewhere.example")
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert tracking._has_login("elsewhere.example")


def test_trackio_keeps_the_numbers_and_goes_on(tmp_path, offline):
    trackio = pytest.importorskip("trackio")
    folder = tmp_path / "gkd"
    folder.mkdir()
    assert logged("trackio", folder, 1, 2) == []
    assert logged("trackio", folder, 3) == []
    name = f"gkd-{(folder / 'tracker_id').read_text()}"
    (database,) = (path for path in trackio.utils.TRACKIO_DIR.glob("tutelage*.db"))
    rows = sqlite3.connect(database).execute("select step, metrics from metrics where run_name = ?", (name,)).fetchall()
    losses = {step: json.loads(metrics)["loss"] for step, metrics in rows if "loss" in json.loads(metrics)}
    assert losses == {1: 1.0, 2: 0.5, 3: pytest.approx(1 / 3)}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_every_tracker_works_aside(tmp_path, name):
    """That a tracker which fails or hangs does no harm there is shown in tests/faults/test_folder.py."""
    pytest.importorskip("tensorboard")
    (tracker,) = tracking.trackers(tmp_path, (name,), 0, print)
    assert isinstance(tracker, Aside)
    tracker.close()


def test_a_tracker_that_cannot_begin_says_so_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.WeightsAndBiases, "_begin", lambda self: 1 / 0)
    assert logged("wandb", tmp_path, 1, 2) == [
        "tracker wandb failed (division by zero) and is told no more; metrics.jsonl has everything"
    ]
