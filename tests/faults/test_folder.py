"""What else can go wrong around a run's folder: two runs, other recipes, side services, what is kept of it."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from tests.faults.runs import assert_same_results, run, start, write_recipe
from tests.faults.test_signals import told_to_stop, until
from tests.tiny import mapping, write_model

from tutelage.errors import InputError, Stopped, TutelageError
from tutelage.recipe import recipe_of
from tutelage.training import export, tracking, update
from tutelage.training.checkpoint import steps_kept
from tutelage.training.run import train

SILENT = {"report": lambda text: None}


def stopped_run(folder: Path, **sections) -> list[str]:
    """A run that was stopped in its third step; the words that go on with it."""
    words = write_recipe(folder, "gkd", **sections)
    assert start(words, folder / "log", told_to_stop(update.Updater, "_check_and_clip", 3)).wait() == 75
    return words


def test_a_second_run_in_the_same_folder_is_refused_and_a_dead_one_is_no_hindrance(tmp_path):
    words = write_recipe(tmp_path, "gkd")

    def slow() -> None:
        original = update.Updater._check_and_clip

        def waiting(self, *arguments):
            (tmp_path / "working").touch()
            time.sleep(60)
            original(self, *arguments)

        update.Updater._check_and_clip = waiting

    first = start(words, tmp_path / "first.log", slow)
    until((tmp_path / "working").exists)
    second = start(words, tmp_path / "second.log")
    assert second.wait() == 2
    assert f"run is active (pid {first.pid} on host {os.uname().nodename} since " in second.said
    first.kill()
    assert first.wait() == -9
    run(words, tmp_path / "third.log")


@pytest.mark.parametrize(
    ("word", "allowed"),
    [
        (["--train.learning-rate", "0.02"], "train.learning_rate"),
        (["--method.student-fraction", "0.25"], "method"),
        (["--seed", "3"], "seed"),
    ],
)
def test_a_changed_recipe_is_refused_with_the_difference_unless_it_is_allowed(tmp_path, word, allowed):
    words = [*stopped_run(tmp_path), *word]
    refused = start(words, tmp_path / "log")
    assert refused.wait() == 2
    key = word[0].removeprefix("--").replace("-", "_")
    assert f"{key}: " in refused.said
    assert f"→ {word[1]}" in refused.said
    assert f"--allow-change {key}" in refused.said
    assert "resuming from step 2" in run([*words, "--allow-change", f"output,{allowed}"], tmp_path / "log").said
    assert start(words[:2], tmp_path / "log").wait() == 2  # now the first recipe is the other one


def test_a_method_or_student_cannot_be_allowed_to_change(tmp_path):
    words = [*stopped_run(tmp_path), "--allow-change", "method.name"]
    refused = start(words, tmp_path / "log")
    assert refused.wait() == 2
    assert "a checkpoint fits the method and the student" in refused.said
    other = start([*words[:2], "--method.name", "supervised-kd", "--allow-change", "method"], tmp_path / "log")
    assert other.wait() == 2


def changed_rows(folder: Path) -> None:
    rows = folder / "rows.jsonl"
    rows.write_text(rows.read_text().replace('"b c"', '"c b"'))


def changed_teacher(folder: Path) -> None:
    shutil.rmtree(folder / "llama-teacher")
    write_model(folder / "llama-teacher", 5)


def changed_tokenizer(folder: Path) -> None:
    for role in ("student", "teacher"):
        path = folder / f"llama-{role}" / "tokenizer.json"
        content = json.loads(path.read_text())
        vocabulary = content["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message", "allowed"),
    [
        (changed_rows, "the training rows in", "data"),
        (changed_teacher, "has other weights than the one that", "teacher"),
        (changed_tokenizer, "the tokenizer is not the one that", "tokenizer"),
    ],
)
def test_what_a_run_depends_on_is_refused_when_it_changed_unless_it_is_allowed(tmp_path, change, message, allowed):
    words = stopped_run(tmp_path)
    change(tmp_path)
    refused = start(words, tmp_path / "log")
    assert refused.wait() == 2
    assert message in refused.said
    assert f"--allow-change {allowed}" in refused.said
    others = ",".join({"data", "teacher", "tokenizer"} - {allowed})
    assert start([*words, "--allow-change", others], tmp_path / "log").wait() == 2
    allowing = f"teacher,{allowed}" if allowed == "tokenizer" else allowed  # it lies in the teacher's folder too
    assert "resuming from step 2" in run([*words, "--allow-change", allowing], tmp_path / "log").said


def test_a_teacher_that_only_an_evaluation_needs_may_come_and_go(tmp_path):
    words = write_recipe(tmp_path, "sft")
    assert start(words, tmp_path / "log", told_to_stop(update.Updater, "_check_and_clip", 3)).wait() == 75
    assert "resuming from step 2" in run([*words, "--evaluation.metrics", "[agreement]"], tmp_path / "log").said


def test_critics_that_no_longer_fit_are_refused(tmp_path):
    words = write_recipe(tmp_path, "moment-matching")
    assert start(words, tmp_path / "log", told_to_stop(update.Updater, "_check_and_clip", 7)).wait() == 75
    refused = start([*words, "--method.critic-rank", "2", "--allow-change", "method.critic_rank"], tmp_path / "log")
    assert refused.wait() == 2
    assert "does not fit this recipe" in refused.said
    assert "Traceback" not in refused.said


def test_other_versions_of_the_packages_are_noted(tmp_path):
    words = stopped_run(tmp_path)

    def other_version() -> None:
        from tutelage.training import identity

        original = identity.version
        identity.version = lambda name: "9.9" if name == "torch" else original(name)

    said = run(words, tmp_path / "log", other_version).said
    assert "note: the checkpoint was made with other versions (torch" in said
    assert "→ 9.9)" in said


class Raising:
    """A tracker whose service is down."""

    def __init__(self, folder: Path, done: int) -> None:
        self.told = 0

    def log(self, step, metrics) -> None:
        self.told += 1
        raise ConnectionError("service unavailable")

    def close(self) -> None:
        raise AssertionError("closed after it had failed")


class Hanging(Raising):
    """A tracker whose service never answers."""

    def log(self, step, metrics) -> None:
        time.sleep(60)


@pytest.mark.parametrize(
    ("tracker", "message"), [(Raising, "failed (service unavailable)"), (Hanging, "did not finish")]
)
def test_a_tracker_can_neither_stop_nor_hang_a_run(tmp_path, monkeypatch, capsys, tracker, message):
    whole = train(recipe_of(mapping(tmp_path, "sft", output=str(tmp_path / "whole"))), **SILENT)
    monkeypatch.setattr(tracking, "TensorBoard", tracker)
    original = tracking.Aside
    monkeypatch.setattr(tracking, "Aside", lambda *arguments: original(*arguments, patience=0.2))
    monkeypatch.setattr(tracking, "find_spec", lambda name: name)
    run = train(recipe_of(mapping(tmp_path, "sft", train={"trackers": ["tensorboard"]})), **SILENT)
    assert capsys.readouterr().out.count(message) == 1
    lines = [(folder / "metrics.jsonl").read_text().count("\n") for folder in (run.folder, whole.folder)]
    assert lines[0] == lines[1] > 6


def test_the_best_checkpoint_stays_beside_the_newest(tmp_path):
    sections = {"train": {"save_every": 1, "keep_best": "lowest loss", "steps": 8}, "evaluation": {"every": 1}}
    run = train(recipe_of(mapping(tmp_path, "sft", **sections)), **SILENT)
    losses = {e["step"]: e["metrics"]["loss"]["value"] for e in run.evaluations if e["step"]}
    best = min(losses, key=lambda step: losses[step])
    worst = max(losses, key=lambda step: losses[step])
    assert steps_kept(run.folder / "checkpoints") == sorted({best, 7, 8})
    sections["train"] |= {"keep_best": "highest loss"}
    other = train(recipe_of(mapping(tmp_path, "sft", **sections, output=str(tmp_path / "other"))), **SILENT)
    assert steps_kept(other.folder / "checkpoints") == sorted({worst, 7, 8})


def test_keep_best_is_checked_before_the_first_step(tmp_path):
    sections = {"train": {"save_every": 1, "keep_best": "lowest perplexity"}, "evaluation": {"every": 1}}
    with pytest.raises(
        InputError, match=r"train\.keep_best is 'lowest perplexity', but the evaluation has loss, forward_kl"
    ):
        train(recipe_of(mapping(tmp_path, "sft", **sections)), **SILENT)
    for train_keys, every in (({"keep_best": "lowest loss"}, 1), ({"keep_best": "lowest loss", "save_every": 3}, 2)):
        with pytest.raises(InputError, match=r"train\.keep_best compares evaluated checkpoints"):
            recipe_of(mapping(tmp_path, "sft", train=train_keys, evaluation={"every": every}))


def test_a_symbolic_link_for_the_staging_folder_is_refused(tmp_path):
    words = stopped_run(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    staging = tmp_path / "run" / "checkpoints" / ".staging"
    shutil.rmtree(staging)
    staging.symlink_to(tmp_path / "elsewhere")
    refused = start(words, tmp_path / "log")
    assert refused.wait() == 2
    assert "is a symbolic link" in refused.said
    assert (tmp_path / "elsewhere" / "file").exists()


def test_what_earlier_sittings_left_behind_is_removed(tmp_path):
    words = stopped_run(tmp_path)
    folder = tmp_path / "run" / "checkpoints"
    for name in (".staging/step-00000099", ".trash-step-00000001", ".damaged-step-00000001"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").touch()
    run(words, tmp_path / "log")
    assert [path.name for path in folder.glob(".*/*")] == []
    assert not (folder / ".trash-step-00000001").exists()


def test_an_exported_student_that_computes_something_else_is_no_success(tmp_path, monkeypatch):
    original = export.load_student

    def other_student(*arguments, **options):
        student = original(*arguments, **options)
        student.head.weight.data[3] += 0.5
        return student

    monkeypatch.setattr(export, "load_student", other_student)
    recipe = recipe_of(mapping(tmp_path, "sft"))
    with pytest.raises(TutelageError, match="is not the one that was trained: its logits differ by up to"):
        train(recipe, **SILENT)
    assert not (Path(recipe.output) / "model").exists()
    monkeypatch.setattr(export, "load_student", original)
    train(recipe, **SILENT)


def test_a_file_that_vanishes_in_the_middle_is_named_and_the_run_saved(tmp_path, monkeypatch):
    whole = train(recipe_of(mapping(tmp_path, "gkd", output=str(tmp_path / "whole"))), **SILENT)
    recipe = recipe_of(mapping(tmp_path, "gkd"))
    original = update.Updater._terms
    calls = 0

    def reading(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == 12:
            (tmp_path / "shard-00003.safetensors").read_bytes()
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(update.Updater, "_terms", reading)
        with pytest.raises(
            Stopped, match=r"No such file or directory: '.*shard-00003.safetensors'; saved at step \d of 6"
        ):
            train(recipe, **SILENT)
    assert_same_results(train(recipe, **SILENT).folder, whole.folder)


def test_the_same_command_again_and_again_ends_as_one_run(tmp_path, whole):
    """What a scheduler does: start the same line anew until it says 0."""
    words = write_recipe(tmp_path, "minillm")
    statuses = []
    for step in (1, 2, 1, 2, 2):
        child = start(words, tmp_path / "log", told_to_stop(update.Updater, "_check_and_clip", step))
        statuses.append(child.wait())
    assert 75 in statuses
    run(words, tmp_path / "log")
    assert_same_results(tmp_path / "run", whole("minillm"))
