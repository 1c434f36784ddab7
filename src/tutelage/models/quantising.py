"""Quantised models: fewer bits for the weights of the linear layers, made so while they are read or stored so.

The output head, the embeddings, the norms and the biases keep their type: the losses read the head's weight itself, and
it has the last word on every token. Only models that do not learn are quantised.
"""

from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, TorchAoConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils import is_accelerate_available, is_bitsandbytes_available, is_torchao_available

from tutelage import config
from tutelage.models.sources import Source

LIBRARIES = {"int8": "torchao", "nf4": "bitsandbytes"}
"""What each kind is computed by."""
_BLOCK = 64  # weights that share a scale in NF4
_SCALE = 4  # bytes of a scale
_CODE = 16 * 4  # bytes of a layer's table of the values that four bits stand for


def check_quantisable(source: Source, kind: config.Quantisation, is_adapter: bool, stored: str | None) -> None:
    """Say before any weights are read that a model cannot be quantised.

    Args:
        source: where it lies.
        kind: how it is to be quantised.
        is_adapter: whether it is a PEFT adapter.
        stored: what it was quantised by before it was stored (`stored_method`), if it was.

    Raises:
        InputError: it is an adapter, a GGUF file or quantised already, or the library is missing.
    """
    asked = f"cannot be quantised (teacher.quantize: {kind}):"
    if is_adapter:
        raise source.error(f"{asked} it is an adapter; merge it into its base (merge_and_unload) and name the result")
    if "gguf_file" in source.options:
        raise source.error(f"{asked} it is a GGUF file; name the folder or hub id that it was made from")
    if stored is not None:
        raise source.error(f"{asked} it is stored quantised ({stored}) and loads as it is; leave teacher.quantize out")
    check_library(source, LIBRARIES[kind])


def check_library(source: Source, library: str) -> None:
    """Say that a quantised model needs a library that is not here.

    Args:
        source: where the model lies.
        library: what quantised it; those besides torchao and bitsandbytes are left to transformers, which knows them.

    Raises:
        InputError: it, or accelerate, is not installed, or older than transformers takes.
    """
    found = {"torchao": is_torchao_available, "bitsandbytes": is_bitsandbytes_available}
    if library in found and not (found[library]() and is_accelerate_available()):
        raise source.error(
            f"is quantised by {library}, and that or accelerate is missing here or too old: "
            "pip install 'tutelage[quantised]'"
        )


def stored_method(settings: PreTrainedConfig) -> str | None:
    """The library that quantised a model before it was stored, as its config.json says; `None` if it has all its bits.

    >>> from transformers import LlamaConfig
    >>> stored_method(LlamaConfig()), stored_method(LlamaConfig(quantization_config={"quant_method": "gptq"}))
    (None, 'gptq')
    """
    given = getattr(settings, "quantization_config", None)
    if given is None:
        return None
    given = given if isinstance(given, dict) else given.to_dict()
    if given.get("load_in_4bit") or given.get("load_in_8bit"):
        return "bitsandbytes"  # early files of its do not name it
    method = given.get("quant_method", "an unnamed method")
    return method.value if isinstance(method, Enum) else method


def is_quantised(model: PreTrainedModel) -> bool:
    """Whether a model has quantised weights; a skeleton's are those of the files it stands for."""
    return stored_method(model.config) is not None


def loading_options(kind: config.Quantisation, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained` that have it quantise a model tensor by tensor, on the device where it will be.

    Args:
        kind: how; `none` for a model that is stored quantised.
        dtype: what the quantised layers compute in, and the type of all others.
        device: where the model will be.
    """
    options: dict[str, Any] = {"device_map": {"": device}}
    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        options["quantization_config"] = TorchAoConfig(Int8WeightOnlyConfig())
    if kind == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    return options


def settle(model: PreTrainedModel, source: Source, kind: config.Quantisation) -> None:
    """Look at a quantised model that has been read, and have it stay as it is.

    Args:
        model: the model.
        source: where it lies.
        kind: how it was to be quantised; `none` for a model that is stored quantised.

    Raises:
        InputError: its output head is quantised, or nothing of it is, or a layer is computed wrongly on this device.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter:
        raise source.error(
            "has a quantised output head, which the losses read as it is; quantise the model again and leave its head "
            "out (modules_to_not_convert, llm_int8_skip_modules), or name the model that it was made from"
        )
    if kind != "none" and all(type(weight) is nn.Parameter for weight in model.parameters()):
        raise source.error(f"has no linear layer that {kind} is for; try another teacher.quantize, or leave it out")
    if stored_method(model.config) == "bitsandbytes":
        _settle_four_bits(model, source)


def _settle_four_bits(model: PreTrainedModel, source: Source) -> None:
    """Keep clear of what bitsandbytes (0.50) does wrong on CPUs."""
    from bitsandbytes.nn import Linear4bit

    for layer in (module for module in model.modules() if isinstance(module, Linear4bit)):
        # With products in bfloat16 it packs weights anew in the first pass; a look at the state dict then unpacks them,
        # but not their scales, and the layer computes something else.
        layer.support_avx512bf16_for_cpu = False
        block: int = layer.weight.blocksize  # pyright: ignore[reportAttributeAccessIssue]
        if layer.weight.device.type == "cpu" and layer.in_features % block:
            raise source.error(
                f"has linear layers that read {layer.in_features} numbers, and bitsandbytes unpacks four bits rightly "
                f"on a CPU only where these are a multiple of {block}; use teacher.quantize: int8, or a GPU"
            )


def weight_bytes(skeleton: PreTrainedModel, kind: config.Quantisation = "none") -> int:
    """What the weights of a model will take in memory.

    Args:
        skeleton: the model without its weights, in the type that it will have.
        kind: how it will be quantised.
    """
    size = sum(weight.numel() * weight.element_size() for weight in skeleton.parameters())
    if kind == "none":
        return size
    kept = HfQuantizer.get_modules_to_not_convert(skeleton, None, list(skeleton._keep_in_fp32_modules or ()))
    kinds = (nn.Linear, Conv1D) if kind == "nf4" else (nn.Linear,)
    for name, module in skeleton.named_modules():
        asked = f"{name}.weight" if kind == "int8" else name  # transformers' quantisers ask so
        if isinstance(module, kinds) and should_convert_module(asked, kept):
            weight = module.weight
            size += _quantised_bytes(weight, kind) - weight.numel() * weight.element_size()
    return size


def _quantised_bytes(weight: torch.Tensor, kind: config.Quantisation) -> int:
    """One byte a weight and a scale and zero a row, or half a byte a weight and a scale a block."""
    if kind == "int8":
        return weight.numel() + len(weight) * (_SCALE + 1)
    return -(-weight.numel() // 2) + -(-weight.numel() // _BLOCK) * _SCALE + _CODE


def parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that a tensor consists of: itself, or the numbers and scales of a quantised one."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in parts_of(getattr(tensor, name))]
