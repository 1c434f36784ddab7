"""Which of transformers' classes a model is: decoder-only or encoder-decoder, and nothing else."""

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from tutelage.models.sources import Source

EXPECTED_MODEL = "expected a decoder-only or encoder-decoder language model, such as Llama or T5"


def auto_class(settings: PreTrainedConfig, source: Source) -> Any:
    """The auto class for a configuration: encoder-decoder or decoder-only; others are refused.

    Raises:
        InputError: the model does not write text from left to right.
    """
    kind, own_code = settings.model_type, settings.to_dict().get("auto_map") or {}
    if settings.is_encoder_decoder:
        auto, known = AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    else:
        auto, known = AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if kind not in known and auto.__name__ not in own_code:
        raise source.error(f"is a {kind} model, which does not write text; {EXPECTED_MODEL}")
    if kind in known and _reads_ahead(settings):
        raise source.error(f"is a {kind} encoder, whose tokens see the ones after them; {EXPECTED_MODEL}")
    return auto


def _reads_ahead(settings: PreTrainedConfig) -> bool:
    """Whether a model that transformers counts as causal is an encoder all the same.

    BERT and its kin are causal only with `is_decoder`, XLM only with `causal`.

    >>> from transformers import BertConfig
    >>> _reads_ahead(BertConfig()), _reads_ahead(BertConfig(is_decoder=True))
    (True, False)
    """
    if settings.is_encoder_decoder or settings.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return False
    given = settings.to_dict()
    return not (given.get("is_decoder") or given.get("causal"))
