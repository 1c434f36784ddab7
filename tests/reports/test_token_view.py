"""The token view says what transformers' own logits say, and its pieces are the text."""

import math

import pytest
import torch
from tests import tiny
from tests.models.test_vocabulary import byte_pairs
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from tutelage.errors import InputError
from tutelage.models.language_model import LanguageModel
from tutelage.models.teachers import LocalTeacher
from tutelage.reports.token_view import TOP, pieces, token_views
from tutelage.rollouts.rollout import Rollout

PROMPTS = [(2, 3, 4), (5,), (6, 7)]
RESPONSES = [(8, 9, 10, 1), (), (11, 1)]


def llama(seed, vocabulary=22, width=16):
    torch.manual_seed(seed)
    sizes = {**tiny.LLAMA, "hidden_size": width, "vocab_size": vocabulary, "eos_token_id": 1}
    return spread(LlamaForCausalLM(LlamaConfig(**sizes)))


def t5(seed):
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    return spread(T5ForConditionalGeneration(T5Config(vocab_size=22, eos_token_id=1, pad_token_id=0, **sizes)))


def spread(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return model.eval()


@torch.no_grad()
def expected(model, prompt, response, vocabulary):
    """Float64 log-probabilities over the first ids at each position of a response, from the model's own forward."""
    if model.config.is_encoder_decoder:
        decoder = torch.tensor([[0, *response[:-1]]])
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoder).logits[0]
    else:
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0][len(prompt) - 1 : -1]
    return logits.double()[:, :vocabulary].log_softmax(-1)


@pytest.mark.parametrize(
    ("student", "teacher", "vocabulary"),
    [(llama(1), llama(2, width=32), None), (llama(1), llama(2, vocabulary=30), 22), (t5(1), t5(2), None)],
    ids=["decoder", "shared vocabulary", "encoder-decoder"],
)
def test_figures_are_those_of_the_models_own_logits(student, teacher, vocabulary):
    rollout = Rollout.of(PROMPTS, RESPONSES)
    views = token_views(
        LanguageModel(student, (1,)),
        LocalTeacher(LanguageModel(teacher, (1,))),
        rollout,
        tiny.tokenizer(),
        micro_batch_tokens=8,
        vocabulary=vocabulary,
    )
    assert [len(view) for view in views] == [4, 0, 2]
    for prompt, response, view in zip(PROMPTS, RESPONSES, views, strict=True):
        if not response:
            continue
        q, p = (expected(model, prompt, response, vocabulary or 22) for model in (student, teacher))
        for position, (token, seen) in enumerate(zip(response, view, strict=True)):
            ours, theirs = q[position], p[position]
            assert math.isclose(seen.reverse_kl, (ours.exp() * (ours - theirs)).sum().item(), abs_tol=2e-5)
            assert math.isclose(seen.forward_kl, (theirs.exp() * (theirs - ours)).sum().item(), abs_tol=2e-5)
            assert math.isclose(seen.total_variation, (ours.exp() - theirs.exp()).abs().sum().item() / 2, abs_tol=1e-5)
            assert math.isclose(seen.student_logp, ours[token].item(), abs_tol=2e-5)
            assert math.isclose(seen.teacher_logp, theirs[token].item(), abs_tol=2e-5)
            for top, logp in ((seen.student_top, ours), (seen.teacher_top, theirs)):
                best = logp.topk(TOP)
                assert [choice.text.strip() for choice in top] == [tiny.WORDS[i] for i in best.indices.tolist()]
                assert [choice.probability for choice in top] == pytest.approx(best.values.exp().tolist(), abs=1e-5)


def test_a_response_token_that_only_the_student_knows_is_refused():
    models = LanguageModel(llama(1), (1,)), LocalTeacher(LanguageModel(llama(2), (1,)))
    with pytest.raises(InputError, match="id 21 is in a response"):
        token_views(*models, Rollout.of([(2,)], [(21,)]), tiny.tokenizer(), vocabulary=20)


def test_the_student_keeps_its_mode():
    student = LanguageModel(llama(1).train(), (1,))
    token_views(student, LocalTeacher(LanguageModel(llama(2), (1,))), Rollout.of([(2,)], [(3, 1)]), tiny.tokenizer())
    assert student.network.training


@pytest.mark.parametrize(
    "text",
    ["the cat", "naïve — 今天 🙂👍🏽!", "a\n\n  b\t", "שלום e\u0301 x", "<script>\0</script>", "", "the the  the"],
)
def test_pieces_of_bytes_join_to_the_text(text):
    tokenizer = byte_pairs()
    ids = [*tokenizer.encode(text), tokenizer.eos_token_id]
    found = pieces(ids, tokenizer)
    assert "".join(found) == text
    assert len(found) == len(ids)
    assert found[-1] == ""
    assert not any("\ufffd" in piece for piece in found)


def test_the_last_token_of_a_character_has_it():
    tokenizer = byte_pairs()
    ids = tokenizer.encode("a🙂b")
    assert pieces(ids, tokenizer) == ["a", "", "", "", "🙂", "b"]


def test_bytes_that_are_no_character_stay_where_they_are():
    tokenizer = byte_pairs()
    broken = tokenizer.encode("🙂")[:2]
    ids = [*tokenizer.encode("a"), *broken, *tokenizer.encode("b")]
    found = pieces(ids, tokenizer)
    assert "".join(found) == tokenizer.decode(ids)
    assert found[0] == "a"
    assert found[-1].endswith("b")
