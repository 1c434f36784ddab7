"""Every benchmark runs, at toy size, so that none of them rots."""

import json
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
CASES = {
    "gpu.py": [["--toy", "--device", "cpu"]],
    # The memory of each contender is measured in a process of its own, which would take longer than all the rest.
    "on_policy_step.py": [
        ["--toy", "--rounds", "1", "--only", "time"],
        ["--toy", "--memory-of", "tutelage"],
        ["--toy", "--memory-of", "trl, checkpointing"],
    ],
    "startup.py": [["--toy", "--rounds", "1"]],
}
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))
RUNS = [(script, words) for script in SCRIPTS for words in CASES.get(script, [["--toy"]])]


@pytest.mark.parametrize(("script", "words"), RUNS, ids=[" ".join([script, *words]) for script, words in RUNS])
def test_it_runs_at_toy_size(script, words, monkeypatch, tmp_path, capsys):
    path = FOLDER / script
    if "from trl" in path.read_text(encoding="utf-8"):
        pytest.importorskip("trl", reason="the peer of this benchmark")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [str(path), *words])
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    if "--memory-of" in words:
        assert int(printed.splitlines()[-1]) >= 0
    else:
        assert "\n|---|" in printed, "it prints a table"
        for saved in (tmp_path / "runs" / "benchmarks").glob("*.json"):
            assert json.loads(saved.read_text())["machine"]


def test_without_cuda_the_gpu_benchmark_says_so_at_once(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [str(FOLDER / "gpu.py")])
    with pytest.raises(SystemExit, match="torch finds no CUDA here"):
        runpy.run_path(str(FOLDER / "gpu.py"), run_name="__main__")
