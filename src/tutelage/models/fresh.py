"""Models with fresh weights, from a configuration written in a recipe."""

import difflib
from dataclasses import fields
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from tutelage.models.architecture import auto_class
from tutelage.models.sources import LIBRARY_ERRORS, Source


def fresh_model(
    given: dict[str, Any], role: str, dtype: torch.dtype, seed: int, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedModel:
    """Make a model with fresh weights, drawn on the CPU so that they are the same on every device.

    Args:
        given: `model_type` and the settings of its transformers configuration.
        role: whose model it is, for messages.
        dtype: type of the weights.
        seed: seed of the weights; the global generators are left as they were.
        tokenizer: gives vocabulary size and special ids where `given` does not.

    Returns:
        The model, on the CPU.

    Raises:
        InputError: the configuration has mistakes, or is not of a language model that writes text.
    """
    source = Source(role, f"from_config: {given.get('model_type')}", "", True)
    kind, settings = _checked_settings(given, source, tokenizer)
    try:
        configuration = AutoConfig.for_model(kind, **settings)
    except LIBRARY_ERRORS as error:
        raise source.explain(error) from error
    if configuration.is_encoder_decoder and configuration.to_dict().get("decoder_start_token_id") is None:
        configuration.decoder_start_token_id = _start_id(tokenizer)
    auto = auto_class(configuration, source)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            return auto.from_config(configuration, dtype=dtype, trust_remote_code=False)
        except LIBRARY_ERRORS as error:
            raise source.explain(error) from error


def _checked_settings(
    given: dict[str, Any], source: Source, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[str, dict[str, Any]]:
    """The model type and its settings, with those that the tokenizer decides where they are left out."""
    settings = dict(given)
    kind = settings.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        guess = _nearest(str(kind), list(CONFIG_MAPPING))
        raise source.error(f"has no model_type that transformers knows{guess}; for instance 'llama'")
    known = {entry.name for entry in fields(CONFIG_MAPPING[kind])} | set(CONFIG_MAPPING[kind].attribute_map)
    for name in sorted(settings.keys() - known):
        if guess := _nearest(name, sorted(known)):
            raise source.error(f"has the unknown key '{name}'{guess}")
    if tokenizer is not None:
        settings = {**_tokenizer_settings(tokenizer, known), **settings}
    if "vocab_size" in known and "vocab_size" not in settings:
        raise source.error("needs vocab_size, as there is no tokenizer to take it from")
    size = settings.get("vocab_size")
    if tokenizer is not None and isinstance(size, int) and size < len(tokenizer):
        raise source.error(
            f"has vocab_size {size}, but the tokenizer has {len(tokenizer)} tokens; "
            "leave vocab_size out, or make it at least that"
        )
    return kind, settings


def _tokenizer_settings(tokenizer: PreTrainedTokenizerBase, known: set[str]) -> dict[str, Any]:
    """What a fresh model takes from its tokenizer.

    A pad id that is also another token is left out: models never train the embedding of their pad id.
    """
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": begin,
        "eos_token_id": end,
        "pad_token_id": None if pad in (begin, end) else pad,
        "decoder_start_token_id": _start_id(tokenizer),
        "forced_eos_token_id": end,
    }
    return {name: value for name, value in ids.items() if name in known}


def _start_id(tokenizer: PreTrainedTokenizerBase | None) -> Any:
    """What a decoder starts with: the pad token as in T5, or else the end of sequence as in BART."""
    if tokenizer is None:
        return None
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def _nearest(name: str, known: list[str]) -> str:
    """A question after a mistyped word, or nothing.

    >>> _nearest("hiden_size", ["hidden_size", "vocab_size"])
    "; did you mean 'hidden_size'?"
    """
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    return f"; did you mean '{found[0]}'?" if found else ""
