"""Writing: exact draws, recorded log-probabilities, stops, independence of neighbours, parity with transformers."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from tests.tiny_models import ARCHITECTURES, EXACT, build, dtype_of

from tutelage.config import Decoding
from tutelage.models.language_model import LanguageModel, pad
from tutelage.randomness import generator
from tutelage.rollouts.decoding import decode
from tutelage.rollouts.rollout import Rollout
from tutelage.rollouts.sampling import draw, logp_of, truncated

architecture = pytest.mark.parametrize("name", ARCHITECTURES)
PROMPTS = [(3, 4, 5), (6,), (7, 8, 9, 10, 11, 12, 13), (14, 15), (16, 17), (18, 19, 20), (21,), (22, 23, 24)]
SAMPLE, GREEDY = Decoding(max_new_tokens=8), Decoding(strategy="greedy", max_new_tokens=8)
MANY_STOPS = tuple(range(1, 9))


def writer(name: str, stops: tuple[int, ...] = MANY_STOPS, **sizes) -> LanguageModel:
    return LanguageModel(build(name, dtype=sizes.pop("dtype", dtype_of(name)), **sizes), stop_ids=stops)


def recorded(rollout: Rollout) -> torch.Tensor:
    return torch.tensor([value for row in rollout.logps for value in row], dtype=torch.float64)


def chi_square(counts: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The statistic, and what it exceeds once in 10,000 times (Wilson and Hilferty's approximation)."""
    assert expected.min() > 5
    freedom = len(expected) - 1
    limit = freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3
    return float(((counts - expected) ** 2 / expected).sum()), limit


def uniforms(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random(count))


@pytest.mark.parametrize("vocabulary", [2, 12, 256, 257, 700])
def test_draws_follow_the_softmax(vocabulary: int) -> None:
    logits, count = torch.randn(vocabulary) / 3, 20_000
    tokens, logp = draw(logits.expand(count, -1), uniforms(count))
    expected = logits.double().softmax(-1)
    found, limit = chi_square(np.bincount(tokens, minlength=vocabulary), expected.numpy() * count)
    assert found < limit
    torch.testing.assert_close(logp.double(), expected.log()[tokens], rtol=1e-5, atol=1e-6)


def test_a_wrong_temperature_would_show_in_the_draws() -> None:
    """The test above has the power to tell temperature 0.9 (TRL's default) from 1."""
    logits, count = torch.randn(12), 20_000
    tokens, _ = draw((logits / 0.9).expand(count, -1), uniforms(count))
    found, limit = chi_square(np.bincount(tokens, minlength=12), logits.double().softmax(-1).numpy() * count)
    assert found > limit


def test_draws_invert_the_cumulative_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.0, 0.125, 0.125])
    places = torch.tensor([0.0, 0.499, 0.5, 0.749, 0.75, 0.874, 0.875, 1 - 2**-53], dtype=torch.float64)
    tokens, _ = draw(probabilities.log().expand(8, -1), places)
    assert tokens.tolist() == [0, 0, 1, 1, 3, 3, 4, 4]


@pytest.mark.parametrize("vocabulary", [5, 256, 300, 512])
def test_drawing_in_the_memory_of_the_logits_draws_the_same(vocabulary: int) -> None:
    logits = torch.randn(200, vocabulary)
    kept = logits.clone()
    tokens, logp = draw(logits, uniforms(200))
    assert torch.equal(logits, kept)
    again, logp_again = draw(logits, uniforms(200), overwrite=True)
    assert torch.equal(tokens, again)
    assert torch.equal(logp, logp_again)
    assert not torch.equal(logits, kept)


def test_log_probabilities_have_the_precision_of_the_logits() -> None:
    logits = torch.randn(50, 700, dtype=torch.float64)
    tokens, logp = draw(logits, uniforms(50))
    expected = logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
    torch.testing.assert_close(logp, expected, rtol=1e-13, atol=1e-13)


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.full((1, 1000), -math.inf)
    possible = [0, 255, 256, 511, 998]
    logits[0, possible] = 0.0
    edges = torch.linspace(0, 1, 2001, dtype=torch.float64)[:-1]
    tokens, logp = draw(logits.expand(2000, -1), edges)
    assert sorted(set(tokens.tolist())) == possible
    torch.testing.assert_close(logp, torch.full((2000,), -math.log(5)))


@pytest.mark.parametrize("vocabulary", [300, 512])
def test_the_largest_draw_is_still_a_token(vocabulary: int) -> None:
    """Sums of blocks are rounded, so the last place may lie a little beyond the last token."""
    last = torch.full((500,), 1 - 2**-53, dtype=torch.float64)
    tokens, logp = draw(torch.randn(500, vocabulary), last)
    assert int(tokens.max()) < vocabulary
    assert logp.isfinite().all()


def test_sequences_follow_the_models_own_distribution() -> None:
    """Every response of at most two tokens over a vocabulary of 5, enumerated."""
    model, count = writer("gpt2", (1, 3), vocabulary=5), 4000
    prompt = (2, 4)
    logp = model.head.logits(model.hidden(Rollout.of([prompt] * 5, [(t, 0) for t in range(5)]))).log_softmax(-1)
    first, second = logp[0].exp(), logp.view(5, 2, 5)[:, 1].exp()
    exact = {(t,): first[t].item() for t in (1, 3)}
    exact |= {(t, u): (first[t] * second[t, u]).item() for t, u in itertools.product((0, 2, 4), range(5))}
    assert sum(exact.values()) == pytest.approx(1)
    rollout = decode(model, [prompt] * count, Decoding(max_new_tokens=2, batch_size=1000), seed=3)
    counts = Counter(rollout.responses)
    assert counts.keys() <= exact.keys()
    expected = np.array(list(exact.values())) * count
    found, limit = chi_square(np.array([counts[response] for response in exact]), expected)
    assert found < limit


@architecture
@pytest.mark.parametrize("decoding", [SAMPLE, GREEDY], ids=["sample", "greedy"])
def test_recorded_log_probabilities_are_those_of_the_model(name: str, decoding: Decoding) -> None:
    model = writer(name)
    rollout = decode(model, PROMPTS, decoding, seed=1)
    states = model.hidden(rollout)
    expected = logp_of(model.head.logits(states), model.targets(rollout))
    tolerance = 1e-10 if name in EXACT else 1e-5
    torch.testing.assert_close(recorded(rollout), expected.detach().double(), rtol=tolerance, atol=tolerance)


def test_recorded_log_probabilities_are_of_the_distribution_drawn_from() -> None:
    model = writer("llama")
    decoding = Decoding(temperature=0.7, top_k=5, max_new_tokens=6)
    rollout = decode(model, PROMPTS, decoding, seed=1)
    logits = model.head.logits(model.hidden(rollout)) / 0.7
    kept = logits.where(logits >= logits.topk(5).values[:, -1:], -math.inf)
    expected = kept.log_softmax(-1).gather(1, model.targets(rollout)[:, None]).squeeze(1)
    assert expected.isfinite().all()
    torch.testing.assert_close(recorded(rollout), expected.detach(), rtol=1e-5, atol=1e-5)


@architecture
@pytest.mark.parametrize("decoding", [SAMPLE, GREEDY], ids=["sample", "greedy"])
def test_a_response_ends_with_its_first_stop_token_or_at_the_limit(name: str, decoding: Decoding) -> None:
    rollout = decode(writer(name), PROMPTS * 4, decoding, seed=1)
    lengths = set()
    for response, mask, logps in zip(rollout.responses, rollout.masks, rollout.logps, strict=True):
        assert not set(response[:-1]) & set(MANY_STOPS)
        assert response[-1] in MANY_STOPS or len(response) == 8
        assert len(response) == len(logps) == sum(mask)
        lengths.add(len(response))
    if decoding.strategy == "sample":
        assert len(lengths) > 3
    assert rollout.prompts == tuple(PROMPTS * 4)


@architecture
def test_text_does_not_depend_on_the_neighbours(name: str) -> None:
    model = writer(name)
    places = [(7, row) for row in range(len(PROMPTS))]
    whole = decode(model, PROMPTS, SAMPLE, seed=5, places=places)
    for size in (1, 3):
        decoding = Decoding(max_new_tokens=8, batch_size=size)
        assert decode(model, PROMPTS, decoding, seed=5, places=places).responses == whole.responses
    for row in (0, 2, 6):
        alone = decode(model, [PROMPTS[row]], SAMPLE, seed=5, places=[places[row]])
        assert alone.responses == whole.responses[row : row + 1]
    order = [5, 2, 7, 0]
    others = decode(model, [PROMPTS[r] for r in order], SAMPLE, seed=5, places=[places[r] for r in order])
    assert others.responses == tuple(whole.responses[r] for r in order)


def test_other_seeds_and_places_give_other_text() -> None:
    model, decoding = writer("gpt2", (1,)), Decoding(max_new_tokens=12)
    texts = [
        decode(model, PROMPTS, decoding, seed=seed, places=[(step, row) for row in range(len(PROMPTS))]).responses
        for seed, step in ((0, 0), (0, 1), (1, 0))
    ]
    assert len(set(texts)) == 3
    same_prompt = decode(model, [PROMPTS[0]] * 4, decoding, seed=0)
    assert len(set(same_prompt.responses)) == 4


def test_places_of_different_length_are_different_places() -> None:
    """The teacher's text has places (row,), the student's (step, row)."""
    draws = [generator(0, "sampling", *place).random() for place in ((3,), (3, 0), (3, 0, 0), (0, 3))]
    assert len(set(draws)) == 4


def test_large_seeds_are_different_seeds() -> None:
    draws = {generator(seed, "sampling", 1).random() for seed in (5, 2**32 + 5, 2**40 + 5)}
    assert len(draws) == 3


def generated(model: LanguageModel, prompt: tuple[int, ...], **options) -> tuple[int, ...]:
    """What transformers' generate writes to one prompt, without padding."""
    output = model.network.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        eos_token_id=list(model.stop_ids),
        pad_token_id=0,
        **options,
    )[0].tolist()
    return tuple(output[1 if model.is_encoder_decoder else len(prompt) :])


@architecture
def test_greedy_is_generate(name: str) -> None:
    model = writer(name)
    found = decode(model, PROMPTS, Decoding(strategy="greedy", max_new_tokens=10), seed=0)
    assert found.responses == tuple(generated(model, p, max_new_tokens=10, num_beams=1) for p in PROMPTS)
    assert len(set(map(len, found.responses))) > 1


@architecture
def test_beam_search_is_generate(name: str) -> None:
    model = writer(name)
    decoding = Decoding(strategy="beam", beams=3, max_new_tokens=6, batch_size=4)
    found = decode(model, PROMPTS, decoding, seed=0)
    assert found.logps is None
    expected = [generated(model, p, max_new_tokens=6, num_beams=3) for p in PROMPTS]
    assert found.responses == tuple(expected)
    greedy = decode(model, PROMPTS, Decoding(strategy="greedy", max_new_tokens=6), seed=0)
    assert greedy.responses != found.responses


def test_top_k_keeps_the_k_most_probable() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0], [0.0, -1.0, 5.0, 4.0]])
    assert truncated(logits, 2, 1.0).isfinite().tolist() == [[False, True, True, False], [False, False, True, True]]
    for k in (0, 4, 9):
        torch.testing.assert_close(truncated(logits, k, 1.0), logits)
    assert truncated(logits, 1, 1.0).isfinite().sum(-1).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.3, [1]),
        (0.5, [1]),
        (0.51, [1, 3]),
        (0.75, [1, 3]),
        (0.76, [0, 1, 3]),
        (0.99, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_top_p_keeps_the_fewest_that_hold_the_mass(top_p: float, kept: list[int]) -> None:
    logits = torch.tensor([[0.125, 0.5, 0.125 - 2**-10, 0.25]]).log()
    assert truncated(logits, 0, top_p)[0].isfinite().nonzero().flatten().tolist() == kept


def test_top_p_is_of_the_mass_that_top_k_left() -> None:
    """After top-3 of (0.4, 0.3, 0.2, 0.1) the masses are 4/9, 3/9, 2/9: 0.75 needs two of them (7/9)."""
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert truncated(logits, 3, 0.75)[0].isfinite().tolist() == [True, True, False, False]
    assert truncated(logits, 0, 0.75)[0].isfinite().tolist() == [True, True, True, False]


@pytest.mark.parametrize("decoding", [Decoding(top_k=3, max_new_tokens=1), Decoding(top_p=0.2, max_new_tokens=1)])
def test_only_tokens_of_the_support_are_written(decoding: Decoding) -> None:
    model, prompt = writer("gpt2"), (3, 4)
    probabilities = model.head.logits(model.hidden(Rollout.of([prompt], [(0,)])))[0].softmax(-1)
    ranked = probabilities.sort(descending=True)
    held = ranked.values.cumsum(0)
    size = 3 if decoding.top_k else int((held < 0.2).sum()) + 1
    written = decode(model, [prompt] * 400, decoding, seed=0).responses
    assert {response[0] for response in written} == set(ranked.indices[:size].tolist())


@pytest.mark.parametrize("name", ["gpt2", "bart"])
@pytest.mark.parametrize("strategy", ["sample", "greedy", "beam"])
def test_ids_beyond_the_shared_vocabulary_are_never_written(name: str, strategy: str) -> None:
    model = writer(name)
    decoding = Decoding(strategy=strategy, max_new_tokens=8, beams=2)
    free = decode(model, PROMPTS, decoding, seed=0)
    bound = decode(model, PROMPTS, decoding, seed=0, vocabulary=15)
    assert max(map(max, free.responses)) >= 15
    assert max(map(max, bound.responses)) < 15
    if strategy != "beam":
        logits = model.head.logits(model.hidden(bound))[:, :15]
        expected = logp_of(logits, model.targets(bound))
        torch.testing.assert_close(recorded(bound), expected.detach(), rtol=1e-10, atol=1e-10)


def test_who_wrote_what_is_recorded_in_the_order_of_the_prompts() -> None:
    done: list[int] = []
    rollout = decode(
        writer("gpt2"),
        PROMPTS,
        Decoding(max_new_tokens=4, batch_size=3),
        seed=0,
        items=range(40, 48),
        writer="teacher",
        on_progress=done.append,
    )
    assert rollout.prompts == tuple(PROMPTS)
    assert rollout.items == tuple(range(40, 48))
    assert set(rollout.writers) == {"teacher"}
    assert sum(done) == len(PROMPTS)
    assert len(done) > 1


@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_writing_has_no_dropout_no_gradient_and_leaves_the_mode(name: str) -> None:
    model = writer(name)
    calm = decode(model, PROMPTS, SAMPLE, seed=0)
    model.model.train()
    assert decode(model, PROMPTS, SAMPLE, seed=0) == calm
    assert model.model.training
    assert all(p.grad is None and p.requires_grad for p in model.model.parameters())


def test_a_model_without_stop_ids_is_refused() -> None:
    with pytest.raises(ValueError, match="stop_ids"):
        decode(writer("gpt2", ()), PROMPTS, SAMPLE, seed=0)


def test_padding_is_never_read() -> None:
    """The id under padding is 0; a model whose id 0 is enormous writes the same."""
    quiet, loud = writer("llama"), writer("llama")
    with torch.no_grad():
        loud.network.get_input_embeddings().weight[0] += 100
    limit = Decoding(max_new_tokens=1)
    assert pad(PROMPTS, "left", quiet.device)[0][0, 0] == 0
    assert decode(loud, PROMPTS, limit, seed=0) == decode(quiet, PROMPTS, limit, seed=0)
