"""A tiny study through the real command line: shards, an interruption, a failure, and what is collected."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tutelage.cli import main
from tutelage.errors import DivergedError
from tutelage.studies import runner

START = str(Path("recipes/tiny/start.yaml").resolve())
BASE = str(Path("recipes/tiny/gkd.yaml").resolve())
"""The tests run from the root of the project."""


def write_study(folder: Path, **changes) -> str:
    """A study of two methods with two seeds, two steps a run, measured on four items."""
    task = {
        "name": "few",
        "description": "Four problems",
        "data": {"source": "runs/demo/data/test.jsonl", "limit": 4},
        "decoding": {"max_new_tokens": 4},
        "metrics": [{"name": "exact_answer", "answer": "tutelage.demo.task:answer"}, "loss"],
    }
    small = {"train.steps": 2, "train.warmup_steps": 0, "train.batch_size": 4, "data.validation": None}
    whole = {
        "name": "tiny",
        "title": "A tiny study",
        "paper": "None.",
        "root": "runs/demo",
        "prepare": "tutelage.demo.run:prepare",
        "starts": [{"name": "start", "recipe": START, "set": small}],
        "base": BASE,
        "runs": [
            {"label": "sft", "set": {"method": {"name": "sft"}, "data.train": "runs/demo/data/labels.jsonl", **small}},
            {"label": "gkd, λ = 1", "set": {**small, "method.student_decoding.max_new_tokens": 4}},
        ],
        "seeds": [0, 1],
        "tasks": [task],
        "threads": 1,
        "collect": [
            {"kind": "table", "name": "table", "title": "All", "metrics": ["few.loss", "few.exact_answer"],
             "baseline": "sft"},
            {"kind": "curve", "name": "training", "title": "Loss", "logged": "loss", "only": {"run": ["sft"]}},
        ],
        **changes,
    }  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return str(path)


def study(path: str, folder: Path, *words: str) -> int:
    return main(["study", path, "--folder", str(folder), *words])


def test_shards_together_make_the_whole_study(tmp_path, capsys):
    path, folder = write_study(tmp_path), tmp_path / "out"
    assert study(path, folder, "--dry-run") == 0
    assert "6 runs" in capsys.readouterr().out
    assert not folder.exists()
    assert study(path, folder, "--shard", "1/2") == 0
    assert "2 of 6 runs are still to be made" in capsys.readouterr().out  # seed by seed: sft is the first share's
    assert not (folder / "results").exists()
    assert study(path, folder, "--shard", "2/2") == 0
    names = {path.name for path in (folder / "seed-0").iterdir() if path.is_dir()}
    assert names == {"data", "teacher", "start", "sft", "gkd-1"}
    results = json.loads((folder / "results" / "tiny" / "results.json").read_text(encoding="utf-8"))
    assert {(run["name"], run["seed"], run["status"]) for run in results["runs"]} == {
        (name, seed, "finished") for name in ("start", "sft", "gkd, λ = 1") for seed in (0, 1)
    }
    table = results["outcomes"][0]
    assert [row[0] for row in table["rows"]] == ["start", "sft", "gkd, λ = 1"]
    for run in results["runs"]:
        values = table["values"][run["name"]]["few.loss"]
        assert run["values"]["few.loss"]["value"] == values[run["seed"]]
    page = (folder / "results" / "tiny" / "results.md").read_text(encoding="utf-8")
    assert "| sft |" in page
    assert "![Loss](training.svg)" in page
    assert (folder / "results" / "tiny" / "training.svg").read_text(encoding="utf-8").startswith("<svg")


def test_shares_that_run_at_the_same_time_do_not_clash(tmp_path):
    path, folder = write_study(tmp_path), tmp_path / "out"
    command = [sys.executable, "-m", "tutelage", "study", path, "--folder", str(folder), "--shard"]
    shares = [subprocess.Popen([*command, f"{number}/2"], stdout=subprocess.PIPE, text=True) for number in (1, 2)]
    said = [share.communicate()[0] for share in shares]
    assert [share.returncode for share in shares] == [0, 0]
    assert sum(text.count("start: start") for text in said) == 2, "one start a seed, whoever makes it"
    results = json.loads((folder / "results" / "tiny" / "results.json").read_text(encoding="utf-8"))
    assert {run["status"] for run in results["runs"]} == {"finished"}


def test_it_goes_on_after_a_signal_and_does_nothing_twice(tmp_path, monkeypatch, capsys):
    path, folder = write_study(tmp_path), tmp_path / "out"
    original, made = runner.train, []

    def train(recipe, **options):
        made.append(recipe.output)
        if len(made) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(recipe, **options)

    monkeypatch.setattr(runner, "train", train)
    assert study(path, folder) == 75
    done = {path: path.stat().st_mtime_ns for path in folder.glob("seed-*/*/model/model.safetensors")}
    assert len(done) == 2
    assert study(path, folder) == 0
    assert len(list(folder.glob("seed-*/*/model/model.safetensors"))) == 6
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    records = {path: path.stat().st_mtime_ns for path in folder.glob("seed-*/*/evaluations/few.json")}
    assert len(records) == 6
    capsys.readouterr()
    assert study(path, folder) == 0
    assert all(path.stat().st_mtime_ns == when for path, when in records.items())


def test_a_run_that_diverges_is_noted_and_the_study_goes_on(tmp_path, monkeypatch, capsys):
    path, folder = write_study(tmp_path, seeds=[0]), tmp_path / "out"
    original = runner.train

    def train(recipe, **options):
        if recipe.method.name == "sft" and recipe.output.endswith("sft"):
            raise DivergedError("the loss is nan")
        return original(recipe, **options)

    monkeypatch.setattr(runner, "train", train)
    assert study(path, folder) == 3
    assert "1 of 3 runs diverged: sft (seed 0)" in capsys.readouterr().err
    page = (folder / "results" / "tiny" / "results.md").read_text(encoding="utf-8")
    assert "| sft | failed | failed |" in page
    assert "Diverged: sft, seed 0." in page
    monkeypatch.setattr(runner, "train", original)
    assert study(path, folder) == 0


def test_a_changed_study_is_refused(tmp_path, capsys):
    path, folder = write_study(tmp_path, seeds=[0]), tmp_path / "out"
    assert study(path, folder) == 0
    assert study(path, folder, "--train.learning-rate", "0.5") == 2
    assert "holds a run of another recipe (train.learning_rate" in capsys.readouterr().err


def test_a_run_that_another_process_makes_is_left_out(tmp_path, capsys):
    path, folder = write_study(tmp_path, seeds=[0]), tmp_path / "out"
    with runner.held(folder / "seed-0" / ".sft.lock", wait=False):
        assert study(path, folder) == 0
    assert "another process is at it; left out" in capsys.readouterr().out
    assert not (folder / "seed-0" / "sft").exists()


@pytest.mark.parametrize(
    ("changes", "words", "said"),
    [
        ({"grid": {"method.divergense": ["jsd(0.5)"]}, "runs": []}, [], "unknown key 'method.divergense'"),
        ({"runs": [{"label": "a"}, {"label": "a"}]}, [], "two runs are called 'a'"),
        ({"base": "nothing.yaml"}, [], "recipes of a study are looked for beside it"),
        ({"prepare": "tutelage.demo.run:nothing"}, [], "prepare: cannot find tutelage.demo.run:nothing"),
        ({"base": None}, [], "give either base or function"),
        ({"collect": [{"kind": "heatmap", "name": "a", "title": "a", "x": "b", "y": "run", "metric": "few.loss"}]},
         [], "no axis 'b'; known: run"),
        ({}, ["--shard", "3/2"], "--shard 3/2: expected the number of a share"),
        ({"tasks": ["nothing"]}, [], "no task 'nothing'"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_runs(tmp_path, capsys, changes, words, said):
    assert study(write_study(tmp_path, **changes), tmp_path / "out", *words) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("out/seed-*/start"))


def test_no_such_study(capsys):
    assert main(["study", "studies/none.yaml"]) == 2
    assert "no study at studies/none.yaml" in capsys.readouterr().err
