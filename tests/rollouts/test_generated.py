"""Transformers' own sampler: the same laws, with log-probabilities that are ours."""

import numpy as np
import pytest
import torch
from tests.rollouts.test_decoding import MANY_STOPS, PROMPTS, chi_square, recorded, writer
from tests.tiny_models import ARCHITECTURES
from transformers import MambaConfig, MambaForCausalLM

from tutelage.config import Decoding
from tutelage.errors import InputError
from tutelage.models.language_model import LanguageModel
from tutelage.rollouts.decoding import decode
from tutelage.rollouts.rollout import Rollout
from tutelage.rollouts.sampling import logp_of, truncated

SAMPLE = Decoding(max_new_tokens=8, batch_size=3, backend="generate")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_text_is_recorded_with_the_models_log_probabilities(name: str) -> None:
    model = writer(name)
    rollout = decode(model, PROMPTS, SAMPLE, seed=1)
    assert rollout.prompts == tuple(PROMPTS)
    for response in rollout.responses:
        assert not set(response[:-1]) & set(MANY_STOPS)
        assert response[-1] in MANY_STOPS or len(response) == 8
    expected = logp_of(model.head.logits(model.hidden(rollout)), model.targets(rollout)).detach()
    torch.testing.assert_close(recorded(rollout), expected.double(), rtol=1e-5, atol=1e-5)


def test_log_probabilities_are_of_the_distribution_drawn_from() -> None:
    model = writer("gpt2")
    decoding = Decoding(max_new_tokens=6, temperature=0.7, top_k=9, top_p=0.9, backend="generate")
    rollout = decode(model, PROMPTS, decoding, seed=1, vocabulary=30)
    assert max(map(max, rollout.responses)) < 30
    logits = model.head.logits(model.hidden(rollout))[:, :30] / 0.7
    expected = logp_of(truncated(logits, 9, 0.9), model.targets(rollout)).detach()
    assert expected.isfinite().all()
    torch.testing.assert_close(recorded(rollout), expected, rtol=1e-10, atol=1e-10)


def test_it_samples_from_the_model() -> None:
    model, prompt, count = writer("gpt2", (1,), vocabulary=12), (3, 4), 3000
    decoding = Decoding(max_new_tokens=1, batch_size=1000, backend="generate", temperature=1.5)
    rollout = decode(model, [prompt] * count, decoding, seed=0)
    law = (model.head.logits(model.hidden(Rollout.of([prompt], [(0,)])))[0] / 1.5).softmax(-1).detach().numpy()
    found, limit = chi_square(np.bincount([r[0] for r in rollout.responses], minlength=12), law * count)
    assert found < limit


def test_greedy_is_that_of_our_own_loop() -> None:
    model = writer("llama")
    ours = decode(model, PROMPTS, Decoding(strategy="greedy", max_new_tokens=8), seed=0)
    theirs = decode(model, PROMPTS, Decoding(strategy="greedy", max_new_tokens=8, backend="generate"), seed=0)
    assert theirs.responses == ours.responses
    torch.testing.assert_close(recorded(theirs), recorded(ours), rtol=1e-5, atol=1e-5)


def test_draws_are_those_of_the_seed_and_disturb_no_other() -> None:
    model = writer("gpt2", (1,))
    state = torch.get_rng_state()
    first = decode(model, PROMPTS, SAMPLE, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert decode(model, PROMPTS, SAMPLE, seed=1) == first
    assert decode(model, PROMPTS, SAMPLE, seed=2).responses != first.responses
    later = [(1, row) for row in range(len(PROMPTS))]
    assert decode(model, PROMPTS, SAMPLE, seed=1, places=later).responses != first.responses


def test_a_model_with_a_memory_of_its_own_is_left_to_generate() -> None:
    """Mamba takes no `past_key_values`, and would swallow them without a word."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 50, "state_size": 4}
    network = MambaForCausalLM(MambaConfig(**sizes, bos_token_id=0, eos_token_id=1, pad_token_id=0)).eval()
    model = LanguageModel(network, stop_ids=(1,))
    with pytest.raises(InputError, match="backend: generate"):
        decode(model, PROMPTS, Decoding(max_new_tokens=5), seed=0)
    rollout = decode(model, PROMPTS, Decoding(max_new_tokens=5, backend="generate"), seed=0)
    expected = logp_of(model.head.logits(model.hidden(rollout)), model.targets(rollout)).detach()
    torch.testing.assert_close(recorded(rollout), expected.double(), rtol=1e-5, atol=1e-5)
