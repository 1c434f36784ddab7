"""Pre-distillation: hidden states of the right layers at the right positions, and the sum of its three parts."""

import pytest
import torch
from tests.definitions import kl
from tests.tiny_models import ARCHITECTURES, dtype_of, language_model, own_logits, pair, ragged

from tutelage.errors import InputError
from tutelage.methods import PreDistil
from tutelage.models.teachers import LocalTeacher


def own_states(model, prompt, response, layer: int) -> torch.Tensor:
    """What transformers itself gives after a layer at the positions that predict the response, unpadded."""
    if model.config.is_encoder_decoder:
        output = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([response]), output_hidden_states=True)
        return output.decoder_hidden_states[layer + 1][0]
    ids = torch.tensor([prompt + response])
    output = model(input_ids=ids, use_cache=False, output_hidden_states=True)
    return output.hidden_states[layer + 1][0, len(prompt) - 1 : -1]


def masked(columns: list[torch.Tensor]) -> torch.Tensor:
    rollout = ragged()
    return torch.cat([c[torch.tensor(mask)] for c, mask in zip(columns, rollout.masks, strict=True)])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layer_states_are_the_models_own(name: str, side: str) -> None:
    model = language_model(name, 1, dtype=dtype_of(name))
    model.padding_side = side
    hidden, states = model.layer_states(ragged(), [1, 0])
    tolerance = 1e-4 if name == "gemma2" else 1e-6
    torch.testing.assert_close(hidden, model.hidden(ragged()), rtol=tolerance, atol=tolerance)
    for found, layer in zip(states, (1, 0), strict=True):
        rows = zip(ragged().prompts, ragged().responses, strict=True)
        wanted = masked([own_states(model.model, prompt, response, layer) for prompt, response in rows])
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_the_loss_is_the_sum_of_its_parts(kind: str) -> None:
    student, teacher = pair(kind)  # of widths 16 and 24
    method = PreDistil(cross_entropy=0.2, word=0.8, hidden=3.0, layers={0: 1, 1: 0})
    own = {"projection": method.modules(student, teacher, 0)["projection"].double()}
    found = method.terms(ragged(), student, teacher, modules=own)
    rows = list(zip(ragged().prompts, ragged().responses, strict=True))
    logq, logp = (
        masked([own_logits(m, *row).log_softmax(-1) for row in rows]) for m in (student.model, teacher.model.model)
    )
    targets = torch.tensor(ragged().targets)
    words = -0.2 * logq[range(len(targets)), targets].sum() + 0.8 * kl(logp.exp(), logq.exp()).sum()
    distance = torch.zeros((), dtype=torch.float64)
    for layer, other in ((0, 1), (1, 0)):
        ours = masked([own_states(student.model, *row, layer) for row in rows]) @ own["projection"].weight.T
        theirs = masked([own_states(teacher.model.model, *row, other) for row in rows])
        distance = distance + ((ours - theirs) ** 2).sum() / 24
    torch.testing.assert_close(found.losses["student"], words, rtol=1e-8, atol=0)
    torch.testing.assert_close(found.losses["hidden"], 3.0 * distance, rtol=1e-8, atol=0)
    parameters = [*student.model.parameters(), own["projection"].weight]
    ours, theirs = (
        torch.autograd.grad(loss, parameters, materialize_grads=True)
        for loss in (found.losses["student"] + found.losses["hidden"], words + 3.0 * distance)
    )
    for first, second in zip(ours, theirs, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-9)
    assert ours[-1].abs().max() > 0


def test_no_gradient_goes_into_the_teacher() -> None:
    student, teacher = pair("gpt2")
    teacher.model.model.requires_grad_(True)
    method = PreDistil()
    terms = method.terms(ragged(), student, teacher, modules=method.modules(student, teacher, 0))
    (terms.losses["student"] + terms.losses["hidden"]).backward()
    assert all(p.grad is None for p in teacher.model.model.parameters())


def test_a_student_that_is_its_teacher_has_no_regression() -> None:
    student = language_model("gpt2", 1)
    teacher, method = LocalTeacher(language_model("gpt2", 1)), PreDistil()
    terms = method.terms(ragged(), student, teacher, modules=method.modules(student, teacher, 0))
    assert terms.losses["hidden"].item() < 1e-9
    assert terms.metrics["divergence"].item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (3, 12, {0: 3, 1: 7, 2: 11}),  # the tables of Shleifer and Rush
        (2, 12, {0: 5, 1: 11}),
        (1, 12, {0: 11}),
        (4, 16, {0: 3, 1: 7, 2: 11, 3: 15}),
        (2, 2, {0: 0, 1: 1}),
        (4, 2, {0: 0, 1: 0, 2: 1, 3: 1}),
    ],
)
def test_layers_are_spread_evenly_up_to_the_last(student: int, teacher: int, expected: dict[int, int]) -> None:
    assert PreDistil().pairs(student, teacher) == expected


def test_the_map_begins_as_the_identity_or_as_the_seed_says() -> None:
    same, wider = pair("gpt2")[0], pair("gpt2")[1]
    method = PreDistil()
    equal = method.modules(same, LocalTeacher(language_model("gpt2", 2)), 0)["projection"].weight
    assert torch.equal(equal, torch.eye(16))
    weights = [method.modules(same, wider, seed)["projection"].weight for seed in (0, 0, 1)]
    assert weights[0].shape == (24, 16)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_layers_that_are_not_there_are_refused() -> None:
    student, teacher = pair("gpt2")
    with pytest.raises(InputError, match="pairs layer 0 of the student with layer 7 of the teacher"):
        PreDistil(layers={0: 7}).modules(student, teacher, 0)
    with pytest.raises(InputError, match="teacher in this process"):
        PreDistil().modules(student, None, 0)
    with pytest.raises(ValueError, match="layers is empty"):
        PreDistil(layers={})
