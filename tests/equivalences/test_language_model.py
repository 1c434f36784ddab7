"""The next-token shift, padding and masks of LanguageModel, and reading token by token, against transformers."""

import pytest
import torch
from tests.tiny_models import (
    ARCHITECTURES,
    DECODER_ONLY,
    ENCODER_DECODER,
    STOP,
    build,
    dtype_of,
    language_model,
    own_logits,
    ragged,
)

from tutelage.errors import InputError
from tutelage.models.language_model import LanguageModel
from tutelage.models.stepping import stepper as stepper_of
from tutelage.rollouts.rollout import Rollout

architecture = pytest.mark.parametrize("name", ARCHITECTURES)
decoder_only = pytest.mark.parametrize("name", DECODER_ONLY)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    rtol, atol = (1e-4, 1e-5) if found.dtype == torch.float32 else (1e-9, 1e-9)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


@architecture
def test_head_on_hidden_states_gives_the_models_own_logits(name: str) -> None:
    model = language_model(name, dtype=dtype_of(name))
    rollout = ragged()
    expected = [
        own_logits(model.model, prompt, response)[list(mask)]
        for prompt, response, mask in zip(rollout.prompts, rollout.responses, rollout.masks, strict=True)
    ]
    found = model.head.logits(model.hidden(rollout))
    assert found.shape == (rollout.positions, model.head.vocabulary)
    rtol, atol = (1e-4, 1e-5) if dtype_of(name) == torch.float32 else (1e-6, 1e-7)  # rotary angles are float32
    torch.testing.assert_close(found, torch.cat(expected), rtol=rtol, atol=atol)


@architecture
def test_mean_log_probability_is_the_models_own_loss(name: str) -> None:
    """transformers shifts the labels itself; −100 is the prompt."""
    model = language_model(name, dtype=dtype_of(name))
    prompt, response = (3, 4, 5), (9, 10, 11, STOP)
    if model.is_encoder_decoder:
        loss = model.model(input_ids=torch.tensor([prompt]), labels=torch.tensor([response])).loss
    else:
        labels = torch.tensor([[-100] * len(prompt) + list(response)])
        loss = model.model(input_ids=torch.tensor([prompt + response]), labels=labels).loss
    rollout = Rollout.of([prompt], [response])
    logp = model.head.logits(model.hidden(rollout)).log_softmax(-1)
    mean = -logp.gather(1, model.targets(rollout)[:, None]).mean()
    torch.testing.assert_close(mean, loss.to(mean.dtype), rtol=1e-5, atol=1e-6)


@architecture
def test_sequences_together_are_sequences_alone(name: str) -> None:
    model, rollout = language_model(name, dtype=dtype_of(name)), ragged()
    alone = [model.hidden(rollout.select([row])) for row in range(len(rollout))]
    assert_close(model.hidden(rollout), torch.cat(alone))


@decoder_only
def test_left_padding_is_right_padding(name: str) -> None:
    model, rollout = build(name, dtype=dtype_of(name)), ragged()
    right = LanguageModel(model, padding_side="right").hidden(rollout)
    assert_close(LanguageModel(model, padding_side="left").hidden(rollout), right)


@architecture
@pytest.mark.parametrize("side", ["right", "left"])
def test_order_of_the_batch_is_the_order_of_the_rows_only(name: str, side: str) -> None:
    model, rollout = LanguageModel(build(name, dtype=dtype_of(name)), padding_side=side), ragged()
    order = [3, 0, 4, 2, 1]
    blocks = dict(enumerate(model.hidden(rollout).split(list(rollout.positions_of))))
    assert_close(model.hidden(rollout.select(order)), torch.cat([blocks[row] for row in order]))


@decoder_only
@pytest.mark.parametrize("side", ["right", "left"])
def test_mask_of_a_conversation_picks_the_states_before_its_tokens(name: str, side: str) -> None:
    """Prompt a b c, then assistant d e /s, user u v, assistant f /s.

    index      0  1  2  3  4  5  6  7  8  9
    token      a  b  c  d  e  /s u  v  f  /s
    in loss    .  .  .  x  x  x  .  .  x  x
    state      .  .  x  x  x  .  .  x  x  .     one to the left: what predicts the tokens in the loss
    """
    model = LanguageModel(build(name, dtype=dtype_of(name)), padding_side=side)
    prompt, response = (3, 4, 5), (9, 10, STOP, 20, 21, 11, STOP)
    mask = (True, True, True, False, False, True, True)
    longer = ((6,) * 9, (7,) * 9, (True,) * 9)  # so that there is padding on the one in question
    rollout = Rollout.of([longer[0], prompt], [longer[1], response], masks=[longer[2], mask])
    assert rollout.targets[9:] == (9, 10, STOP, 11, STOP)
    states = model.network.base_model(input_ids=torch.tensor([prompt + response])).last_hidden_state[0]
    assert_close(model.hidden(rollout)[9:], states[[2, 3, 4, 7, 8]])
    unshifted = states[[3, 4, 5, 8, 9]]
    assert not torch.allclose(model.hidden(rollout)[9:], unshifted, atol=1e-2)


@pytest.mark.parametrize("name", ENCODER_DECODER)
def test_decoder_starts_from_its_start_id_and_reads_the_response(name: str) -> None:
    model = language_model(name)
    prompt, response = (3, 4, 5), (9, 10, STOP)
    start = {"t5": 0, "bart": 2}[name]
    logits = model.model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[start, 9, 10]])).logits[0]
    rollout = Rollout.of([prompt], [response], masks=[[True, False, True]])
    torch.testing.assert_close(model.head.logits(model.hidden(rollout)), logits[[0, 2]], rtol=1e-6, atol=1e-7)


@architecture
def test_what_comes_after_a_token_does_not_change_its_state(name: str) -> None:
    model = language_model(name, dtype=dtype_of(name))
    short, long = Rollout.of([[3, 4]], [[9, 10]]), Rollout.of([[3, 4]], [[9, 10, 30, 31, 32]])
    assert_close(model.hidden(long)[:2], model.hidden(short))


@architecture
def test_the_head_shares_the_models_parameters(name: str) -> None:
    model = language_model(name, dtype=dtype_of(name))
    assert any(model.head.weight is parameter for parameter in model.model.parameters())


@architecture
def test_a_row_without_masked_tokens_gives_no_states(name: str) -> None:
    model, rollout = language_model(name, dtype=dtype_of(name)), ragged()
    with_silent = Rollout.of(
        [*rollout.prompts, (3, 4)],
        [*rollout.responses, (5, 6)],
        masks=[*rollout.masks, (False, False)],
    )
    assert_close(model.hidden(with_silent), model.hidden(rollout))


@architecture
def test_weights_that_are_no_numbers_are_refused_in_words(name: str) -> None:
    model = build(name, dtype=dtype_of(name))
    next(model.parameters()).data.fill_(torch.nan)
    with pytest.raises(InputError, match="computes logits that are not finite on a probe"):
        LanguageModel(model)


def test_an_empty_prompt_is_refused_by_decoder_only_models() -> None:
    """Nothing predicts its first token; the state before it would be another row's."""
    model = language_model("gpt2")
    with pytest.raises(ValueError, match="prompt"):
        model.hidden(Rollout.of([[3, 4], []], [[5], [6, 7]]))


def test_a_vocabulary_of_three_tokens_is_a_model_too() -> None:
    """Exactness tests by enumeration use one."""
    model = language_model("gpt2", vocabulary=3)
    assert model.hidden(Rollout.of([[0]], [[2, 1]])).shape == (2, 16)


@architecture
def test_reading_token_by_token_gives_the_states_of_reading_at_once(name: str) -> None:
    model = language_model(name, dtype=dtype_of(name))
    prompts = [(3, 4, 5), (6,), (7, 8, 9, 10, 11, 12, 13), (14, 15)]
    tokens = torch.tensor([[20, 21, 22, 23, 24, 25], [30, 31, 32, 33, 34, 35], [40, 41, 42, 43, 44, 45], [9] * 6])
    expected = model.hidden(Rollout.of(prompts, [(*row, 0) for row in tokens.tolist()])).view(4, 7, -1)
    stepper = stepper_of(model)
    with torch.no_grad():
        states = [stepper.read(prompts)] + [stepper.step(tokens[:, position]) for position in range(6)]
    assert_close(torch.stack(states, 1), expected.detach())


@architecture
@pytest.mark.parametrize("ragged_prompts", [True, False])
def test_dropping_sequences_changes_nothing_for_those_that_stay(name: str, ragged_prompts: bool) -> None:
    model = language_model(name, dtype=dtype_of(name))
    prompts = [(3, 4, 5), (6,), (7, 8, 9, 10, 11, 12, 13), (14, 15)] if ragged_prompts else [(3, 4), (5, 6)] * 2
    tokens = torch.tensor([[20, 21, 22, 23, 24, 25], [30, 31, 32, 33, 34, 35], [40, 41, 42, 43, 44, 45], [9] * 6])
    expected = model.hidden(Rollout.of(prompts, [(*row, 0) for row in tokens.tolist()])).view(4, 7, -1)
    stepper, rows = stepper_of(model), torch.arange(4)
    with torch.no_grad():
        stepper.read(prompts)
        for position in range(6):
            if position in (1, 4):  # 0 1 2 3 → 0 2 3 → 3 (after a change of order: 3 0)
                kept = torch.tensor([0, 2, 3]) if position == 1 else torch.tensor([2, 0])
                stepper.keep(kept)
                rows = rows[kept]
            state = stepper.step(tokens[rows, position])
            assert_close(state, expected[rows, position + 1].detach())
    assert rows.tolist() == [3, 0]
