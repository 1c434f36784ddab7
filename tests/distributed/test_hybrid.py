"""Models cut over the processes of each host, the hosts holding the same: the run of one process."""

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.distributed.comparing import QUIET, assert_close
from tests.distributed.launch import HERE, free_port, started, torchrun, written_jobs
from tests.tiny import mapping, write_model
from transformers import AutoModelForCausalLM

from tutelage.errors import InputError
from tutelage.models import sharding
from tutelage.recipe import recipe_of
from tutelage.training.run import train

RUNS = ("gkd", "minillm", "moment-matching", "gkd on t5", "gkd on lora")
HYBRID = {"shard": "both", "shard_within": "host"}


def test_hosts_with_different_numbers_of_processes_are_refused(monkeypatch, tmp_path):
    uneven = SimpleNamespace(size=3, gather=lambda mine: [2, 2, 1])
    monkeypatch.setattr(sharding, "world", lambda: uneven)
    model = AutoModelForCausalLM.from_pretrained(write_model(tmp_path, 1))
    with pytest.raises(InputError, match="hosts have 1 to 2 processes"):
        sharding.shard(model, "student", "host")


def recipe(folder: Path, run: str, output: str) -> dict:
    method, _, kind = run.partition(" on ")
    whole = mapping(folder, method, kind="t5" if kind == "t5" else "llama", train=HYBRID, output=str(folder / output))
    if kind == "lora":
        pytest.importorskip("peft")
        whole["student"] |= {"adapter": {"rank": 2, "targets": ["q_proj", "v_proj"]}}
    return whole


@pytest.mark.slow
def test_four_processes_on_two_hosts_make_the_run_of_one(tmp_path):
    """Two torchruns on this machine; the first method is stopped, and goes on by itself in one process."""
    jobs: list[dict[str, Any]] = [{"recipe": recipe(tmp_path, run, f"four-{run}")} for run in RUNS]
    jobs[0] |= {"step": 3, "rank": 2, "signal": "SIGTERM"}
    path, port = written_jobs(tmp_path, jobs), str(free_port())
    with ExitStack() as running:
        hosts = []
        for place in range(2):
            there = ("--nnodes", "2", "--node-rank", str(place), "--master-addr", "127.0.0.1", "--master-port", port)
            command = [*torchrun(2, *there), str(HERE / "worker.py"), str(path)]
            hosts.append(running.enter_context(started(tmp_path / f"log-{place}", command)))
        assert [host.agent.wait(300) for host in hosts] == [0, 0], hosts[0].said + hosts[1].said
        assert "saved at step 3 of 6" in hosts[0].said
    for run in RUNS:
        train(recipe_of(recipe(tmp_path, run, f"four-{run}")), **QUIET)
        train(recipe_of(recipe(tmp_path, run, f"one-{run}")), **QUIET)
        assert_close(tmp_path / f"one-{run}", tmp_path / f"four-{run}")
