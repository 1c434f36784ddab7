"""The prediction of memory: what the tensors of the same pass hold, for every method and architecture."""

import copy
from pathlib import Path

import pytest
import torch
from tests.tiny import mapping
from tests.tiny_models import BUILDERS

from tutelage.methods import METHODS
from tutelage.models.language_model import LanguageModel
from tutelage.models.skeleton import load_skeleton
from tutelage.recipe import Recipe, recipe_of
from tutelage.rollouts.rollout import Rollout
from tutelage.training import memory
from tutelage.training.ledger import Ledger, as_fake, pretending
from tutelage.training.setup import student_tokenizer
from tutelage.training.texts import Reader, read_texts


def _parts(recipe: Recipe) -> dict[str, memory.Part]:
    tokenizer = student_tokenizer(recipe)
    teacher = None if recipe.teacher is None else load_skeleton(recipe.teacher, "teacher")
    student = load_skeleton(recipe.student, "student", tokenizer=tokenizer, teacher=teacher)
    texts = read_texts(recipe, Reader(tokenizer, (1,), bool(student.config.is_encoder_decoder)))
    return {part.name: part for part in memory.estimate(recipe, student, teacher, texts.train)}


def _pass(student: LanguageModel, teacher: LanguageModel, rollout: Rollout) -> int:
    with Ledger() as ledger:
        hidden = student.hidden(rollout)
        with torch.no_grad():
            teacher_hidden = teacher.hidden(rollout)
        (hidden.square().sum() + teacher_hidden.sum()).backward()
    return ledger.peak


class _Shape(LanguageModel):
    def _verify(self) -> None:
        pass


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS.keys())
def test_fake_tensors_hold_as_many_bytes_as_real_ones(build) -> None:
    rollout = Rollout.of([(3, 4, 5)] * 16, [(6,) * length for length in (9, 3, 2, 4)] * 4)
    models = [build(16, 40).eval(), build(24, 40).eval()]
    skeletons = [copy.deepcopy(model).to("meta") for model in models]
    real = _pass(LanguageModel(models[0]), LanguageModel(models[1]), rollout)
    with pretending():
        fake = _pass(_Shape(as_fake(skeletons[0])), _Shape(as_fake(skeletons[1])), rollout)
    assert fake == pytest.approx(real, rel=0.05)


def test_the_ledger_forgets_what_is_freed() -> None:
    with Ledger() as ledger:
        first = torch.zeros(100)
        second = torch.zeros(50)
        del first
        third = second + 1
    assert (ledger.held, ledger.peak) == (400, 600)
    del third


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_predicted(method: str, tmp_path: Path) -> None:
    parts = _parts(recipe_of(mapping(tmp_path, method)))
    names = list(parts)
    phases = [part for part in parts.values() if not part.at_once]
    held = sum(part.gibibytes for part in parts.values() if part.at_once and not part.name.startswith("peak"))
    assert parts[names[-1]].gibibytes == pytest.approx(held + max(part.gibibytes for part in phases))
    writes = {name for name in names if name.startswith("text by the")}
    assert bool(writes) == (method not in ("sft", "supervised-kd", "pre-distil"))
    assert ("the method's own modules" in parts) == (method in ("moment-matching", "pre-distil"))


def test_smaller_micro_batches_and_checkpointing_need_less(tmp_path: Path) -> None:
    def update(**train: object) -> float:
        recipe = mapping(tmp_path, "supervised-kd")
        recipe["train"] |= train
        parts = _parts(recipe_of(recipe))
        return next(part.gibibytes for name, part in parts.items() if name.startswith("update"))

    whole = update(batch_size=8, micro_batch_tokens=4096)
    assert update(batch_size=8, micro_batch_tokens=16) < whole
    assert update(batch_size=8, micro_batch_tokens=4096, gradient_checkpointing=True) < whole


def test_an_encoder_decoder_model_is_predicted(tmp_path: Path) -> None:
    parts = _parts(recipe_of(mapping(tmp_path, "on-policy-kd", "t5")))
    assert parts["text by the student"].gibibytes > 0


def _adapted(folder: Path, **changes: object) -> dict[str, memory.Part]:
    recipe = mapping(folder, "supervised-kd")
    recipe["student"] |= {"adapter": {"rank": 2, "targets": ["q_proj", "v_proj"]}}
    return _parts(recipe_of(recipe | changes))


def test_of_an_adapter_only_its_own_weights_learn(tmp_path: Path) -> None:
    whole, adapted = _parts(recipe_of(mapping(tmp_path, "supervised-kd"))), _adapted(tmp_path)
    learning = 2 * 2 * 2 * (2 * 16) * 4 / 2**30  # layers, matrices, rank, both widths, bytes
    assert adapted["optimiser"].gibibytes == pytest.approx(2 * learning)
    assert adapted["student's weights"].gibibytes == pytest.approx(whole["student's weights"].gibibytes + learning)
    assert adapted["teacher's weights"] == whole["teacher's weights"]
    updates = [
        next(p.gibibytes for name, p in parts.items() if name.startswith("update")) for parts in (whole, adapted)
    ]
    assert updates[1] < updates[0]


def test_the_base_of_an_adapter_is_held_once_where_it_is_the_teacher(tmp_path: Path) -> None:
    recipe = mapping(tmp_path, "supervised-kd")
    assert "teacher's weights" not in _adapted(tmp_path, teacher=recipe["student"])
    assert "teacher's weights" in _adapted(tmp_path, teacher={**recipe["student"], "dtype": "bfloat16"})


def test_a_stored_adapter_is_predicted_as_a_fresh_one(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    fresh = _adapted(tmp_path)
    base = tmp_path / "llama-student"
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"])).save_pretrained(tmp_path / "adapter")
    recipe = mapping(tmp_path, "supervised-kd")
    recipe["student"]["model"] = str(tmp_path / "adapter")
    stored = _parts(recipe_of(recipe))
    for name in ("student's weights", "optimiser", "teacher's weights"):
        assert stored[name].gibibytes == pytest.approx(fresh[name].gibibytes)
