"""Scores, rewards and evaluations: each process computes its share, and all have the numbers that one would have."""

import json
import math
import subprocess
from typing import Any

import pytest
from tests.distributed.comparing import QUIET, assert_close
from tests.distributed.launch import HERE, environment, launched, torchrun
from tests.distributed.scores import scores
from tests.tiny import mapping, write_model

from tutelage.recipe import recipe_of
from tutelage.training.run import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    for role, seed in (("student", 1), ("teacher", 2)):
        write_model(folder / f"llama-{role}", seed)
    return folder


def together(folder, cut: str, processes: int) -> list[dict]:
    command = [*torchrun(processes), str(HERE / "scores.py"), str(folder), cut]
    done = subprocess.run(command, env=environment(), timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"scores-{cut}-{processes}-{rank}.json").read_text()) for rank in range(processes)]


def same(found: Any, wanted: Any, exactly: bool) -> None:
    """Models that are cut put their weights elsewhere in the memory, which moves the last bits of products."""
    if isinstance(wanted, float):
        assert found == (wanted if exactly else pytest.approx(wanted, rel=1e-5, abs=1e-6))
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name in wanted:
            same(found[name], wanted[name], exactly)
    elif isinstance(wanted, list):
        for one, other in zip(found, wanted, strict=True):
            same(one, other, exactly)
    else:
        assert found == wanted


def test_memory_that_runs_out_in_one_process_leaves_all_with_the_same_parts(tmp_path):
    recipe = mapping(tmp_path, "minillm", output=str(tmp_path / "short"))
    assert launched(tmp_path, [{"recipe": recipe, "short": 1}]) == [["finished", "finished"]]
    train(recipe_of({**recipe, "output": str(tmp_path / "enough")}), **QUIET)
    assert_close(tmp_path / "enough", tmp_path / "short")
    state = next((tmp_path / "short" / "checkpoints").glob("step-*")) / "state.json"
    assert json.loads(state.read_text())["sizes"]["micro_batch"] == {"asked": 24, "fits": 12}


@pytest.mark.parametrize(
    ("cut", "processes", "share"),
    [
        ("none", 2, 1),
        ("run", 2, 1 / 2),
        pytest.param("none", 3, 1, marks=pytest.mark.slow),
        pytest.param("run", 4, 1 / 4, marks=pytest.mark.slow),
        pytest.param("host", 4, 1 / 2, marks=pytest.mark.slow),
    ],
)
def test_each_process_computes_its_share_and_has_all(folder, cut, processes, share):
    whole = json.loads(json.dumps(scores(folder, "none")))
    rows = whole["rewarded"]
    assert whole["parts"] % processes, "some process should have a part less"
    found = together(folder, cut, processes)
    for rank, each in enumerate(found):
        same(each["found"], whole["found"], exactly=cut == "none")
        assert each["passes"] == 4 * math.ceil(whole["parts"] / processes)
        assert each["share"] == pytest.approx(share, rel=0.2)  # not every size is divisible
        assert each["rewarded"] == rows[rank::processes]
    assert whole["passes"] == 4 * whole["parts"]
