"""Memory that runs out: the same work in smaller parts, with the same result."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.tiny import mapping
from tests.tiny_models import pair, ragged

from tutelage.errors import DivergedError, DoesNotFitError, InputError
from tutelage.evaluation import evaluate as evaluate_module
from tutelage.methods import MomentMatching, SupervisedKD
from tutelage.methods.policy_gradient import sequence_logps
from tutelage.models.language_model import LanguageModel
from tutelage.recipe import recipe_of
from tutelage.rollouts import samplers as samplers_module
from tutelage.rollouts.rollout import Rollout
from tutelage.training import loop as loop_module
from tutelage.training import out_of_memory
from tutelage.training.memory import Part
from tutelage.training.out_of_memory import Size, is_out_of_memory, padded_size
from tutelage.training.run import train
from tutelage.training.setup import prepare
from tutelage.training.update import Updater

SILENT = {"report": lambda text: None}


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def lines(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{**line, "seconds": 0} for line in found]


def short_of_memory(
    patch: pytest.MonkeyPatch, tokens: int, kind: type[Exception] = torch.OutOfMemoryError
) -> list[int]:
    """Refuse forward passes of the student that are padded to more than so many tokens; keep count of the refused."""
    original, refused = LanguageModel.hidden, []

    def hidden(self, rollout):
        if padded_size(rollout) > tokens and self.model.training:
            refused.append(padded_size(rollout))
            raise kind("CUDA out of memory")
        return original(self, rollout)

    patch.setattr(LanguageModel, "hidden", hidden)
    return refused


def short_in_decoding(patch: pytest.MonkeyPatch, module: object, sequences: int, free: int = 0) -> list[int]:
    """Refuse to write for more than so many sequences at a time, but for the first calls."""
    original, refused, calls = module.decode, [], []

    def decode(model, prompts, decoding, **options):
        calls.append(len(prompts))
        if min(decoding.batch_size, len(prompts)) > sequences and len(calls) > free:
            refused.append(decoding.batch_size)
            model.network.eval()  # as a decoding that fails midway leaves it
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, prompts, decoding, **options)

    patch.setattr(module, "decode", decode)
    return refused


def test_the_errors_that_mean_it():
    for wanted in (lambda: torch.empty(2**50, dtype=torch.uint8), lambda: bytearray(2**60)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            wanted()
        assert is_out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2) + torch.ones(3)
    assert not is_out_of_memory(caught.value)


def test_a_size_is_halved_down_to_what_fits_and_stays_there():
    notes: list[str] = []
    size, tried = Size("train.micro_batch_tokens", 4096, notes.append, lambda: "a table"), []

    def work(value: int) -> int:
        tried.append(value)
        if value > 60:
            raise torch.OutOfMemoryError
        return value

    assert size.fitting(work, largest=500, least=50) == 50
    assert tried == [4096, 250, 125, 62, 50]  # 4096 was no more than 500
    assert size.fitting(work, largest=500, least=50) == 50
    assert tried[5:] == [50]
    assert len(notes) == 4
    assert "train.micro_batch_tokens 250 instead of 500" in notes[0]
    assert "set --train.micro_batch_tokens 50" in notes[-1]
    with pytest.raises(DoesNotFitError, match="a table"):
        size.fitting(lambda value: torch.empty(2**50), largest=500, least=50)
    with pytest.raises(ZeroDivisionError):
        size.fitting(lambda value: 1 // 0, largest=500, least=50)
    with pytest.raises(RuntimeError, match="shapes"):
        size.fitting(lambda value: [][0] if value == 0 else raise_(RuntimeError("shapes")), largest=500, least=50)
    other = Size("train.micro_batch_tokens", 4096, notes.append, lambda: "")
    other.restore(size.state())
    assert other.value == 50
    asked_anew = Size("train.micro_batch_tokens", 2048, notes.append, lambda: "")
    asked_anew.restore(size.state())
    assert asked_anew.value == 2048


def raise_(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", [SupervisedKD(divergence="jsd(0.1)"), SupervisedKD(reduction="sequence")])
def test_the_gradient_stays_the_same(tmp_path, monkeypatch, method, dtype):
    student, teacher = pair("gpt2", dtype=dtype)
    student.model.train()
    for module in student.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    setup = prepare(recipe_of(mapping(tmp_path, "supervised-kd")), lambda text: None)
    recipe = replace(setup.recipe, method=method)
    setup = replace(setup, recipe=recipe, student=student, teacher=teacher, vocabulary=None)

    def gradients() -> dict[str, torch.Tensor]:
        updater = Updater(setup, Size("", 10_000, lambda text: None, str))
        updater._gradients_of_phase(ragged(), ("student",))
        return {name: p.grad.clone() for name, p in student.model.named_parameters()}

    whole = gradients()
    refused = short_of_memory(monkeypatch, 20)
    parts = gradients()
    assert len(refused) > 1
    tolerance = 1e-6 if dtype == torch.float32 else 1e-10
    norm = torch.stack([g.norm() for g in whole.values()]).norm()
    for name, gradient in whole.items():
        assert (parts[name] - gradient).norm() <= tolerance * norm, name


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError])
def test_a_run_goes_on_with_half_the_micro_batch(tmp_path, monkeypatch, capsys, kind):
    small = train(recipe_of(mapping(tmp_path, "on-policy-kd", train={"micro_batch_tokens": 12, "dropout": True},
                                    output=str(tmp_path / "small"))), **SILENT)  # fmt: skip
    recipe = recipe_of(mapping(tmp_path, "on-policy-kd", train={"dropout": True}))
    refused = short_of_memory(monkeypatch, 12, kind)
    halved = train(recipe, **SILENT)
    assert len(refused) == 1  # halved once, for the rest of the run
    assert weights(halved.folder) == weights(small.folder)
    assert capsys.readouterr().out.count("out of memory: going on with train.micro_batch_tokens 12 instead of 24") == 1


def test_a_phase_that_was_applied_is_not_applied_again(tmp_path, monkeypatch):
    options = {"train": {"micro_batch_tokens": 24}}
    whole = train(recipe_of(mapping(tmp_path, "moment-matching", output=str(tmp_path / "whole"), **options)), **SILENT)
    original = MomentMatching.terms

    def terms(self, rollout, *arguments):
        if "student" in arguments[-1] and padded_size(rollout) > 12:
            raise torch.OutOfMemoryError
        return original(self, rollout, *arguments)

    monkeypatch.setattr(MomentMatching, "terms", terms)
    halved = train(recipe_of(mapping(tmp_path, "moment-matching", **options)), **SILENT)
    for ours, theirs in zip(lines(halved.folder), lines(whole.folder), strict=True):
        if "loss" in ours:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3, abs=1e-6)
            for side in ("off", "on"):
                name = f"gradient_norm/critic_{side}"
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3)


@pytest.mark.parametrize("method", ["on-policy-kd", "distillm", "minillm-ranking", "seqkd"])
def test_text_is_the_same_when_less_is_written_at_once(tmp_path, monkeypatch, capsys, method):
    changes = {"train": {"dropout": True, "steps": 12}}
    whole = train(recipe_of(mapping(tmp_path, method, output=str(tmp_path / "whole"), **changes)), **SILENT)
    original = loop_module.Loop.step

    def step(self, number):
        metrics = original(self, number)
        assert self._setup.student.network.training
        return metrics

    monkeypatch.setattr(loop_module.Loop, "step", step)
    refused = short_in_decoding(monkeypatch, samplers_module, 2, free=3)
    halved = train(recipe_of(mapping(tmp_path, method, **changes)), **SILENT)
    assert refused
    assert lines(halved.folder) == lines(whole.folder)
    assert weights(halved.folder) == weights(whole.folder)
    key = "teacher" if method == "seqkd" else "student"
    assert f"going on with method.{key}_decoding.batch_size" in capsys.readouterr().out


def test_an_evaluation_measures_the_same_with_less_at_once(tmp_path, monkeypatch):
    sections = {"evaluation": {"metrics": ["loss", "rouge_l"], "decoding": {"max_new_tokens": 4}}}
    whole = train(recipe_of(mapping(tmp_path, "sft", output=str(tmp_path / "whole"), **sections)), **SILENT)
    refused = short_in_decoding(monkeypatch, evaluate_module, 1)
    halved = train(recipe_of(mapping(tmp_path, "sft", **sections)), **SILENT)
    assert refused == [64, 3]  # six rows: three did not fit either, and the last evaluation knew
    for ours, theirs in zip(halved.evaluations, whole.evaluations, strict=True):
        assert ours["metrics"]["rouge_l"] == theirs["metrics"]["rouge_l"]
        assert ours["metrics"]["loss"]["value"] == pytest.approx(theirs["metrics"]["loss"]["value"], rel=1e-6)


def test_preparing_a_collection_fits_too(tmp_path, monkeypatch):
    whole = train(recipe_of(mapping(tmp_path, "minillm-ranking", output=str(tmp_path / "whole"))), **SILENT)
    from tutelage.methods import ranking

    def short(rollout, context):
        if context.micro_batch_tokens > 12:
            context.student.network.eval()
            raise torch.OutOfMemoryError
        return sequence_logps(rollout, context)

    monkeypatch.setattr(ranking, "sequence_logps", short)
    halved = train(recipe_of(mapping(tmp_path, "minillm-ranking")), **SILENT)
    for ours, theirs in zip(lines(halved.folder), lines(whole.folder), strict=True):
        assert ours.get("loss", 0) == pytest.approx(theirs.get("loss", 0), rel=1e-3)


def test_the_smaller_size_is_remembered_when_the_run_goes_on(tmp_path, monkeypatch):
    original = loop_module.Loop.step

    def step(self, number):
        if number == 4 and not again:
            again.append(True)
            raise DivergedError("enough")
        return original(self, number)

    again: list[bool] = []
    monkeypatch.setattr(loop_module.Loop, "step", step)
    refused = short_of_memory(monkeypatch, 12)
    recipe = recipe_of(mapping(tmp_path, "sft", train={"dropout": True}))
    with pytest.raises(DivergedError, match="enough"):
        train(recipe, **SILENT)
    train(recipe, **SILENT)
    assert len(refused) == 1


def test_one_sequence_that_does_not_fit_ends_the_run_with_what_it_needs(tmp_path, monkeypatch):
    recipe = recipe_of(mapping(tmp_path, "sft", train={"dropout": True}))
    original = loop_module.Loop.step

    def step(self, number):
        if number == 2:
            short_of_memory(monkeypatch, 3)
        return original(self, number)

    monkeypatch.setattr(loop_module.Loop, "step", step)
    with pytest.raises(DoesNotFitError, match="one sequence at a time") as caught:
        train(recipe, **SILENT)
    assert caught.value.exit_status == 2
    assert "train.gradient_checkpointing" in str(caught.value)
    assert [p.name for p in (Path(recipe.output) / "checkpoints").glob("step-*")] == ["step-00000002"]


def test_an_optimiser_that_does_not_fit_keeps_nothing_half_done(tmp_path, monkeypatch):
    def step(self, closure=None):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    recipe = recipe_of(mapping(tmp_path, "sft"))
    with pytest.raises(InputError, match="out of memory"):
        train(recipe, **SILENT)
    assert not list((Path(recipe.output) / "checkpoints").glob("step-*"))


def test_what_a_run_needs_is_listed_with_what_lowers_it(tmp_path, monkeypatch):
    setup = prepare(recipe_of(mapping(tmp_path, "gkd")), lambda text: None)
    parts = [Part("student's weights", 1.5, "student.dtype"), Part("peak", 2.0, "train.micro_batch_tokens")]
    seen = []
    monkeypatch.setattr(out_of_memory, "estimate", lambda *arguments: seen.append(arguments) or parts)
    table = out_of_memory.memory_table(setup)
    assert table == "  student's weights: 1.50 GiB; student.dtype\n  peak: 2.00 GiB; train.micro_batch_tokens"
    for model in seen[0][1:3]:
        assert next(model.parameters()).device.type == "meta"  # there is no memory for copies
    monkeypatch.setattr(out_of_memory, "estimate", lambda *arguments: raise_(MemoryError()))
    assert "train.gradient_checkpointing" in out_of_memory.memory_table(setup)


def test_the_padded_size_of_text():
    assert padded_size(Rollout.of([[1], [1, 2]], [[3], [4, 5, 6]])) == 10
