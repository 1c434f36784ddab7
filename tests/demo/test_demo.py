"""The demo's teacher knows its task, its recipes are what the demo runs, and the demo runs through."""

import dataclasses
import json
from pathlib import Path

import pytest

from tutelage.cli import main
from tutelage.demo import run as demo
from tutelage.demo import task
from tutelage.demo.teacher import SHIPPED

CONTINUATIONS = ("sft", "supervised-kd", "gkd", "teacher-text")


def test_the_shipped_teacher_is_small_and_knows_its_task(tmp_path):
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 8 * 2**20
    task.write(tmp_path / "data", 5, labels=1, prompts=0, tests=100)
    line = demo._measured("teacher", SHIPPED, tmp_path, 0, None)
    assert line.greedy.value >= 0.97
    assert line.sampled.value >= 0.95


def test_the_continuations_differ_in_nothing_but_method_and_text():
    recipes = [demo.demo_recipe(name, Path("runs/demo"), 0) for name in CONTINUATIONS]
    assert len({recipe.train for recipe in recipes}) == 1
    assert len({recipe.student for recipe in recipes}) == 1
    assert len({dataclasses.replace(recipe.data, train="").validation for recipe in recipes}) == 1


@pytest.mark.parametrize("control", [False, True])
def test_the_demo_runs_through_and_twice(tmp_path, monkeypatch, capsys, control):
    short = demo.demo_recipe

    def two_steps(name, folder, seed):
        recipe = short(name, folder, seed)
        return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, steps=2))

    monkeypatch.setattr(demo, "demo_recipe", two_steps)
    monkeypatch.setattr(demo, "TESTS", 20)
    words = ["demo", "--folder", str(tmp_path), *(["--control"] if control else [])]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert main(words) == 0
    for expected in ("on-policy GKD", "% right, greedy", "teacher", "Everything lies in"):
        assert expected in first
    lines = json.loads((tmp_path / "demo.json").read_text())
    assert len(lines) == (6 if control else 5)
    assert lines[0]["greedy"]["value"] > 0.9
    assert lines[0]["parameters"] > 10 * lines[1]["parameters"]
