"""The preflight: what it shows, what it tries out, and that it leaves nothing behind."""

import os
import subprocess
import sys

import pytest
import yaml
from tests.tiny import mapping

from tutelage.cli import main
from tutelage.commands.dry_run import step_seconds
from tutelage.recipe import recipe_of


def recipe_file(folder, method="gkd", **sections):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(mapping(folder, method, **sections)), encoding="utf-8")
    return path


def everything_in(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize("method", ["gkd", "minillm", "distillm"])  # one step at a time, collections, by the loss
def test_a_dry_run_measures_two_steps_and_leaves_nothing_behind(tmp_path, capsys, method):
    path = recipe_file(tmp_path, method)
    before = everything_in(tmp_path)
    assert main(["check", str(path), "--dry-run"]) == 0
    assert everything_in(tmp_path) == before
    printed = capsys.readouterr().out
    assert "two steps with the real weights:" in printed
    assert "  step 2: " in printed
    assert "6 steps will take about" in printed
    assert "peak memory" in printed


def test_a_dry_run_fails_as_the_run_would(tmp_path, capsys):
    path = recipe_file(tmp_path)
    weights = tmp_path / "llama-student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    before = everything_in(tmp_path)
    assert main(["check", str(path)]) == 0  # which reads no weights
    assert main(["check", str(path), "--dry-run"]) == 2
    assert "cannot be loaded" in capsys.readouterr().err
    assert everything_in(tmp_path) == before


def test_the_sampling_of_a_collection_is_spread_over_its_steps(tmp_path):
    first, second = {"sampling": 12.0, "update": 9.0, "teacher": 9.0}, {"sampling": 0.5, "update": 1.0, "teacher": 2.0}
    each_step = recipe_of(mapping(tmp_path, "gkd"))
    assert step_seconds(each_step, [first, second]) == (12 + 0.5) / 2 + 3
    collected = recipe_of(mapping(tmp_path, "minillm"))  # 18 prompts in batches of 6, used twice: 6 steps
    assert step_seconds(collected, [first, second]) == 12 / 6 + 3


def test_check_tries_out_where_the_run_would_write(tmp_path, capsys):
    path = recipe_file(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["check", str(path), "--output", str(tmp_path / "file" / "run")]) == 2
    assert f"output: {tmp_path / 'file'} is a file; name a folder" in capsys.readouterr().err
    assert main(["check", str(path), "--output", "/proc/run"]) == 2
    assert "output: cannot write into /proc (" in capsys.readouterr().err
    assert main(["check", str(path), "--output", str(tmp_path / "new" / "run")]) == 0
    assert not (tmp_path / "new").exists()


def test_check_asks_for_room_for_the_checkpoints(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tutelage.training.disk._free", lambda folder: 1000)
    path = recipe_file(tmp_path)
    assert main(["check", str(path)]) == 2
    assert "1.0 KB free on" in capsys.readouterr().err


def test_rows_of_a_terminal_are_coloured(tmp_path):
    from rich.console import Console

    from tutelage.commands.check import check
    from tutelage.recipe import load_recipe

    console = Console(force_terminal=True, color_system="standard", record=True, width=200)
    check(load_recipe(recipe_file(tmp_path)), console)
    assert "\x1b[30;42m⟦" in console.export_text(styles=True)


def test_a_traceback_shows_no_secrets(tmp_path):
    """A fault of ours ends with a traceback and status 1; what the environment keeps secret is not in it."""
    code = (
        "import sys, tutelage.cli as cli\n"
        "def fails(command): raise RuntimeError('no answer from https://me:sesame@host with hunter2-hunter2')\n"
        "cli._VERBS['check'] = fails\n"
        "cli.main(['check', 'recipe.yaml'])"
    )
    environment = {**os.environ, "HUB_TOKEN": "hunter2-hunter2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "RuntimeError: no answer from https://[redacted]@host with [redacted]" in done.stderr
    assert "sesame" not in done.stderr
    assert "hunter2" not in done.stderr
