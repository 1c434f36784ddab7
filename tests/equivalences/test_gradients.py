"""The loop's arithmetic: sums over micro-batches divided by the units of the step, against dense definitions."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tests import definitions
from tests.tiny_models import (
    ARCHITECTURES,
    EXACT,
    build,
    dtype_of,
    language_model,
    own_logits,
    pair,
    ragged,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tutelage.methods import GKD, SFT, OnPolicyKD, SeqKD, SupervisedKD
from tutelage.models.language_model import LanguageModel
from tutelage.models.teachers import LocalTeacher
from tutelage.recipe import recipe_of, with_changes
from tutelage.rollouts.rollout import Rollout, joined
from tutelage.training.dropout import without_dropout
from tutelage.training.loop import Loop
from tutelage.training.progress import PlainDisplay
from tutelage.training.run import train
from tutelage.training.setup import prepare
from tutelage.training.signals import StopRequest

Gradients = dict[str, torch.Tensor]
BUDGETS = (1, 12, 30, 10_000)  # one sequence each … all of them together
SHARED = (SupervisedKD(divergence="jsd(0.1)"), SupervisedKD(divergence="reverse_kl", reduction="sequence"))


def by_the_loop(method, rollout: Rollout, student, teacher, budget: int = 10_000) -> tuple[float, Gradients]:
    """Loss and gradients of one step, computed as the loop does."""
    student.model.zero_grad(set_to_none=True)
    units, loss = method.units(rollout)["student"], 0.0
    for part in rollout.micro_batches(budget):
        share = method.terms(part, student, teacher).losses["student"] / units
        share.backward()
        loss += share.item()
    return loss, gradients_of(student)


def gradients_of(student: LanguageModel) -> Gradients:
    return {n: p.grad.clone() for n, p in student.model.named_parameters() if p.grad is not None}


def by_definition(
    divergence: str,
    rollout: Rollout,
    student: LanguageModel,
    teacher: LocalTeacher,
    reduction: str,
    cross_entropy: float = 0.0,
    temperature: float = 1.0,
) -> tuple[float, Gradients]:
    """Loss and gradients from transformers' own logits, sequence by sequence, without micro-batches."""
    student.model.zero_grad(set_to_none=True)
    sequences = []
    for row, (prompt, response, mask) in enumerate(zip(rollout.prompts, rollout.responses, rollout.masks, strict=True)):
        seen = [t for t, used in enumerate(mask) if used]
        logits = own_logits(student.model, prompt, response)[seen]
        with torch.no_grad():
            p = (own_logits(teacher.model.model, prompt, response)[seen] / temperature).softmax(-1)
        share = 0.0 if rollout.writers[row] == "student" else cross_entropy
        values = (1 - share) * definitions.divergence(divergence, (logits / temperature).softmax(-1), p)
        surprise = -logits.softmax(-1)[range(len(seen)), [response[t] for t in seen]].log()
        sequences.append(values + share * surprise)
    sequences = [values for values in sequences if len(values)]
    if reduction == "token":
        loss = torch.cat(sequences).mean()
    else:  # GKD, Eq. 2: the mean over the tokens of a sequence first, then over the sequences
        loss = torch.stack([values.mean() for values in sequences]).mean()
    loss.backward()
    return loss.item(), gradients_of(student)


def assert_same(found: tuple[float, Gradients], expected: tuple[float, Gradients], rtol: float) -> None:
    assert found[0] == pytest.approx(expected[0], rel=rtol, abs=1e-14)
    assert found[1].keys() == expected[1].keys()
    largest = max(g.abs().max().item() for g in expected[1].values())
    for name, gradient in expected[1].items():
        torch.testing.assert_close(
            found[1][name], gradient, rtol=rtol, atol=rtol * largest, msg=lambda m, n=name: f"{n}: {m}"
        )


def student_written(rollout: Rollout) -> Rollout:
    return replace(rollout, writers=("student",) * len(rollout))


def powers_of_two() -> Rollout:
    """Rows whose 1 / length is exact in float32."""
    return ragged().select([1, 2, 4])


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("method", SHARED, ids=lambda m: m.reduction)
@pytest.mark.parametrize("budget", BUDGETS[:-1])
def test_any_micro_batches_give_the_same_gradient_in_float64(name: str, method, budget: int) -> None:
    student, teacher = pair(name)
    whole = by_the_loop(method, ragged(), student, teacher)
    assert_same(by_the_loop(method, ragged(), student, teacher, budget), whole, 1e-10)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("budget", [1, 30])
def test_any_micro_batches_give_the_same_gradient_in_float32(name: str, budget: int) -> None:
    student, teacher = pair(name, dtype=torch.float32)
    whole = by_the_loop(SHARED[0], ragged(), student, teacher)
    # These models differ by 0.004 nats a token, found as a difference of numbers near 1.
    assert_same(by_the_loop(SHARED[0], ragged(), student, teacher, budget), whole, 1e-5)


def test_budgets_cut_from_one_sequence_to_all() -> None:
    assert [len(ragged().micro_batches(budget)) for budget in BUDGETS] == [5, 4, 3, 1]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("method", SHARED, ids=lambda m: m.reduction)
def test_order_within_the_batch_does_not_matter(name: str, method) -> None:
    student, teacher = pair(name)
    other = ragged().select([3, 1, 4, 0, 2])
    whole = by_the_loop(method, ragged(), student, teacher)
    assert_same(by_the_loop(method, other, student, teacher, 20), whole, 1e-10)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_padding_side_does_not_matter(name: str) -> None:
    student, teacher = pair(name)
    left = LanguageModel(student.model, padding_side="left")
    left_teacher = LocalTeacher(LanguageModel(teacher.model.model, padding_side="left"))
    right = by_the_loop(SHARED[0], ragged(), student, teacher, 30)
    assert_same(by_the_loop(SHARED[0], ragged(), left, left_teacher, 30), right, 1e-9)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd(0.1)", "jsd(0.9)", "total_variation"])
def test_token_mean_is_the_definition(name: str, divergence: str) -> None:
    student, teacher = pair(name)
    expected = by_definition(divergence, ragged(), student, teacher, "token")
    found = by_the_loop(SupervisedKD(divergence=divergence), ragged(), student, teacher, 12)
    assert_same(found, expected, 1e-10)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("rollout", [powers_of_two(), ragged()], ids=["8, 1, 1 tokens", "3, 8, 1, 9, 1 tokens"])
def test_sequence_mean_is_the_definition(name: str, rollout: Rollout) -> None:
    """GKD, Eq. 2, then the mean over the batch; the weight of a token must not be rounded to float32."""
    student, teacher = pair(name)
    expected = by_definition("jsd(0.5)", rollout, student, teacher, "sequence")
    method = SupervisedKD(divergence="jsd(0.5)", reduction="sequence")
    assert_same(by_the_loop(method, rollout, student, teacher, 12), expected, 1e-10)
    per_token = by_definition("jsd(0.5)", rollout, student, teacher, "token")
    assert expected[0] != pytest.approx(per_token[0], rel=1e-2)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("share", [0.25, 1.0, 0.3])
def test_cross_entropy_share_and_temperature_are_the_definition(reduction: str, share: float) -> None:
    student, teacher = pair("gpt2")
    expected = by_definition("forward_kl", powers_of_two(), student, teacher, reduction, share, 2.0)
    method = SupervisedKD(divergence="forward_kl", cross_entropy=share, temperature=2.0, reduction=reduction)
    assert_same(by_the_loop(method, powers_of_two(), student, teacher, 12), expected, 1e-10)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_sft_is_the_cross_entropy_of_the_definition(reduction: str) -> None:
    student, teacher = pair("gpt2")
    expected = by_definition("forward_kl", powers_of_two(), student, teacher, reduction, 1.0)
    assert_same(by_the_loop(SFT(reduction=reduction), powers_of_two(), student, None, 12), expected, 1e-10)


@pytest.mark.parametrize("method", [OnPolicyKD(), GKD(student_fraction=1.0, divergence="reverse_kl")])
def test_loss_on_student_text_is_divided_by_the_tokens_trained_on(method) -> None:
    """TRL's GKD divides by the tokens of the data instead; doubling the text must not double the loss."""
    student, teacher = pair("gpt2")
    once = student_written(ragged())
    twice = joined([once, once])
    assert method.units(twice)["student"] == 2 * method.units(once)["student"] == 2 * len(once.targets)
    expected = by_definition(method.divergence, once, student, teacher, "token")
    assert_same(by_the_loop(method, once, student, teacher, 12), expected, 1e-10)
    assert_same(by_the_loop(method, twice, student, teacher, 40), expected, 1e-10)


def test_sequence_units_count_the_sequences_with_a_token_in_the_loss() -> None:
    silent = Rollout.of([[3], [4]], [[5, 6], [7]], masks=[[False, False], [True]])
    assert SupervisedKD(reduction="sequence").units(silent)["student"] == 1
    assert SupervisedKD(reduction="token").units(silent)["student"] == 1
    assert SupervisedKD(reduction="sequence").units(ragged())["student"] == 5


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_a_row_without_tokens_in_the_loss_takes_no_part(reduction: str) -> None:
    student, teacher = pair("gpt2")
    silent = Rollout.of([[3, 4]], [[5, 6]], masks=[[False, False]])
    method = SupervisedKD(reduction=reduction)
    expected = by_the_loop(method, ragged(), student, teacher)
    assert_same(by_the_loop(method, joined([ragged(), silent]), student, teacher, 1), expected, 1e-10)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("divergence", definitions.DIVERGENCES)
def test_identical_models_have_no_loss_and_no_gradient(name: str, divergence: str) -> None:
    model = build(name)
    student, teacher = LanguageModel(model), LocalTeacher(LanguageModel(copy.deepcopy(model)))
    loss, gradients = by_the_loop(SupervisedKD(divergence=divergence), ragged(), student, teacher)
    assert abs(loss) < 1e-14
    assert max(g.abs().max().item() for g in gradients.values()) < 1e-13


def _shifted(name: str, seed: int, width: int, constant: float) -> LanguageModel:
    """A model with a constant added to all its logits."""
    model = build(name, seed, width=width)
    if name == "gpt2":
        model.lm_head.bias = torch.nn.Parameter(torch.full((50,), constant, dtype=torch.float64))
    else:
        model.final_logits_bias += constant
    return LanguageModel(model)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("divergence", ["forward_kl", "jsd(0.1)"])
def test_a_constant_on_either_models_logits_changes_nothing(name: str, divergence: str) -> None:
    method = SupervisedKD(divergence=divergence, cross_entropy=0.25)
    plain = by_the_loop(method, ragged(), _shifted(name, 1, 16, 0), LocalTeacher(_shifted(name, 2, 24, 0)))
    for student_shift, teacher_shift in ((-20.0, 0.0), (0.0, -20.0)):
        student, teacher = _shifted(name, 1, 16, student_shift), LocalTeacher(_shifted(name, 2, 24, teacher_shift))
        assert_same(by_the_loop(method, ragged(), student, teacher), plain, 1e-10)


def test_a_constant_changes_nothing_between_padded_vocabularies() -> None:
    """Liger pads with logit 0 and ms-swift copies the teacher's logits; both depend on this constant."""
    results = []
    for constant in (0.0, -5.0, -20.0):
        student = language_model("phi", 1, vocabulary=56)
        with torch.no_grad():
            student.model.lm_head.bias += constant
        teacher = LocalTeacher(language_model("phi", 2, vocabulary=50))
        results.append(by_the_loop(SupervisedKD(), ragged(), student, teacher))
    for result in results[1:]:
        assert_same(result, results[0], 1e-9)


def test_cross_entropy_is_not_taken_on_student_text() -> None:
    student, teacher = pair("gpt2")
    rows = ragged()
    mixed = replace(rows, writers=("student", "data", "teacher", "student", "mixed"))
    for method in (SupervisedKD(cross_entropy=0.5), SeqKD(cross_entropy=1.0)):
        expected = by_definition("forward_kl", mixed, student, teacher, "token", method.cross_entropy)
        assert_same(by_the_loop(method, mixed, student, teacher, 12), expected, 1e-10)
        own = by_the_loop(method, student_written(rows), student, teacher, 12)
        assert_same(own, by_the_loop(SupervisedKD(), rows, student, teacher, 12), 1e-12)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_teacher_never_gets_a_gradient(name: str) -> None:
    student = language_model(name, 1, dtype=dtype_of(name))
    teacher = LocalTeacher(language_model(name, 2, dtype=dtype_of(name)))
    before = copy.deepcopy(teacher.model.model.state_dict())
    by_the_loop(SupervisedKD(divergence="jsd(0.5)"), ragged(), student, teacher, 12)
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.model.parameters())
    assert all(torch.equal(before[key], value) for key, value in teacher.model.model.state_dict().items())


@pytest.mark.parametrize("name", EXACT)
def test_metrics_are_sums_over_positions(name: str) -> None:
    student, teacher = pair(name)
    method = SupervisedKD(divergence="reverse_kl", cross_entropy=0.3)
    sums: dict[str, float] = {}
    for part in ragged().micro_batches(20):
        for key, value in method.terms(part, student, teacher).metrics.items():
            sums[key] = sums.get(key, 0.0) + value.item()
    tokens = ragged().positions
    divergence, _ = by_definition("reverse_kl", ragged(), student, teacher, "token")
    surprise, _ = by_definition("reverse_kl", ragged(), student, teacher, "token", 1.0)
    teachers, _ = by_definition("reverse_kl", ragged(), _unfrozen(teacher), teacher, "token", 1.0)
    expected = {"divergence": divergence, "cross_entropy": surprise, "teacher_cross_entropy": teachers}
    assert {key: value / tokens for key, value in sums.items()} == pytest.approx(expected, rel=1e-10)


def _unfrozen(teacher: LocalTeacher) -> LanguageModel:
    return LanguageModel(copy.deepcopy(teacher.model.model).requires_grad_(True))


@pytest.mark.parametrize("name", ["gpt2", "bart", "t5"])
def test_a_student_without_dropout_trains_as_in_evaluation_mode(name: str) -> None:
    student, teacher = pair(name)
    evaluating = by_the_loop(SHARED[0], ragged(), student, teacher)
    student.model.train()
    assert by_the_loop(SHARED[0], ragged(), student, teacher)[0] != pytest.approx(evaluating[0], rel=1e-4)
    without_dropout(student.model)
    assert_same(by_the_loop(SHARED[0], ragged(), student, teacher), evaluating, 1e-12)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Tiny student, teacher, tokenizer and rows on disk, as a recipe."""
    folder = tmp_path_factory.mktemp("loop")
    (folder / "run").mkdir()
    letters = ["<pad>", "<eos>", *"abcdefghijklmnopqrst"]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(letters)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>")
    for role, seed, width in (("student", 1, 16), ("teacher", 2, 24)):
        build("llama", seed, width=width, vocabulary=22, dtype=torch.float32).save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
    rows = [
        {"prompt": " ".join("abcdefg"[: 1 + row % 7]), "completion": " ".join("hijklmnop"[: 1 + 2 * (row % 4)])}
        for row in range(12)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return recipe_of(
        {
            "method": {"name": "gkd", "divergence": "jsd(0.1)", "student_decoding": {"max_new_tokens": 9}},
            "student": {"model": str(folder / "student")},
            "teacher": {"model": str(folder / "teacher")},
            "data": {"train": str(folder / "rows.jsonl")},
            # A large epsilon: AdamW's first step is otherwise the sign of the gradient, rounding errors included.
            "train": {"steps": 2, "batch_size": 8, "learning_rate": 0.01, "epsilon": 0.01, "warmup_steps": 1},
            "output": str(folder / "run"),
        }
    )


def test_the_loop_adds_up_the_gradient_of_the_definition(recipe) -> None:
    results = []
    for budget in (1, 25, 10_000):
        setup = prepare(with_changes(recipe, train={"micro_batch_tokens": budget}), lambda line: None)
        loop = Loop(setup, PlainDisplay("test", 2, 0, Console(quiet=True)), StopRequest())
        rollout = setup.recipe.method.sampler(setup.sources()).sample(setup.texts.train.kept[:8], 0)
        sums = loop._updater._gradients(rollout, ("student",))
        results.append((sums["loss"], gradients_of(setup.student)))
        if budget > 1:
            expected = by_definition("jsd(0.1)", rollout, setup.student, setup.teacher, "token")
            assert_same(results[-1], expected, 1e-4)  # dense, in float32
            assert_same(results[-1], results[0], 3e-6)


def test_micro_batches_do_not_change_what_a_run_learns(recipe, tmp_path: Path) -> None:
    weights = []
    for budget in (1, 10_000):
        changed = replace(
            with_changes(recipe, train={"micro_batch_tokens": budget}), output=str(tmp_path / str(budget))
        )
        run = train(changed, report=lambda line: None)
        weights.append(_weights(run.model))
    start = _weights(Path(recipe.student.model))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(tensor, start[name]) for name, tensor in weights[0].items())


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")
