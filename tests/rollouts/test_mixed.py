"""Teacher-mixed sampling: the law of what is drawn, the recorded log-probability, and both ends of the mixture."""

import numpy as np
import pytest
import torch
from tests.rollouts.test_decoding import MANY_STOPS, PROMPTS, SAMPLE, chi_square, writer
from tests.tiny_models import EXACT

from tutelage.config import Decoding
from tutelage.data import Example
from tutelage.models.language_model import LanguageModel
from tutelage.rollouts.decoding import decode
from tutelage.rollouts.mixed import MixedSampler, decode_mixed
from tutelage.rollouts.rollout import Rollout
from tutelage.rollouts.sampling import logp_of


def both(name: str, vocabulary: int = 50) -> tuple[LanguageModel, LanguageModel]:
    """A student, and a wider teacher with padding rows of its own where `vocabulary` says so."""
    return writer(name, seed=1), writer(name, seed=2, width=24, vocabulary=vocabulary)


def token_logps(model: LanguageModel, rollout: Rollout, temperature: float = 1.0, shared: int = 50) -> torch.Tensor:
    with torch.no_grad():
        logits = model.head.logits(model.hidden(rollout))[:, :shared]
    return logp_of(logits / temperature, model.targets(rollout)).double()


def mixed_logps(student: LanguageModel, teacher: LanguageModel, rollout: Rollout, share: float, **options):
    q, p = token_logps(student, rollout, **options).exp(), token_logps(teacher, rollout, **options).exp()
    return (share * p + (1 - share) * q).log()


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_recorded_log_probability_is_that_of_the_mixture(name, share):
    """Ragged prompts, rows that end early and leave, the teacher's padding rows, a cache each."""
    student, teacher = both(name, vocabulary=64)
    rollout = decode_mixed(student, teacher, PROMPTS * 3, SAMPLE, teacher_share=share, seed=3)
    found = torch.tensor([value for row in rollout.logps for value in row], dtype=torch.float64)
    torch.testing.assert_close(found, mixed_logps(student, teacher, rollout, share), rtol=1e-5, atol=1e-5)
    assert len(set(map(len, rollout.responses))) > 2
    assert max(map(max, rollout.responses)) < 50
    for response in rollout.responses:
        assert not set(response[:-1]) & set(MANY_STOPS)
        assert response[-1] in MANY_STOPS or len(response) == 8
    assert set(rollout.writers) == {"mixed"}
    assert rollout.prompts == tuple(PROMPTS * 3)


def test_the_mixture_is_of_probabilities_after_the_temperature():
    student, teacher = both("gpt2")
    decoding = Decoding(max_new_tokens=6, temperature=0.5)
    rollout = decode_mixed(student, teacher, PROMPTS, decoding, teacher_share=0.5, seed=0)
    found = torch.tensor([value for row in rollout.logps for value in row], dtype=torch.float64)
    wanted = mixed_logps(student, teacher, rollout, 0.5, temperature=0.5)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", EXACT)
def test_what_is_drawn_follows_the_mixture(name):
    """χ² over the pairs of first two tokens, grouped; neither model alone passes."""
    student, teacher = both(name)
    prompt, count, share = (3, 4, 5), 6000, 0.4
    decoding = Decoding(max_new_tokens=2, batch_size=1000)
    rollout = decode_mixed(student, teacher, [prompt] * count, decoding, teacher_share=share, seed=0)

    def law(mixture_share: float) -> np.ndarray:
        """Probability of each group: the first token's id modulo 4, the second's modulo 3, or the end at once."""
        first = Rollout.of([prompt], [(0,)])
        q, p = (m.head.logits(m.hidden(first))[0].softmax(-1) for m in (student, teacher))
        start = (mixture_share * p + (1 - mixture_share) * q).detach()
        groups = np.zeros(16)
        followed = [token for token in range(50) if token not in MANY_STOPS]
        pairs = Rollout.of([prompt] * len(followed), [(t, 0) for t in followed], masks=[(False, True)] * len(followed))
        q, p = (m.head.logits(m.hidden(pairs)).softmax(-1) for m in (student, teacher))
        after = (mixture_share * p + (1 - mixture_share) * q).detach()
        for token in range(50):
            if token in MANY_STOPS:
                groups[12 + token % 4] += start[token].item()
                continue
            for last in range(50):
                groups[token % 4 * 3 + last % 3] += (start[token] * after[followed.index(token), last]).item()
        return groups

    counts = np.zeros(16)
    for response in rollout.responses:
        group = 12 + response[0] % 4 if len(response) == 1 else response[0] % 4 * 3 + response[1] % 3
        counts[group] += 1
    statistic, limit = chi_square(counts, law(share) * count)
    assert statistic < limit
    for wrong in (0.0, 0.2, 1.0):
        statistic, limit = chi_square(counts, law(wrong) * count)
        assert statistic > limit


@pytest.mark.parametrize("name", EXACT)
def test_both_ends_are_the_models_own_decoding_bit_for_bit(name):
    student, teacher = both(name)
    alone = decode(student, PROMPTS, SAMPLE, seed=4)
    assert decode_mixed(student, teacher, PROMPTS, SAMPLE, teacher_share=0, seed=4) == alone
    taught = decode(teacher, PROMPTS, SAMPLE, seed=4, writer="teacher")
    assert decode_mixed(student, teacher, PROMPTS, SAMPLE, teacher_share=1, seed=4) == taught
    assert taught.responses != alone.responses
    nearly = decode_mixed(student, teacher, PROMPTS, SAMPLE, teacher_share=1e-12, seed=4)
    assert nearly.responses == alone.responses  # the mixture itself tends to them
    nearly = decode_mixed(student, teacher, PROMPTS, SAMPLE, teacher_share=1 - 1e-12, seed=4)
    assert nearly.responses == taught.responses


def test_text_does_not_depend_on_the_neighbours():
    student, teacher = both("gpt2")
    places = [(7, row) for row in range(len(PROMPTS))]
    whole = decode_mixed(student, teacher, PROMPTS, SAMPLE, teacher_share=0.3, seed=5, places=places)
    for row in (0, 2, 6):
        alone = decode_mixed(student, teacher, [PROMPTS[row]], SAMPLE, teacher_share=0.3, seed=5, places=[places[row]])
        assert alone.responses == whole.responses[row : row + 1]


def test_ids_that_only_one_of_them_has_are_never_written():
    student, teacher = both("gpt2")
    bound = decode_mixed(student, teacher, PROMPTS, SAMPLE, teacher_share=0.5, seed=0, vocabulary=15)
    assert max(map(max, bound.responses)) < 15
    found = torch.tensor([value for row in bound.logps for value in row], dtype=torch.float64)
    torch.testing.assert_close(found, mixed_logps(student, teacher, bound, 0.5, shared=15), rtol=1e-5, atol=1e-5)


def test_writing_leaves_modes_and_gradients_alone():
    student, teacher = both("gpt2")
    calm = decode_mixed(student, teacher, PROMPTS, SAMPLE, teacher_share=0.5, seed=0)
    student.model.train()
    assert decode_mixed(student, teacher, PROMPTS, SAMPLE, teacher_share=0.5, seed=0) == calm
    assert student.model.training
    assert not teacher.model.training
    assert all(p.grad is None for model in (student, teacher) for p in model.model.parameters())


def test_the_sampler_writes_several_different_responses_to_each_prompt():
    student, teacher = both("gpt2")
    rows = [Example(item, "", PROMPTS[item], (), (), "", "") for item in (4, 1)]
    sampler = MixedSampler(student, teacher, 0.2, SAMPLE, seed=0, samples=3)
    rollout = sampler.sample(rows, step=2)
    assert rollout.items == (4, 4, 4, 1, 1, 1)
    assert rollout.prompts == (PROMPTS[4],) * 3 + (PROMPTS[1],) * 3
    assert len(set(rollout.responses)) > 4
    assert sampler.sample(rows, step=3).responses != rollout.responses
    assert sampler.sample(rows, step=2) == rollout
    assert sampler.sample(rows[1:], step=2).responses == rollout.responses[3:]


def test_a_mixture_is_sampled_from():
    student, teacher = both("gpt2")
    with pytest.raises(ValueError, match="sampled from"):
        decode_mixed(student, teacher, PROMPTS, Decoding(strategy="greedy"), teacher_share=0.5, seed=0)
    with pytest.raises(ValueError, match="stop_ids"):
        decode_mixed(writer("gpt2", ()), teacher, PROMPTS, SAMPLE, teacher_share=0.5, seed=0)
