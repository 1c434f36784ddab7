"""The teacher's cache of a run of several processes: each captures its share, one lists it, and all read it."""

import json
import subprocess
from functools import partial
from pathlib import Path

import yaml
from tests.distributed.comparing import QUIET, assert_close
from tests.distributed.launch import HERE, environment, launched, torchrun
from tests.tiny import mapping

from tutelage.models.capture import plan_capture
from tutelage.models.score_store import MANIFEST
from tutelage.recipe import recipe_of
from tutelage.training import teacher_cache as cache_module
from tutelage.training.run import train


def without_teacher(folder: Path, name: str) -> dict:
    """The text is that of the data, so the cache is all there is of the teacher."""
    whole = mapping(folder, "supervised-kd", output=str(folder / name), evaluation={"metrics": ["loss"]})
    return {**whole, "teacher_cache": {"kind": "hidden"}}


def recipe(folder: Path, name: str) -> dict:
    """The text is the teacher's, written by it beforehand."""
    whole = mapping(folder, "gkd", output=str(folder / name))
    whole["method"] |= {"student_fraction": 0.0, "offline": "teacher", "teacher_decoding": {"max_new_tokens": 5}}
    return {**whole, "teacher_cache": {"kind": "hidden"}}


def files(output: Path) -> dict:
    return json.loads((output / "teacher_cache" / MANIFEST).read_text())["files"]


def test_two_processes_make_the_cache_of_one(tmp_path, monkeypatch):
    job = {"recipe": recipe(tmp_path, "two"), "shard_bytes": 1000}
    alone = {"recipe": without_teacher(tmp_path, "alone")}
    assert launched(tmp_path, [alone, job]) == [["finished", "finished"]] * 2
    monkeypatch.setattr(cache_module, "plan_capture", partial(plan_capture, shard_bytes=1000))
    train(recipe_of(recipe(tmp_path, "one")), **QUIET)
    one, two = tmp_path / "one", tmp_path / "two"
    assert files(two) == files(one)  # names, sizes and checksums
    assert (two / "teacher_text.jsonl").read_text() == (one / "teacher_text.jsonl").read_text()
    shares = [(tmp_path / f"shards-{rank}").read_text().split() for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(name for name in files(two) if name.startswith("shard-"))
    assert min(map(len, shares)) > 1
    assert_close(one, two)


def test_the_command_is_shared_too_and_speaks_once(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(tmp_path, "cached")))
    command = [*torchrun(2), str(HERE / "command.py"), "cache", str(path)]
    done = subprocess.run(command, env=environment(), timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(" rows, ") == 1
    said: list[str] = []
    train(recipe_of(recipe(tmp_path, "cached")), report=said.append)
    assert not any("to score" in line for line in said)
