"""Tiny language models of many families with random weights, and a tokenizer of 64 tokens for them."""

import string

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tutelage import config
from tutelage.models import loading

LETTERS = [
    *string.ascii_lowercase,
    "ab",
    *string.ascii_uppercase[1:],
    *string.digits[:8],
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 3}
GROUPED = {**SIZES, "num_key_value_heads": 1, "head_dim": 8}
DECODERS = {
    "llama": SIZES,
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32},
    "gemma2": {**GROUPED, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gemma3_text": {**GROUPED, "sliding_window": 2, "sliding_window_pattern": 2},
    "qwen2": {**GROUPED, "use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1},
    "qwen3": GROUPED,
    "gpt_neox": SIZES,
    "mixtral": {**GROUPED, "num_local_experts": 3},
    "xlm": {"emb_dim": 16, "n_layers": 3, "n_heads": 2, "causal": True},
}
ENCODER_DECODERS = {
    "t5": {"d_model": 16, "d_ff": 24, "num_layers": 3, "num_heads": 2, "d_kv": 8},
    "bart": {
        "d_model": 16, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    },
    "t5gemma": {"encoder": {**GROUPED, "vocab_size": 64}, "decoder": {**GROUPED, "vocab_size": 64}},
}  # fmt: skip
FAMILIES = DECODERS | ENCODER_DECODERS


def letters():
    """A backend that turns each letter into one token."""
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(LETTERS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return backend


TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=letters(), bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def fresh(kind, tokenizer=TOKENIZER, seed=0, role="teacher", **changes):
    spec = config.Model(from_config={"model_type": kind, **FAMILIES[kind], **changes}, device="cpu")
    return loading.load_model(spec, role, seed=seed, tokenizer=tokenizer)


def student_of(teacher, layers, dtype="float32"):
    spec = config.Model(from_teacher=config.FromTeacher(layers=layers), device="cpu", dtype=dtype)
    return loading.load_model(spec, "student", seed=0, teacher=teacher)


def stored(path, role="student", **options):
    return loading.load_model(config.Model(model=str(path), device="cpu", **options), role, seed=0)


def logits(model):
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            return model(input_ids=ids, decoder_input_ids=ids.flip(1), use_cache=False).logits
        return model(input_ids=ids, use_cache=False).logits


def spread(model):
    """Large random weights, so that every layer counts: at their usual start layers hardly matter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.3)
    return model
