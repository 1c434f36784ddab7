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
