"""The examples run as their first lines say, and learn something."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tiny import write_model, write_rows

EXAMPLES = sorted(Path("examples").glob("*.py"))
"""The tests run from the root of the project."""


def run(*words: str) -> str:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True).stdout


def figures(name: str, printed: str) -> list[float]:
    return [float(value) for value in re.findall(rf"{name} ([\d.]+)", printed)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_says_how_to_start_it(path):
    assert f"    python {path.as_posix()}" in path.read_text(encoding="utf-8").split('"""')[1]


@pytest.mark.parametrize(
    ("path", "name"), [("plain_loop", "loss"), ("custom_objective", "hellinger"), ("trainer_bridge", "loss")]
)
def test_example_learns_on_tiny_models(path, name):
    values = figures(name, run(f"examples/{path}.py"))
    assert len(values) == 20
    assert sum(values[-5:]) < sum(values[:5])


def test_custom_reward_rises_unless_the_divergence_is_all_there_is():
    rewarded, alone = (figures("reward", run("examples/custom_reward.py", "--alpha", alpha)) for alpha in ("0.2", "1"))
    assert len(rewarded) == len(alone) == 20
    assert sum(rewarded[-5:]) / 5 > 2 * sum(rewarded[:3]) / 3
    assert sum(alone[-5:]) / 5 < sum(rewarded[-5:]) / 10


def test_plain_loop_takes_folders_and_writes_a_model(tmp_path):
    student, teacher = write_model(tmp_path / "student", 1), write_model(tmp_path / "teacher", 2)
    rows, out = write_rows(tmp_path / "rows.jsonl"), tmp_path / "trained"
    printed = run("examples/plain_loop.py", str(student), str(teacher), str(rows), "--steps", "2", "--out", str(out))
    assert len(figures("loss", printed)) == 2
    assert (out / "model.safetensors").exists()


def test_plain_loop_is_short():
    assert len(Path("examples/plain_loop.py").read_text(encoding="utf-8").splitlines()) <= 80
