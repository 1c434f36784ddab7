"""Every study of the project loads: its recipes, its tasks, and what it collects."""

from pathlib import Path

import pytest

from tutelage.cli import main
from tutelage.evaluation.metrics import METRICS
from tutelage.studies.plan import planned
from tutelage.studies.runner import function_named
from tutelage.studies.study import load_study

STUDIES = sorted(Path("studies").glob("*.yaml"))
"""The tests run from the root of the project."""


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_study_loads(path, tmp_path):
    study = load_study(path)
    assert study.name == path.stem
    runs = planned(study, path.parent, tmp_path)
    for function in filter(None, (study.prepare, study.function)):
        assert callable(function_named(function, path.name))
    folders = [run.folder for run in runs]
    assert len(set(folders)) == len(folders)
    names = {run.name for run in runs}
    tasks = {task.name for run in runs for task in run.tasks}
    for output in study.collect:
        for key in ("baseline", "relative_to"):
            assert getattr(output, key, None) in (None, *names)
        metrics = [*getattr(output, "metrics", ()), *filter(None, [getattr(output, "metric", None)])]
        assert {metric.partition(".")[0] for metric in metrics} <= tasks
        assert set(getattr(output, "tasks", ())) <= tasks
        assert getattr(output, "task", None) in (None, *tasks)
    for run in runs:
        for task in run.tasks:
            assert task.data.source.startswith(str(run.folder.parent)), "every seed has its own data"
            assert {metric.name for metric in task.metrics} <= set(METRICS)
        if run.recipe is not None:
            assert run.recipe.data.train.startswith(str(run.folder.parent))


def test_runs_that_studies_share_are_the_same_runs(tmp_path):
    """A study of another one's runs finds them finished, so their recipes must agree to the last key."""
    everything = {
        run.folder: run.recipe for run in planned(load_study("studies/methods.yaml"), Path("studies"), tmp_path)
    }
    sharing = [path for path in STUDIES if load_study(path).of == "methods.yaml"]
    assert len(sharing) > 5
    for path in sharing:
        study = load_study(path)
        assert study.folder == "methods"
        for run in planned(study, path.parent, tmp_path):
            assert everything[run.folder] == run.recipe


def test_every_method_of_the_benchmark_is_in_the_study(tmp_path):
    names = {run.name for run in planned(load_study("studies/methods.yaml"), Path("studies"), tmp_path)}
    assert len(names) == 24  # 22 methods, the start and the teacher
    assert {"gkd, λ = 1, jsd(0.5)", "minillm, no length normalisation", "moment-matching (AMMD), greedy"} <= names


@pytest.mark.parametrize("name", ["imitation-gap", "mode-seeking"])
def test_studies_without_runs_run(name, tmp_path, capsys):
    assert main(["study", f"studies/{name}.yaml", "--folder", str(tmp_path)]) == 0
    assert (tmp_path / "results" / name / "results.md").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("of: nothing.yaml", "of: no study at"),
        ("of: other.yaml\npick: [nothing]", "pick: other.yaml has no run 'nothing'; it has sft"),
    ],
)
def test_studies_of_others_say_what_is_missing(tmp_path, capsys, text, said):
    (tmp_path / "other.yaml").write_text("runs: [{label: sft}]", encoding="utf-8")
    (tmp_path / "study.yaml").write_text(f"name: a\ntitle: a\npaper: a\n{text}\n", encoding="utf-8")
    assert main(["study", str(tmp_path / "study.yaml"), "--dry-run"]) == 2
    assert said in capsys.readouterr().err
