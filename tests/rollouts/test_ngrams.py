"""No n-gram twice: the same tokens are forbidden as by transformers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny_models import build
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor

from tutelage.config import Decoding
from tutelage.models.language_model import LanguageModel
from tutelage.rollouts.decoding import decode
from tutelage.rollouts.ngrams import Ngrams

TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@given(length=st.integers(1, 4), texts=st.lists(TEXTS, min_size=1, max_size=3), start=st.integers(0, 12))
def test_the_same_tokens_are_forbidden_as_by_transformers(length, texts, start):
    ngrams = Ngrams(length, [tuple(text[:start]) for text in texts])
    for row, text in enumerate(texts):
        for token in text[start:]:
            ngrams.append(row, token)
    logits = torch.zeros(len(texts), 5)
    found = ngrams.allowed(logits, range(len(texts)))
    for row, text in enumerate(texts):
        expected = NoRepeatNGramLogitsProcessor(length)(torch.tensor([text]), torch.zeros(1, 5))[0]
        assert torch.equal(found[row], expected)


@pytest.mark.parametrize("strategy", ["greedy", "sample"])
def test_no_ngram_comes_twice_in_prompt_and_response(strategy):
    model = LanguageModel(build("llama"), stop_ids=(1,))
    prompts = [(5, 6, 7, 5, 6), (9, 9, 9)]
    decoding = Decoding(strategy=strategy, no_repeat_ngram_size=2, max_new_tokens=40, batch_size=1)
    rollout = decode(model, prompts, decoding, seed=0)
    assert max(map(len, rollout.responses)) > 5
    for prompt, response in zip(prompts, rollout.responses, strict=True):
        text = prompt + response
        written = [text[at - 1 : at + 1] for at in range(len(prompt), len(text))]
        before = [text[at : at + 2] for at in range(len(prompt) - 1)]
        assert len({*written} - {*before}) == len(written)


def test_what_is_greedy_equals_generate_of_transformers():
    network = build("llama").eval()
    prompt = (5, 6, 7, 8)
    ours = decode(
        LanguageModel(network, stop_ids=(1,)),
        [prompt],
        Decoding(strategy="greedy", no_repeat_ngram_size=3, max_new_tokens=60),
        seed=0,
    ).responses[0]
    theirs = network.generate(
        torch.tensor([prompt]),
        do_sample=False,
        no_repeat_ngram_size=3,
        max_new_tokens=60,
        eos_token_id=1,
        pad_token_id=1,
    )[0, len(prompt) :]
    assert list(ours) == theirs.tolist()
    free = decode(
        LanguageModel(network, stop_ids=(1,)), [prompt], Decoding(strategy="greedy", max_new_tokens=60), seed=0
    )
    assert free.responses[0] != ours, "the rule has to matter for this test to say something"


def test_generate_is_not_asked_for_what_it_would_not_record():
    with pytest.raises(ValueError, match="no_repeat_ngram_size needs backend 'tutelage'"):
        Decoding(no_repeat_ngram_size=3, backend="generate")
