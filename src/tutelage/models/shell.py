"""PEFT models seen from outside, without importing PEFT before it is needed (that takes seconds)."""

import sys

from transformers import PreTrainedModel


def is_adapted(model: PreTrainedModel) -> bool:
    """Whether a model is a PEFT model around another one."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def without_adapter_shell(model: PreTrainedModel) -> PreTrainedModel:
    """Return the transformers model inside a PEFT model, adapter layers included; others as they are."""
    if is_adapted(model):
        return model.get_base_model()  # type: ignore[return-value]
    return model
