"""Whole runs with quantised teachers."""

import json

import pytest
import torch
from tests import tiny
from tests.quantised import SILENT, each_kind, load, recipe_for, spec, stored_bytes

from tutelage.cli import main
from tutelage.errors import InputError
from tutelage.models.identity import weights_identity
from tutelage.models.skeleton import load_skeleton
from tutelage.recipe import recipe_of
from tutelage.training import memory
from tutelage.training.run import train
from tutelage.training.texts import Reader, read_texts


@each_kind
@pytest.mark.parametrize("method", ["gkd", "minillm", "seqkd", "distribution-matching", "moment-matching"])
def test_methods_learn_from_it(tmp_path, kind, method):
    """Each has it compare or write, by our own decoding or transformers' beam search."""
    folder = tmp_path / "text.txt"
    folder.write_text("a b c d e f\n" * 20)
    data = {"text": str(folder), "text_tokens": 6}
    whole = recipe_for(tmp_path, method, kind, train={"steps": 2}, data=data)
    run = train(recipe_of(whole), **SILENT)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in lines if "loss" in line)


@each_kind
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_encoder_decoder_teaches_too(tmp_path, kind, precision):
    sections = {"train": {"steps": 2, "precision": precision}, "teacher": {"dtype": "bfloat16"}}
    whole = recipe_for(tmp_path, "gkd", kind, "t5", **sections)
    assert train(recipe_of(whole), **SILENT).model.is_dir()


def figures(run) -> list[dict]:
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "memory")} for line in lines]


@each_kind
def test_its_cache_says_what_it_says(tmp_path, kind):
    live = train(recipe_of(recipe_for(tmp_path, "supervised-kd", kind, train={"steps": 4})), **SILENT)
    cached = recipe_for(tmp_path, "supervised-kd", kind, train={"steps": 4}, output=str(tmp_path / "cached"))
    kept = train(recipe_of(cached | {"teacher_cache": {"kind": "hidden"}}), **SILENT)
    losses = [[line["loss"] for line in figures(run) if "loss" in line] for run in (live, kept)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@each_kind
def test_check_counts_its_bytes_and_tries_a_step(tmp_path, kind, capsys):
    whole = recipe_for(tmp_path, "gkd", kind)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(whole))
    assert main(["check", str(path)]) == 0
    sizes = {}
    for name in ("none", kind):
        recipe = recipe_of({**whole, "teacher": {**whole["teacher"], "quantize": name}})
        assert recipe.teacher is not None
        student, teacher = (load_skeleton(model, "teacher") for model in (recipe.student, recipe.teacher))
        texts = read_texts(recipe, Reader(tiny.tokenizer(), (1,), False))
        parts = {part.name: part for part in memory.estimate(recipe, student, teacher, texts.train)}
        sizes[name] = parts["teacher's weights"].gibibytes * 2**30
        assert sizes[name] == stored_bytes(load(tmp_path / "llama-teacher", name))
    assert sizes[kind] < 0.5 * sizes["none"]


@each_kind
def test_a_finished_run_is_measured_beside_the_teacher_that_it_had(tmp_path, kind, capsys):
    run = train(recipe_of(recipe_for(tmp_path, "gkd", kind, train={"steps": 1})), **SILENT)
    task = tmp_path / "near.yaml"
    metrics = "[{name: divergences, texts: [references]}]"
    data = f"{{source: {tmp_path}/rows.jsonl, prompt: '{{prompt}}', reference: '{{completion}}'}}"
    task.write_text(f"name: near\ndescription: how near\ndata: {data}\nmetrics: {metrics}\n")
    assert main(["evaluate", str(run.folder), "--tasks", str(task)]) == 0
    record = (run.folder / "evaluations" / "near.json").read_text()
    assert str(weights_identity(spec(tmp_path / "llama-teacher", kind), "teacher")) in record


@each_kind
def test_its_scores_and_text_are_not_mixed_up_with_those_of_the_whole_one(tmp_path, kind):
    cache = {"kind": "hidden", "folder": str(tmp_path / "scores")}
    whole = recipe_for(tmp_path, "supervised-kd", "none", train={"steps": 2}) | {"teacher_cache": cache}
    train(recipe_of(whole), **SILENT)
    other = {**whole, "teacher": {**whole["teacher"], "quantize": kind}, "output": str(tmp_path / "other")}
    with pytest.raises(InputError, match="teacher"):
        train(recipe_of(other), **SILENT)
    text = recipe_for(tmp_path, "seqkd", "none", train={"steps": 2}, evaluation={"metrics": ["loss"]})
    train(recipe_of(text), **SILENT)
    written = tmp_path / "run-llama-seqkd" / "teacher_text.jsonl"
    folder = tmp_path / "quantised"
    folder.mkdir()
    (folder / written.name).write_bytes(written.read_bytes())
    other = {**text, "teacher": {**text["teacher"], "quantize": kind}, "output": str(folder)}
    with pytest.raises(InputError, match=r"teacher_text\.jsonl"):
        train(recipe_of(other), **SILENT)
