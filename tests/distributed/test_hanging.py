"""A process that says nothing more: the others give up in time and say so, and the same command goes on."""

import json
import os
import signal
from pathlib import Path

import pytest
import yaml
from tests.distributed.command import MESSAGE
from tests.distributed.comparing import QUIET, assert_close
from tests.distributed.launch import HERE, launched, started, torchrun
from tests.tiny import mapping

from tutelage.recipe import recipe_of
from tutelage.training.run import train

LONG = pytest.mark.fault


@pytest.mark.parametrize(
    ("rank", "at", "do"),
    [
        pytest.param(1, "step", "SIGSTOP", marks=LONG),
        pytest.param(0, "step", "SIGSTOP", marks=LONG),
        pytest.param(1, "step", "sleep", marks=LONG),
        (0, "save", "sleep"),
    ],
)
def test_the_others_give_up_in_time_and_the_run_goes_on(tmp_path, rank, at, do):
    recipe = mapping(tmp_path, "gkd", train={"save_every": 2}, output=str(tmp_path / "hung-run"))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    fault = json.dumps({"rank": rank, "at": at, "do": do})
    command = [*torchrun(2), str(HERE / "command.py"), "train", str(path)]
    with started(tmp_path / "log", command, FAULT=fault, TUTELAGE_TIMEOUT_MINUTES="0.25") as run:
        run.until((tmp_path / "hung").exists)
        assert run.until(lambda: MESSAGE in run.said, 120) < 15 + 40
        if do == "sleep":  # the one that slept has said where
            run.until(lambda: "fall_silent" in run.said, 60)
            assert "Timeout (0:00:15)" in run.said
        run.until(lambda: "closing signal SIGTERM" in run.said)
        os.kill(int((tmp_path / "hung").read_text()), signal.SIGKILL)  # torchrun does, after 30 seconds
        assert run.agent.wait(60) == 1
        assert ("tutelage (process 1): " if rank == 0 else "tutelage: ") + MESSAGE in run.said
        assert "Traceback" not in run.said.partition("closing signal")[0]
    assert [each.name for each in (tmp_path / "hung-run" / "checkpoints").glob("step-*")] == ["step-00000002"]
    assert launched(tmp_path, [{"recipe": recipe}]) == [["finished", "finished"]]
    train(recipe_of({**recipe, "output": str(tmp_path / "whole")}), **QUIET)
    assert_close(tmp_path / "whole", tmp_path / "hung-run")


@LONG
def test_torchrun_ends_a_stopped_process_by_itself(tmp_path):
    recipe = mapping(tmp_path, "sft", train={"save_every": 2}, output=str(tmp_path / "run"))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    fault = json.dumps({"rank": 1, "at": "step", "do": "SIGSTOP"})
    command = [*torchrun(2), str(HERE / "command.py"), "train", str(path)]
    with started(tmp_path / "log", command, FAULT=fault, TUTELAGE_TIMEOUT_MINUTES="0.1") as run:
        run.until((tmp_path / "hung").exists)
        assert run.agent.wait(120) == 1
        assert not Path("/proc", (tmp_path / "hung").read_text()).exists()


@pytest.mark.parametrize("given", ["soon", "0", "-1", "inf", "nan"])
def test_a_limit_that_is_no_time_is_refused(monkeypatch, given):
    from tutelage.errors import InputError
    from tutelage.world import joined

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TUTELAGE_TIMEOUT_MINUTES", given)
    with pytest.raises(InputError, match=f"TUTELAGE_TIMEOUT_MINUTES is '{given}'"), joined():
        pass
