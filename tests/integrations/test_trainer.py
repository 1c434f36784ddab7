"""The loss inside transformers' Trainer: our loop's gradient, transformers' own count, any cut of the step."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests import definitions
from tests.integrations.test_batches import padded
from tests.tiny_models import build, own_logits, ragged
from transformers import Trainer, TrainerCallback, TrainingArguments

from tutelage.errors import InputError
from tutelage.integrations.trainer import DistillationTrainer
from tutelage.methods import GKD, SFT, SupervisedKD, Terms
from tutelage.models.language_model import LanguageModel
from tutelage.models.teachers import LocalTeacher
from tutelage.training.dropout import without_dropout

KD = SupervisedKD(divergence="jsd(0.3)", cross_entropy=0.25)
BY_SEQUENCE = SupervisedKD(divergence="reverse_kl", reduction="sequence")


def rows(rollout=None, encoder_decoder=False):
    rollout = rollout or ragged()
    if encoder_decoder:
        return [
            {"input_ids": list(p), "labels": list(r)} for p, r in zip(rollout.prompts, rollout.responses, strict=True)
        ]
    alone = [padded(rollout.select([row])) for row in range(len(rollout))]
    return [{name: column[0].tolist() for name, column in batch.items()} for batch in alone]


def collate(batch):
    """Pad right, as `DataCollatorForSeq2Seq` does."""
    fills = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    for row in batch:
        row.setdefault("attention_mask", [1] * len(row["input_ids"]))
    return {
        name: torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row[name]) for row in batch], batch_first=True, padding_value=fill
        )
        for name, fill in fills.items()
    }


def arguments(folder, per_device=5, accumulation=1, **changes):
    """One step of plain descent at rate 1, so that the weights move by the gradient."""
    settings = {
        "max_steps": 1, "learning_rate": 1.0, "lr_scheduler_type": "constant", "optim": "sgd", "max_grad_norm": 0.0,
        "report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }  # fmt: skip
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        **settings | changes,
    )


def gradients(folder, model, kind=DistillationTrainer, data=None, shape=(5, 1), **options):
    """What a step takes from the weights."""
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = kind(model, arguments(folder, *shape), data_collator=collate, train_dataset=data or rows(), **options)
    loss = trainer.train().training_loss
    return loss, {name: before[name] - weight.detach() for name, weight in model.named_parameters()}


def by_our_loop(objective, model, teacher, rollout=None):
    rollout, student = rollout or ragged(), LanguageModel(model)
    loss = objective.terms(rollout, student, LocalTeacher(LanguageModel(teacher))).losses["student"]
    loss = loss / objective.units(rollout)["student"]
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    return loss.item(), found


def assert_same(found, expected, tolerance=1e-9):
    assert found[0] == pytest.approx(expected[0], rel=max(tolerance, 1e-6))  # the Trainer adds losses up in float32
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=tolerance, atol=tolerance)


def models(name="gpt2", **sizes):
    """A student without dropout, and a teacher."""
    student, teacher = build(name, 1, **sizes), build(name, 2, width=24, **sizes)
    without_dropout(student)
    return student, teacher


@pytest.mark.parametrize("objective", [KD, BY_SEQUENCE, SFT()], ids=lambda o: f"{o.name}-{o.reduction}")
def test_a_step_has_the_gradient_of_our_loop(tmp_path, objective):
    student, teacher = models()
    expected = by_our_loop(objective, student, teacher)
    assert_same(gradients(tmp_path, student, objective=objective, teacher=teacher), expected)


@pytest.mark.parametrize("objective", [KD, BY_SEQUENCE], ids=lambda o: o.reduction)
@pytest.mark.parametrize("shape", [(1, 5), (2, 3)])
def test_accumulation_does_not_change_the_gradient(tmp_path, objective, shape):
    student, teacher = models()
    expected = by_our_loop(objective, student, teacher)
    found = gradients(tmp_path, student, shape=shape, objective=objective, teacher=teacher)
    assert_same(found, expected)


def test_the_gradient_is_that_of_the_definition(tmp_path):
    """From transformers' own logits, sequence by sequence, in float64."""
    student, teacher = models()
    values = []
    for prompt, response, mask in zip(ragged().prompts, ragged().responses, ragged().masks, strict=True):
        seen = [place for place, used in enumerate(mask) if used]
        logits = own_logits(student, prompt, response)[seen]
        with torch.no_grad():
            wanted = own_logits(teacher, prompt, response)[seen].softmax(-1)
        surprise = -logits.log_softmax(-1)[range(len(seen)), [response[place] for place in seen]]
        values.append(0.75 * definitions.divergence("jsd(0.3)", logits.softmax(-1), wanted) + 0.25 * surprise)
    loss = torch.cat(values).mean()
    loss.backward()
    expected = loss.item(), {name: weight.grad.clone() for name, weight in student.named_parameters()}
    student.zero_grad()
    assert_same(gradients(tmp_path, student, shape=(2, 3), objective=KD, teacher=teacher), expected)


@pytest.mark.parametrize("shape", [(5, 1), (2, 3)])
def test_fine_tuning_is_what_the_trainer_itself_does(tmp_path, shape):
    student, _ = models(dtype=torch.float32)
    expected = gradients(tmp_path, copy.deepcopy(student), kind=Trainer, shape=shape)
    assert_same(gradients(tmp_path, student, shape=shape, objective=SFT()), expected, 1e-5)


def test_encoder_decoder(tmp_path):
    student, teacher = models("bart")
    plain = ragged().of(ragged().prompts, ragged().responses)
    expected = by_our_loop(KD, student, teacher, plain)
    found = gradients(tmp_path, student, data=rows(encoder_decoder=True), shape=(2, 3), objective=KD, teacher=teacher)
    assert_same(found, expected)


def test_evaluation_callbacks_and_saving_are_the_trainers(tmp_path):
    student, teacher = models()
    expected = by_our_loop(KD, student, teacher)[0]
    steps = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            steps.append(state.global_step)

    trainer = DistillationTrainer(
        student, arguments(tmp_path, max_steps=3, learning_rate=0.01, per_device_eval_batch_size=5),
        data_collator=collate, train_dataset=rows(), eval_dataset=rows(), callbacks=[Count()],
        objective=KD, teacher=teacher,
    )  # fmt: skip
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)
    trainer.train()
    assert steps == [1, 2, 3]
    assert trainer.evaluate()["eval_loss"] < expected
    assert "forward" not in vars(student)
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "model.safetensors").exists()


def test_metrics_of_logits_get_them(tmp_path):
    student, teacher = models()
    trainer = DistillationTrainer(
        student, arguments(tmp_path, per_device_eval_batch_size=5), data_collator=collate, eval_dataset=rows(),
        compute_metrics=lambda found: {"shape": list(found.predictions.shape)}, objective=KD, teacher=teacher,
    )  # fmt: skip
    longest = max(ragged().lengths)
    assert trainer.evaluate()["eval_shape"] == [5, longest, 50]


def test_a_batch_without_labels_adds_nothing(tmp_path):
    student, teacher = models()
    expected = by_our_loop(KD, student, teacher)
    silent = rows()[0]
    silent["labels"] = [-100] * len(silent["labels"])
    found = gradients(tmp_path, student, data=[*rows(), silent], shape=(1, 6), objective=KD, teacher=teacher)
    assert_same(found, expected)


def test_two_processes_end_where_one_does(tmp_path):
    """Wrapped by DistributedDataParallel, each with two of four sequences, one at a time."""
    worker = Path(__file__).with_name("trainer_worker.py")
    root = worker.parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*command, str(worker), str(tmp_path)], env=environment, timeout=300, check=True)
    two = torch.load(tmp_path / "two.pt")
    for objective in (KD, BY_SEQUENCE):
        student, teacher = models()
        loss, one = gradients(tmp_path, student, data=rows()[:4], objective=objective, teacher=teacher)
        assert_same((loss, two[objective.reduction][1]), (loss, one))  # each process logs a loss of its own


def test_an_objective_of_ones_own(tmp_path):
    class Scaled:
        def units(self, rollout):
            return KD.units(rollout)

        def terms(self, rollout, student, teacher, vocabulary):
            return Terms({"student": 2 * KD.terms(rollout, student, teacher, vocabulary).losses["student"]})

    student, teacher = models()
    loss, expected = by_our_loop(KD, student, teacher)
    found = gradients(tmp_path, student, objective=Scaled(), teacher=teacher)
    assert_same(found, (2 * loss, {name: 2 * value for name, value in expected.items()}))


def test_what_would_be_ignored_is_refused(tmp_path):
    student, teacher = models()

    def start(objective, given=teacher, **changes):
        DistillationTrainer(student, arguments(tmp_path, **changes), objective=objective, teacher=given)

    with pytest.raises(InputError, match="GKD has models write text"):
        start(GKD())
    with pytest.raises(InputError, match="give teacher=MODEL"):
        start(KD, None)
    with pytest.raises(InputError, match="label_smoothing_factor"):
        start(KD, label_smoothing_factor=0.1)
