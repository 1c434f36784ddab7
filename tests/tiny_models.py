"""Tiny random models of every kind of output head, and ragged text for them.

Weights are larger than those of transformers' own initialisation, so that the models disagree. GPT-2 and BART
compute in float64 throughout; the normalisation layers of the others pass through float32, and so does the
softmax of Gemma 2.
"""

from collections.abc import Callable

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from tutelage.models.language_model import LanguageModel
from tutelage.models.teachers import LocalTeacher
from tutelage.rollouts.rollout import Rollout

VOCABULARY = 50
STOP = 1


def _sizes(width: int, vocabulary: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": vocabulary,
        "bos_token_id": 0,
        "eos_token_id": STOP,
        "pad_token_id": 0,
    }


def _llama(width: int, vocabulary: int) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**_sizes(width, vocabulary), num_key_value_heads=1))


def _gpt2(width: int, vocabulary: int) -> PreTrainedModel:
    """Biases, absolute positions, tied embeddings, dropout."""
    sizes = {"n_embd": width, "n_layer": 2, "n_head": 2, "n_positions": 64}
    tokens = {"bos_token_id": 0, "eos_token_id": STOP, "pad_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=vocabulary, **tokens))


def _gemma2(width: int, vocabulary: int) -> PreTrainedModel:
    """Softcap, and a sliding window shorter than the text."""
    sizes = {**_sizes(width, vocabulary), "num_key_value_heads": 1, "head_dim": width // 2}
    return Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=2.0, sliding_window=4))


def _cohere(width: int, vocabulary: int) -> PreTrainedModel:
    return CohereForCausalLM(CohereConfig(**_sizes(width, vocabulary), logit_scale=0.25))


def _granite(width: int, vocabulary: int) -> PreTrainedModel:
    return GraniteForCausalLM(GraniteConfig(**_sizes(width, vocabulary), logits_scaling=3.0))


def _phi(width: int, vocabulary: int) -> PreTrainedModel:
    """A bias on the head."""
    return PhiForCausalLM(PhiConfig(**_sizes(width, vocabulary)))


def _t5(width: int, vocabulary: int) -> PreTrainedModel:
    """Tied embeddings with a scale in front of the head."""
    sizes = {"d_model": width, "d_ff": 2 * width, "d_kv": width // 2, "num_layers": 2, "num_heads": 2}
    tokens = {"decoder_start_token_id": 0, "eos_token_id": STOP, "pad_token_id": 0}
    return T5ForConditionalGeneration(T5Config(**sizes, vocab_size=vocabulary, **tokens))


def _bart(width: int, vocabulary: int) -> PreTrainedModel:
    """A bias on the logits that is no parameter, and a decoder that starts from another id than padding."""
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64}
    tokens = {"decoder_start_token_id": 2, "bos_token_id": 0, "eos_token_id": STOP, "pad_token_id": 0}
    return BartForConditionalGeneration(
        BartConfig(d_model=width, **layers, **heads, vocab_size=vocabulary, **tokens, forced_eos_token_id=None)
    )


BUILDERS: dict[str, Callable[[int, int], PreTrainedModel]] = {
    "llama": _llama,
    "gpt2": _gpt2,
    "gemma2": _gemma2,
    "cohere": _cohere,
    "granite": _granite,
    "phi": _phi,
    "t5": _t5,
    "bart": _bart,
}
ARCHITECTURES = tuple(BUILDERS)
DECODER_ONLY = tuple(name for name in ARCHITECTURES if name not in ("t5", "bart"))
ENCODER_DECODER = ("t5", "bart")
EXACT = ("gpt2", "bart")
"""One of each kind that computes in float64 throughout."""


def build(
    name: str,
    seed: int = 0,
    *,
    width: int = 16,
    vocabulary: int = VOCABULARY,
    dtype: torch.dtype = torch.float64,
    spread: float = 0.2,
) -> PreTrainedModel:
    """A model in evaluation mode, the same for the same arguments."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BUILDERS[name](width, vocabulary)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(spread * torch.randn_like(parameter))
            for buffer in (b for n, b in model.named_buffers() if n == "final_logits_bias"):
                buffer.normal_()
    return model.to(dtype).eval()


def dtype_of(name: str) -> torch.dtype:
    """Float64, but for Gemma 2, whose attention does not take it."""
    return torch.float32 if name == "gemma2" else torch.float64


def language_model(name: str, seed: int = 0, **sizes) -> LanguageModel:
    return LanguageModel(build(name, seed, **sizes), stop_ids=(STOP,))


def pair(name: str, **sizes) -> tuple[LanguageModel, LocalTeacher]:
    """A student and a wider teacher of the same architecture."""
    return language_model(name, 1, **sizes), LocalTeacher(language_model(name, 2, width=24, **sizes))


def ragged() -> Rollout:
    """Rows of all lengths: one token, a long one, and a conversation with the user's turns masked out."""
    return Rollout.of(
        [[3, 4, 5], [6], [7, 8], [9, 30, 31, 32, 33, 34, 35], [10, 11, 12, 13]],
        [
            [9, 10, STOP],
            [11, 12, 13, 14, STOP, 21, 22, 15, 16, STOP],
            [STOP],
            [17, 18, 19, 40, 41, 42, 43, 44, STOP],
            [20, STOP],
        ],
        masks=[
            [True] * 3,
            [True, True, True, True, True, False, False, True, True, True],
            [True],
            [True] * 9,
            [False, True],
        ],
    )


def own_logits(model: PreTrainedModel, prompt: tuple[int, ...], response: tuple[int, ...]) -> torch.Tensor:
    """`[len(response), vocabulary]`: what transformers itself predicts for each response token, unpadded."""
    if model.config.is_encoder_decoder:
        return model(input_ids=torch.tensor([prompt]), labels=torch.tensor([response])).logits[0]
    whole = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
    return whole[len(prompt) - 1 : -1]
