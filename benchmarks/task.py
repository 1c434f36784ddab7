"""The task that whole steps are timed on: random prompts, and models of random weights that never end a response."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Sizes = dict[str, Any]
STUDENT: Sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
TEACHER: Sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 9}
TINY: Sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
PROMPT_TOKENS = 32


def write_tokenizer(folder: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """Write a tokenizer of one word an id; its end token lies above the vocabulary, so no model ever writes it."""
    words = {**{f"w{number}": number for number in range(vocabulary)}, "<end>": vocabulary}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="w0", padding_side="left")
    fast.save_pretrained(folder)
    return fast


def write_prompts(path: Path, count: int, vocabulary: int) -> list[str]:
    """Write prompts of equal length, drawn uniformly."""
    ids = np.random.default_rng(0).integers(1, vocabulary, size=(count, PROMPT_TOKENS))
    prompts = [" ".join(f"w{number}" for number in row) for row in ids]
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    return prompts


def write_model(folder: Path, sizes: Sizes, vocabulary: int, seed: int) -> Path:
    """Write a Llama of random weights, with the tokenizer beside it."""
    torch.manual_seed(seed)
    configuration = LlamaConfig(vocab_size=vocabulary, eos_token_id=vocabulary, bos_token_id=None, **sizes)
    LlamaForCausalLM(configuration).save_pretrained(folder)
    write_tokenizer(folder, vocabulary)
    return folder


def sections(folder: Path, vocabulary: int, student: Sizes, teacher: Sizes, device: str) -> dict[str, Any]:
    """The sections of a recipe that name the models and the data of the task; the files are written on the way."""
    paths = {
        "student": write_model(folder / "student", student, vocabulary, seed=0),
        "teacher": write_model(folder / "teacher", teacher, vocabulary, seed=1),
    }
    write_prompts(folder / "prompts.jsonl", 64, vocabulary)
    return {
        **{role: {"model": str(path), "device": device} for role, path in paths.items()},
        "data": {"train": str(folder / "prompts.jsonl")},
        "output": str(folder / "run"),
    }
