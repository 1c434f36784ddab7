"""Whole runs: what they leave behind, and that an interrupted run ends as the uninterrupted one does."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import mapping
from transformers import AutoModelForCausalLM

from tutelage.errors import DivergedError, InputError, Stopped
from tutelage.methods import METHODS
from tutelage.recipe import load_recipe, recipe_of
from tutelage.training import loop as loop_module
from tutelage.training.run import train

SILENT = {"report": lambda text: None}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send the process the signal of a preempted machine when a step is done."""
    original = loop_module.Loop.step

    def step_then_signal(self, number):
        metrics = original(self, number)
        if number + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return metrics

    monkeypatch.setattr(loop_module.Loop, "step", step_then_signal)


def test_a_run_leaves_everything_that_is_promised(tmp_path):
    run = train(recipe_of(mapping(tmp_path, "gkd")), **SILENT)
    names = {path.name for path in run.folder.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "evaluation.json", "checkpoints", "model"} <= names
    AutoModelForCausalLM.from_pretrained(run.model)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [evaluation["step"] for evaluation in run.evaluations] == [0, 6]
    assert recipe_of({**mapping(tmp_path, "gkd")}) == load_recipe(run.folder / "config.yaml")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_bit_for_bit(tmp_path, monkeypatch, method):
    whole = train(recipe_of(mapping(tmp_path, method, output=str(tmp_path / "whole"))), **SILENT)
    interrupted = recipe_of(mapping(tmp_path, method, output=str(tmp_path / "interrupted")))
    for step in (2, 5):  # twice
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            with pytest.raises(Stopped, match=f"saved at step {step} of 6"):
                train(interrupted, **SILENT)
    resumed = train(interrupted, **SILENT)
    assert same(weights(whole.folder), weights(resumed.folder))
    ours = [json.loads(line) for line in (resumed.folder / "metrics.jsonl").read_text().splitlines()]
    theirs = [json.loads(line) for line in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    for line in (*ours, *theirs):
        line.pop("seconds", None)
    assert ours == theirs


def test_encoder_decoder_models_train_too(tmp_path):
    for method in ("supervised-kd", "gkd", "f-distill", "pre-distil", "distillm", "distillm-2"):
        run = train(recipe_of(mapping(tmp_path, method, "t5", data={"max_tokens": 50})), **SILENT)
        first, *_, last = (e["metrics"]["forward_kl"]["value"] for e in run.evaluations)
        assert last < first, method


def test_a_finished_run_is_left_alone(tmp_path):
    recipe = recipe_of(mapping(tmp_path, "sft"))
    first = train(recipe, **SILENT)
    before = (first.folder / "metrics.jsonl").stat().st_mtime_ns
    said: list[str] = []
    assert train(recipe, report=said.append).evaluations == first.evaluations
    assert (first.folder / "metrics.jsonl").stat().st_mtime_ns == before
    assert "finished already" in said[0]


def test_a_longer_run_goes_on_where_the_shorter_ended(tmp_path):
    train(recipe_of(mapping(tmp_path, "sft", train={"schedule": "constant"})), **SILENT)
    longer = recipe_of(mapping(tmp_path, "sft", train={"schedule": "constant", "steps": 9}))
    resumed = train(longer, **SILENT)
    alone = train(
        recipe_of(mapping(tmp_path, "sft", train={"schedule": "constant", "steps": 9}, output=str(tmp_path / "alone"))),
        **SILENT,
    )
    assert same(weights(resumed.folder), weights(alone.folder))


def test_another_recipe_in_the_same_folder_is_refused_with_the_difference(tmp_path):
    train(recipe_of(mapping(tmp_path, "sft")), **SILENT)
    other = recipe_of(mapping(tmp_path, "sft", train={"learning_rate": 0.5}))
    with pytest.raises(InputError, match=r"train\.learning_rate: 0\.01 → 0\.5"):
        train(other, **SILENT)
    with pytest.raises(InputError, match="holds a run already"):
        train(other, resume="never", **SILENT)


def test_a_damaged_checkpoint_is_passed_over(tmp_path, monkeypatch):
    whole = train(recipe_of(mapping(tmp_path, "gkd", output=str(tmp_path / "whole"))), **SILENT)
    recipe = recipe_of(mapping(tmp_path, "gkd", train={"save_every": 2}))
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Stopped):
            train(recipe, **SILENT)
    file = Path(recipe.output) / "checkpoints" / "step-00000004" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    said: list[str] = []
    resumed = train(recipe, report=said.append)
    assert any("skipped step-00000004: model.safetensors does not match its checksum" in line for line in said)
    assert "resuming from step 2" in said
    assert same(weights(whole.folder), weights(resumed.folder))


def test_a_loss_that_is_not_finite_never_reaches_the_weights(tmp_path, monkeypatch):
    recipe = recipe_of(mapping(tmp_path, "supervised-kd", train={"save_every": 1}))
    original = loop_module.Loop.step

    def poisoned(self, number):
        if number == 3:
            with torch.no_grad():
                self._setup.teacher.model.model.lm_head.weight[0, 0] = float("nan")
        return original(self, number)

    monkeypatch.setattr(loop_module.Loop, "step", poisoned)
    with pytest.raises(DivergedError, match="the loss is nan at step 4"):
        train(recipe, **SILENT)
    kept = load_file(Path(recipe.output) / "checkpoints" / "step-00000003" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


@pytest.mark.parametrize("method", ["sft", "on-policy-kd", "gkd", "pre-distil", "distillm-2"])
def test_micro_batches_do_not_change_the_result(tmp_path, method):
    runs = [
        train(
            recipe_of(
                mapping(tmp_path, method, train={"micro_batch_tokens": tokens}, output=str(tmp_path / str(tokens)))
            ),
            **SILENT,
        )
        for tokens in (1, 24, 10_000)
    ]
    first, *others = [weights(run.folder) for run in runs]
    for other in others:
        for name, tensor in first.items():
            torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5)


def test_bfloat16_and_activation_checkpointing_come_close_to_float32(tmp_path):
    exact = train(recipe_of(mapping(tmp_path, "supervised-kd", output=str(tmp_path / "exact"))), **SILENT)
    kept = train(
        recipe_of(
            mapping(tmp_path, "supervised-kd", train={"gradient_checkpointing": True}, output=str(tmp_path / "kept"))
        ),
        **SILENT,
    )
    mixed = train(
        recipe_of(mapping(tmp_path, "supervised-kd", train={"precision": "bfloat16"}, output=str(tmp_path / "mixed"))),
        **SILENT,
    )
    for name, tensor in weights(exact.folder).items():
        torch.testing.assert_close(weights(kept.folder)[name], tensor, rtol=1e-5, atol=1e-6)
    last = [run.evaluations[-1]["metrics"]["forward_kl"]["value"] for run in (exact, mixed)]
    assert last[1] == pytest.approx(last[0], rel=0.1)


def test_rows_that_changed_under_a_run_are_refused(tmp_path, monkeypatch):
    recipe = recipe_of(mapping(tmp_path, "sft"))
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            train(recipe, **SILENT)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text().replace('"b c"', '"c b"'))
    with pytest.raises(InputError, match="are not those that"):
        train(recipe, **SILENT)


def test_samples_are_not_written_twice_after_a_kill(tmp_path, monkeypatch):
    sections = {"evaluation": {"metrics": ["exact_answer"], "every": 2, "decoding": {"max_new_tokens": 4}}}
    recipe = recipe_of(mapping(tmp_path, "sft", train={"save_every": 3}, **sections))

    def killed(self, number):
        raise KeyboardInterrupt

    original = loop_module.Loop.step
    with monkeypatch.context() as patch:
        patch.setattr(loop_module.Loop, "step", lambda self, n: killed(self, n) if n == 5 else original(self, n))
        with pytest.raises(KeyboardInterrupt):
            train(recipe, **SILENT)
    run = train(recipe, **SILENT)
    steps = [json.loads(line)["step"] for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [0, 2, 4, 6]
    assert all(steps.count(step) == 6 for step in set(steps))


def test_validation_rows_without_references_are_refused(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a b"}\n')
    with pytest.raises(InputError, match="has prompts only, but every metric needs a reference"):
        train(recipe_of(mapping(tmp_path, "sft", data={"validation": str(prompts)})), **SILENT)


def test_a_finished_run_by_epochs_is_left_alone(tmp_path):
    recipe = recipe_of(mapping(tmp_path, "sft", train={"steps": None, "epochs": 1}))
    train(recipe, **SILENT)
    said: list[str] = []
    train(recipe, report=said.append)
    assert "finished already" in said[0]


def test_tensorboard_gets_the_numbers_too(tmp_path):
    pytest.importorskip("tensorboard")
    run = train(recipe_of(mapping(tmp_path, "sft", train={"trackers": ["tensorboard"]})), **SILENT)
    assert any("events" in file.name for file in (run.folder / "tensorboard").iterdir())
