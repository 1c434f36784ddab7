"""Reading the output head off a transformers model, and proving that nothing was missed."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tutelage.errors import InputError
from tutelage.losses.head import Head


def output_head(model: PreTrainedModel) -> Head:
    """Return the head of a model: weight, bias, scale and softcap, sharing its parameters.

    Raises:
        InputError: the head is no plain linear layer (an adapter on it, or a quantised one).
    """
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        raise InputError(
            f"the output head of {type(model).__name__} is a {type(layer).__name__}, not a plain linear layer; "
            "leave the head out of adapters (target_modules) and of quantisation"
        )
    config = model.config.get_text_config(decoder=True)
    bias = dict(model.named_buffers(recurse=False)).get("final_logits_bias")
    return Head(
        weight=layer.weight,
        bias=layer.bias if bias is None else bias[0],
        scale=_scale(config),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def _scale(config) -> float:
    """Scale between the last hidden state and the logits, as the architectures name it in their configuration."""
    if getattr(config, "scale_decoder_outputs", False):  # T5 with tied embeddings
        return config.d_model**-0.5
    if getattr(config, "logits_scaling", None) is not None:  # Granite
        return 1 / config.logits_scaling
    if getattr(config, "logit_scale", None) is not None:  # Cohere
        return config.logit_scale
    return 1.0


def verify_head(model: PreTrainedModel, head: Head, hidden: Tensor, logits: Tensor) -> None:
    """Compare a head's logits with those of the model's own forward pass on a probe.

    Raises:
        InputError: they differ, so the architecture does something to its logits that `Head` does not know; or the
            model's are not finite.
    """
    ours = head.logits(hidden).float()
    theirs = logits.float()
    if not theirs.isfinite().all():
        raise InputError(
            f"{type(model).__name__} computes logits that are not finite on a probe: its weights are damaged, or too "
            f"large for {str(hidden.dtype).removeprefix('torch.')}; get them anew, or set dtype to bfloat16 or float32"
        )
    tolerance = 1e-3 if hidden.dtype == torch.float32 else 6e-2
    if not torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * (1 + theirs.abs().max().item())):
        worst = (ours - theirs).abs().max().item()
        raise InputError(
            f"{type(model).__name__} computes its logits in a way that is not known here (they differ by "
            f"{worst:.3g} on a probe); please report the architecture"
        )
