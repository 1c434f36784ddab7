"""Whole runs whose teacher remembers: the same student, without running the teacher, and never by somebody's scores."""

import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tests.tiny import mapping, write_model

from tutelage.cli import main
from tutelage.config import TeacherCache
from tutelage.errors import InputError, Stopped
from tutelage.models.language_model import LanguageModel
from tutelage.models.score_store import ScoreStore
from tutelage.models.teachers import LocalTeacher
from tutelage.recipe import Recipe, recipe_of
from tutelage.training import loop as loop_module
from tutelage.training import setup as run_setup
from tutelage.training import teacher_cache as cache_module
from tutelage.training.fixed_text import writers_of
from tutelage.training.run import train

SILENT = {"report": lambda text: None}
HIDDEN = {"kind": "hidden"}
WRITES = {"teacher_decoding": {"max_new_tokens": 5}}


def recipe(
    folder: Path, method: str = "supervised-kd", kind: str = "llama", cache=HIDDEN, changes=None, **sections
) -> Recipe:
    """Two epochs over the tiny rows, and more; `changes` are keys of the method."""
    sections.setdefault("output", str(folder / f"run-{kind}-{method}-{'-'.join(map(str, cache.values()))}"))
    sections["train"] = {"steps": 12, **sections.get("train", {})}
    sections["data"] = {"max_tokens": 50, **sections.get("data", {})}
    whole = {**mapping(folder, method, kind, **sections), "teacher_cache": cache}
    whole["method"] |= changes or {}
    return recipe_of(whole)


def weights(run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "model" / "model.safetensors")


def figures(run) -> list[dict]:
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "memory")} for line in lines]


def cache_of(run_recipe: Recipe) -> Path:
    return Path(run_recipe.output) / "teacher_cache"


def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "plan_capture", partial(cache_module.plan_capture, shard_bytes=1000))


def without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, reading the teacher's weights is a failure."""
    for module in (run_setup, cache_module):
        original = module.load_model

        def student_only(spec, role, original=original, **options):
            assert role == "student", "the teacher's weights were read"
            return original(spec, role, **options)

        monkeypatch.setattr(module, "load_model", student_only)


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("supervised-kd", {}),
        ("supervised-kd", {"divergence": "jsd(0.3)", "temperature": 2.0, "cross_entropy": 0.3}),
        ("seqkd", {"cross_entropy": 0.5}),
        ("f-distill", {"divergence": "kl", "exact": False}),
        ("gkd", {"student_fraction": 0.5}),
    ],
)
def test_a_cached_teacher_makes_the_same_student(tmp_path: Path, kind: str, method: str, changes: dict) -> None:
    runs = [
        train(recipe(tmp_path, method, kind, cache, changes=changes), **SILENT) for cache in ({"kind": None}, HIDDEN)
    ]
    first, second = map(weights, runs)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=2e-5)
    for before, after in zip(*(run.evaluations[-1]["metrics"].items() for run in runs), strict=True):
        assert after[1]["value"] == pytest.approx(before[1]["value"], rel=1e-3), before[0]


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_cache_of_all_tokens_makes_the_same_student(tmp_path: Path, kind: str, temperature: float) -> None:
    changes = {"changes": {"temperature": temperature, "cross_entropy": 0.2}}
    whole = {"kind": "top-k", "mass": 1.0, "max_k": 22}
    runs = [train(recipe(tmp_path, kind=kind, cache=cache, **changes), **SILENT) for cache in ({"kind": None}, whole)]
    first, second = map(weights, runs)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-2, atol=1e-3)
    for line, other in zip(*map(figures, runs), strict=True):
        for name in ("loss", "divergence", "teacher_cross_entropy", "cross_entropy"):
            if name in line:
                assert other[name] == pytest.approx(line[name], rel=1e-3, abs=1e-5), name


def test_under_bfloat16_products_a_bfloat16_cache_loses_nothing(tmp_path: Path) -> None:
    train_section = {"precision": "bfloat16"}
    measured = {"metrics": ["loss"]}
    caches = (HIDDEN, {**HIDDEN, "dtype": "bfloat16"})
    runs = [train(recipe(tmp_path, cache=c, train=train_section, evaluation=measured), **SILENT) for c in caches]
    first, second = map(weights, runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", ["supervised-kd", "seqkd"])
def test_a_capture_computes_in_what_the_run_computes_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    seen: list[bool] = []
    original = LocalTeacher.hidden

    def hidden(self, rollout):
        seen.append(torch.is_autocast_enabled("cpu"))
        return original(self, rollout)

    monkeypatch.setattr(LocalTeacher, "hidden", hidden)
    for precision, autocast in (("bfloat16", True), ("float32", False)):
        seen.clear()
        section = {"precision": precision, "steps": 1}
        output = str(tmp_path / precision)
        train(recipe(tmp_path, method, changes={"cross_entropy": 0.5}, train=section, output=output), **SILENT)
        assert set(seen) == {autocast}


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize(
    ("method", "cache"),
    [
        ("supervised-kd", HIDDEN),
        ("supervised-kd", {"kind": "top-k", "max_k": 8, "dtype": "bfloat16"}),
        ("seqkd", HIDDEN),
        ("gkd", HIDDEN),
    ],
)
def test_a_run_with_a_cache_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, method: str, cache: dict
) -> None:
    changes = {"cross_entropy": 0.5}
    whole = train(recipe(tmp_path, method, kind, cache, changes=changes, output=str(tmp_path / "whole")), **SILENT)
    interrupted = recipe(tmp_path, method, kind, cache, changes=changes, output=str(tmp_path / "interrupted"))
    original = loop_module.Loop.step
    for step in (2, 7):
        with monkeypatch.context() as patch:

            def step_then_signal(self, number, step=step):
                metrics = original(self, number)
                if number + 1 == step:
                    os.kill(os.getpid(), signal.SIGTERM)
                return metrics

            patch.setattr(loop_module.Loop, "step", step_then_signal)
            with pytest.raises(Stopped, match=f"saved at step {step} of 12"):
                train(interrupted, **SILENT)
    resumed = train(interrupted, **SILENT)
    first, second = weights(whole), weights(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert figures(whole) == figures(resumed)


def test_a_run_whose_capture_was_killed_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch)
    whole = train(recipe(tmp_path, output=str(tmp_path / "whole")), **SILENT)
    killed = recipe(tmp_path, output=str(tmp_path / "killed"))
    original, written = ScoreStore.write, []

    def write(self, keys, records):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(keys)
        return original(self, keys, records)

    with monkeypatch.context() as patch:
        patch.setattr(ScoreStore, "write", write)
        with pytest.raises(KeyboardInterrupt):
            train(killed, **SILENT)
    assert len(list(cache_of(killed).glob("shard-*"))) == 2
    times = {path.name: path.stat().st_mtime_ns for path in cache_of(killed).glob("shard-*")}
    finished = train(killed, **SILENT)
    assert {name: (cache_of(killed) / name).stat().st_mtime_ns for name in times} == times
    first, second = weights(whole), weights(finished)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_teacher_is_not_run_and_its_weights_are_not_read_where_everything_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {**HIDDEN, "folder": str(tmp_path / "shared")}
    first = train(recipe(tmp_path, cache=shared, output=str(tmp_path / "first")), **SILENT)
    without_weights(monkeypatch)
    other_order = recipe(tmp_path, cache=shared, output=str(tmp_path / "second"), seed=5)
    train(other_order, **SILENT)
    said: list[str] = []
    again = train(recipe(tmp_path, cache=shared, output=str(tmp_path / "third")), report=said.append)
    assert any("the model itself is not needed" in line for line in said)
    assert all(torch.equal(weights(first)[name], weights(again)[name]) for name in weights(first))


def test_while_text_is_captured_every_row_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple] = []
    original = LanguageModel.hidden

    def hidden(self, rollout):
        if not self.model.training and not any(p.requires_grad for p in self.model.parameters()):
            seen.extend(zip(rollout.prompts, rollout.responses, strict=True))
        return original(self, rollout)

    monkeypatch.setattr(LanguageModel, "hidden", hidden)
    train(recipe(tmp_path), **SILENT)
    assert len(seen) == len(set(seen)) == 20  # of the 30 rows, 10 come twice


def test_teacher_text_is_written_before_the_run_and_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(tmp_path, "f-distill", changes={"divergence": "kl", "exact": False})
    assert main(["cache", str(recipe_file(tmp_path, made))]) == 0
    text = (Path(made.output) / "teacher_text.jsonl").read_bytes()
    plain = replace(made, teacher_cache=TeacherCache(), output=str(tmp_path / "plain"))
    train(plain, **SILENT)
    assert (Path(plain.output) / "teacher_text.jsonl").read_bytes() == text
    without_weights(monkeypatch)
    train(made, **SILENT)
    assert (Path(made.output) / "teacher_text.jsonl").read_bytes() == text


@pytest.mark.parametrize(
    ("method", "changes", "cache", "message"),
    [
        ("sft", {}, HIDDEN, "asks no teacher about text that was written beforehand"),
        ("seqkd", {}, HIDDEN, "asks no teacher about text that was written beforehand"),
        ("imitkd", {"loss": "opt"}, HIDDEN, "asks no teacher about text that was written beforehand"),
        ("pre-distil", {}, HIDDEN, "looks into the teacher's layers"),
        ("f-distill", {}, {"kind": "top-k"}, "needs the teacher's whole distribution"),
        ("minillm", {}, {"kind": "top-k"}, "needs the teacher's whole distribution"),
        ("on-policy-kd", {}, HIDDEN, "all text of method 'on-policy-kd' as set up here is new"),
        ("gkd", {}, {"kind": "top-k"}, "also compares on text that is written during the run"),
    ],
)
def test_what_a_method_cannot_use_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, changes: dict, cache: dict, message: str
) -> None:
    monkeypatch.setattr(run_setup, "load_tokenizer", None)
    with pytest.raises(InputError, match=message):
        train(recipe(tmp_path, method, cache=cache, changes=changes), **SILENT)


def test_who_writes_is_told_by_the_method(tmp_path: Path) -> None:
    def writers(method: str, **changes) -> tuple[bool, bool, bool]:
        found = writers_of(recipe(tmp_path, method, cache={"kind": None}, changes=changes))
        return found.data, found.teacher is not None, found.others

    assert writers("supervised-kd") == (True, False, False)
    assert writers("seqkd") == (False, True, False)
    assert writers("f-distill", divergence="kl", exact=False) == (False, True, False)
    assert writers("f-distill") == (False, True, True)
    assert writers("f-distill", fresh_teacher=True) == (False, False, True)
    assert writers("gkd", offline="teacher") == (False, True, True)
    assert writers("on-policy-kd") == (False, False, True)
    assert writers("minillm") == (False, False, True)


def other_weights(folder: Path) -> None:
    file = folder / "llama-teacher" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, file, metadata={"format": "pt"})


def other_tokenizer(folder: Path) -> None:
    for name in ("llama-teacher", "llama-student"):
        file = folder / name / "tokenizer.json"
        content = json.loads(file.read_text())
        vocabulary = content["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "cache", "named"),
    [
        (other_weights, {}, "teacher: "),
        (lambda folder: write_model(folder / "llama-teacher", 9), {}, "teacher: "),
        (other_tokenizer, {}, "tokenizer: "),
        (None, {"dtype": "bfloat16"}, "teacher_cache.dtype: exact there, bfloat16 here"),
        (None, {"kind": "top-k"}, "teacher_cache.kind: hidden there, top-k here"),
    ],
)
def test_scores_of_another_teacher_tokenizer_or_type_are_refused(
    tmp_path: Path, change, cache: dict, named: str
) -> None:
    shared = {**HIDDEN, "folder": str(tmp_path / "shared")}
    train(recipe(tmp_path, cache=shared, output=str(tmp_path / "first")), **SILENT)
    if change is not None:
        change(tmp_path)
    with pytest.raises(InputError, match=rf"shared holds other scores than this recipe's \(.*{named}"):
        train(recipe(tmp_path, cache={**shared, **cache}, output=str(tmp_path / "second")), **SILENT)


def recipe_file(folder: Path, made: Recipe) -> Path:
    from tutelage.recipe import dump_recipe

    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(made), encoding="utf-8")
    return path


def test_a_damaged_shard_stops_the_run_and_the_command_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    small_shards(monkeypatch)
    made = recipe(tmp_path)
    path = str(recipe_file(tmp_path, made))
    assert main(["cache", path]) == 0
    printed = capsys.readouterr().out
    assert "80 of 80 tokens to score" in printed
    assert "20 rows, 80 tokens" in printed
    whole = {file.name: file.read_bytes() for file in cache_of(made).glob("*.safetensors")}
    assert len(whole) > 3
    bad = sorted(cache_of(made).glob("shard-*"))[1]
    bad.write_bytes(whole[bad.name][:-3] + b"abc")
    assert main(["train", path]) == 2
    assert f"{bad.name} does not match its checksum; `tutelage cache RECIPE` captures" in capsys.readouterr().err
    assert not (Path(made.output) / "checkpoints").exists()
    assert main(["cache", path]) == 0
    assert f"{bad.name} does not match its checksum; it is captured anew" in capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in cache_of(made).glob("*.safetensors")} == whole
    assert main(["cache", path]) == 0
    assert main(["train", path]) == 0


def test_the_command_needs_a_kind_and_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    path = str(recipe_file(tmp_path, recipe(tmp_path, cache={"kind": None})))
    assert main(["cache", path]) == 2
    assert "add --teacher-cache.kind hidden" in capsys.readouterr().err
    usage = cache_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    assert main(["cache", path, "--teacher-cache.kind", "hidden"]) == 2
    assert "1.0 KB are free; name a teacher_cache.folder on another disk" in capsys.readouterr().err


def test_more_rows_extend_a_cache(tmp_path: Path) -> None:
    shared = {**HIDDEN, "folder": str(tmp_path / "shared")}
    train(recipe(tmp_path, cache=shared, data={"limit": 8}, output=str(tmp_path / "few")), **SILENT)
    said: list[str] = []
    train(recipe(tmp_path, cache=shared, output=str(tmp_path / "all")), report=said.append)
    assert any("50 of 80 tokens to score" in line or "tokens to score" in line for line in said)
    assert len(list((tmp_path / "shared").glob("shard-*"))) == 2


def test_a_folder_may_hold_no_weights_where_everything_is_known(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    assert main(["cache", str(recipe_file(tmp_path, made))]) == 0
    (tmp_path / "llama-teacher" / "model.safetensors").unlink()
    train(made, **SILENT)


def test_the_cache_may_move_between_two_parts_of_a_run(tmp_path: Path) -> None:
    made = recipe(tmp_path, train={"schedule": "constant"})
    train(made, **SILENT)
    moved = cache_of(made).rename(tmp_path / "moved")
    longer = recipe(
        tmp_path,
        train={"schedule": "constant", "steps": 13},
        cache={**HIDDEN, "folder": str(moved)},
        output=made.output,
    )
    train(longer, **SILENT)
    assert not cache_of(made).exists()


def test_a_student_of_the_teachers_layers_and_distances_work_beside_a_cache(tmp_path: Path) -> None:
    made = mapping(tmp_path, "supervised-kd", evaluation={"metrics": ["loss", "agreement", "distances"]})
    made["student"] = {"from_teacher": {"layers": [0]}}
    made["evaluation"]["decoding"] = {"max_new_tokens": 4}
    for cache in (HIDDEN, {"kind": "top-k", "folder": str(tmp_path / "top-k")}):
        run = train(recipe_of({**made, "teacher_cache": cache, "output": str(tmp_path / cache["kind"])}), **SILENT)
        assert "forward_kl" in run.evaluations[-1]["metrics"]


def test_yaml_of_a_recipe_with_a_cache_loads_again(tmp_path: Path) -> None:
    made = recipe(tmp_path, cache={"kind": "top-k", "mass": 0.9})
    assert recipe_of(yaml.safe_load(recipe_file(tmp_path, made).read_text())) == made
