"""Sequences that come and go over one cache: each is read as if it were alone, and nothing is copied at a step."""

import pytest
import torch
from tests.models.tiny import DECODERS, fresh, spread
from tests.tiny_models import ARCHITECTURES, DECODER_ONLY, dtype_of, language_model
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from tutelage.models import decode_cache
from tutelage.models.language_model import LanguageModel
from tutelage.models.stepping import BatchStepper, SlotStepper, stepper
from tutelage.rollouts.rollout import Rollout

PROMPTS = [(3, 4, 5), (6,), (7, 8, 9, 10, 11, 12, 13), (14, 15)]
LATER = [(16, 17, 18, 19, 20, 21, 22, 23, 24), (25,)]
SLIDING = ("gemma2",)
FAMILIES = [name for name in DECODERS if name != "xlm"]


def states(model: LanguageModel, prompt: tuple[int, ...], tokens: list[int]) -> torch.Tensor:
    """What reading the whole sequence alone gives: after the prompt, then after each token."""
    with torch.no_grad():
        return model.hidden(Rollout.of([prompt], [(*tokens, 0)]))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_our_cache_serves_plain_attention_and_the_models_own_everything_else(name: str) -> None:
    plain = name in DECODER_ONLY and name not in SLIDING
    found = stepper(language_model(name, dtype=dtype_of(name)))
    assert isinstance(found, SlotStepper if plain else BatchStepper)
    assert found.joins is plain


@torch.no_grad()
@pytest.mark.parametrize("name", [n for n in DECODER_ONLY if n not in SLIDING])
@pytest.mark.parametrize("spare", [0, 64])
def test_sequences_join_and_leave_and_none_notices(name: str, spare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no spare columns the buffers grow under sequences that are under way."""
    monkeypatch.setattr(decode_cache, "_SPARE_COLUMNS", spare)
    model = language_model(name)
    rows: list[tuple[tuple[int, ...], list[int]]] = []
    reader = stepper(model)

    def join(prompts: list[tuple[int, ...]]) -> None:
        found = reader.read(prompts)
        for prompt, state in zip(prompts, found, strict=True):
            close(state, states(model, prompt, [])[-1])
            rows.append((prompt, []))

    def steps(count: int) -> None:
        for _ in range(count):
            tokens = torch.randint(2, 50, (len(rows),))
            found = reader.step(tokens)
            for (prompt, text), token, state in zip(rows, tokens.tolist(), found, strict=True):
                text.append(token)
                close(state, states(model, prompt, text)[-1])

    def keep(order: list[int]) -> None:
        reader.keep(torch.tensor(order, dtype=torch.long))
        rows[:] = [(rows[row][0], list(rows[row][1])) for row in order]

    join(PROMPTS)
    steps(3)
    keep([0, 3, 2])
    steps(2)
    join(LATER)  # longer than anything so far
    steps(4)
    keep([4, 1])
    join([(26, 27), (26, 27), (28,)])
    steps(3)
    keep([])
    join(PROMPTS[:1])
    steps(2)


@torch.no_grad()
def test_a_step_copies_no_cache() -> None:
    model = language_model("llama")
    reader = stepper(model)
    reader.read(PROMPTS)
    layer = reader._cache.layers[0]
    memory = [buffer.states.data_ptr() for buffer in layer.buffers]
    for _ in range(20):
        reader.step(torch.ones(4, dtype=torch.long))
    reader.keep(torch.tensor([0, 3]))
    reader.read([(5, 6), (7,)])
    assert [buffer.states.data_ptr() for buffer in layer.buffers] == memory


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gemma2", "t5"])
def test_equal_prompts_are_read_once(name: str) -> None:
    model = language_model(name, dtype=dtype_of(name))
    seen: list[int] = []
    reading = model.network.get_encoder() if model.is_encoder_decoder else model.network.base_model
    hook = reading.register_forward_pre_hook(
        lambda module, inputs, options: seen.append(options["input_ids"].shape[0]), with_kwargs=True
    )
    reader = stepper(model)
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[0]]
    found = reader.read(prompts)
    assert seen == [2]
    hook.remove()
    tokens = torch.tensor([20, 21, 22, 20])
    after = reader.step(tokens)
    for row, prompt in enumerate(prompts):
        expected = states(model, prompt, tokens[row : row + 1].tolist())
        close(torch.stack([found[row], after[row]]), expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_is_read_as_it_reads_itself(kind: str) -> None:
    """Mixtures of experts, sliding windows, rotary positions of a part of each head."""
    network = spread(fresh(kind)).eval()
    model = LanguageModel(network, stop_ids=(1,))
    reader, tokens = stepper(model), torch.randint(2, 50, (len(PROMPTS), 5))
    found = torch.stack([reader.read(PROMPTS), *(reader.step(tokens[:, column]) for column in range(5))], 1)
    for row, prompt in enumerate(PROMPTS):
        expected = states(model, prompt, tokens[row].tolist())
        torch.testing.assert_close(found[row], expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_model_whose_window_counts_columns_keeps_its_own_cache() -> None:
    """GPT-Neo finds the tokens of a local layer by their columns, and its configuration says nothing of a window."""
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 50, "window_size": 4}
    configuration = GPTNeoConfig(**sizes, attention_types=[[["global", "local"], 1]], bos_token_id=0, eos_token_id=1)
    model = LanguageModel(spread(GPTNeoForCausalLM(configuration)).eval(), stop_ids=(1,))
    reader = stepper(model)
    assert isinstance(reader, BatchStepper)
    tokens = torch.randint(2, 50, (len(PROMPTS), 8))
    found = torch.stack([reader.read(PROMPTS), *(reader.step(tokens[:, column]) for column in range(8))], 1)
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(found[row], states(model, prompt, tokens[row].tolist()), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_attention_always_has_a_mask() -> None:
    """Sequences of one length need none, but grouped queries are slow without one."""
    model, masks = language_model("llama"), []
    reader = stepper(model)
    reader.read([(3, 4), (5, 6)])
    hook = model.network.base_model.register_forward_pre_hook(
        lambda module, inputs, options: masks.append(options["attention_mask"]), with_kwargs=True
    )
    reader.step(torch.tensor([7, 8]))
    hook.remove()
    assert masks[0].tolist() == [[1, 1, 1, 0]] * 2
