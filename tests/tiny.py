"""A tiny task on disk: models of a few thousand weights, a tokenizer, and rows, for tests that run the real thing."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

WORDS = ["<pad>", "<eos>", *"abcdefghijklmnopqrst"]
LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"vocab_size": len(WORDS), "eos_token_id": 1, "pad_token_id": 0}


def tokenizer() -> PreTrainedTokenizerFast:
    """Words of one letter."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>")


def write_model(folder: Path, seed: int, kind: str = "llama", **changes: Any) -> Path:
    """Write a random model with the tokenizer beside it."""
    torch.manual_seed(seed)
    if kind == "t5":
        sizes = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
        model = T5ForConditionalGeneration(T5Config(**{**sizes, **SPECIAL, **changes}))
    else:
        model = LlamaForCausalLM(LlamaConfig(**{**LLAMA, **SPECIAL, "bos_token_id": None, **changes}))
    with torch.no_grad():  # spread the logits, so that models differ and greedy text is not all alike
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_rows(path: Path, count: int = 30) -> Path:
    """Write prompts and completions of uneven length."""
    letters = WORDS[2:]
    rows = [
        {
            "prompt": " ".join(letters[(i + k) % 20] for k in range(1 + i % 4)),
            "completion": " ".join(letters[(3 * i + k) % 20] for k in range(1 + i % 5)),
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def mapping(folder: Path, method: str, kind: str = "llama", **sections: Any) -> dict[str, Any]:
    """A recipe for the tiny task in a folder, which is filled when it is empty."""
    if not (folder / "rows.jsonl").exists():
        write_rows(folder / "rows.jsonl")
    for name, seed in (("student", 1), ("teacher", 2)):
        if not (folder / f"{kind}-{name}").exists():
            write_model(folder / f"{kind}-{name}", seed, kind)
    short = {"max_new_tokens": 5}
    decodings = {
        "seqkd": {"teacher_decoding": {**short, "strategy": "beam", "beams": 2}},
        "on-policy-kd": {"student_decoding": short},
        "imitkd": {"student_decoding": {**short, "strategy": "greedy"}},
        "gkd": {"student_decoding": short},
        "distribution-matching": {"student_decoding": short, "teacher_decoding": short},
        "moment-matching": {"student_decoding": short, "teacher_decoding": short, "critic_steps": 2, "critic_rank": 4},
        "gkd-reward": {"student_decoding": short, "samples": 2, "baseline": "leave-one-out", "separate_norms": True},
        "minillm": {"student_decoding": short, "collection": 18, "inner_epochs": 2},  # stops fall into both epochs
        "minillm-single-step": {"student_decoding": short},
        "cross-tokenizer": {"student_decoding": short, "student_fraction": 0.5, "cross_entropy": 0.3},
        "minillm-ranking": {"student_decoding": short, "samples": 3},
        "f-distill": {"divergence": "js", "exact": True, "student_decoding": short, "teacher_decoding": short},
        "distillm": {"student_decoding": short, "student_fraction": 0.8, "tolerance": 0.0, "capacity": 8},
        "distillm-2": {
            **{"student_decoding": short, "teacher_decoding": short, "collection": 18, "inner_epochs": 2},
            **{"alpha_curriculum": True, "beta_curriculum": True},
        },
    }
    whole: dict[str, Any] = {
        "method": {"name": method, **decodings.get(method, {})},
        "student": {"model": str(folder / f"{kind}-student")},
        "teacher": {"model": str(folder / f"{kind}-teacher")},
        "data": {"train": str(folder / "rows.jsonl"), "validation": str(folder / "rows.jsonl"), "validation_limit": 6},
        "train": {"steps": 6, "batch_size": 6, "micro_batch_tokens": 24, "learning_rate": 1e-2, "warmup_steps": 2},
        "evaluation": {"metrics": ["loss", "agreement"]},
        "output": str(folder / f"run-{kind}-{method}"),
    }
    if method == "distillm":  # goes by the validation loss
        whole["evaluation"]["every"] = 2
    if method == "cross-tokenizer":  # two vocabularies cannot be compared id by id
        whole["evaluation"]["metrics"] = ["loss"]
    for name, section in sections.items():
        whole[name] = {**whole[name], **section} if isinstance(section, dict) else section
    return whole
