"""A student made of some of its teacher's layers, with the teacher's own weights."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from tutelage.errors import InputError
from tutelage.models.shell import is_adapted
from tutelage.models.sources import LIBRARY_ERRORS

DECODER_COUNTS = ("num_decoder_layers", "decoder_layers")
ENCODER_COUNTS = ("num_encoder_layers", "encoder_layers", "num_layers")
"""How configurations of encoder-decoder models name their numbers of layers."""

INDEX_LISTS = ("mlp_only_layers", "moe_layers", "full_attn_idxs")
"""Fields that list layers by index, not one value a layer."""

HELD_BY_POSITION = "relative_attention_bias"
"""T5 keeps this table in whichever layer is first: it belongs to the place, not to the layer."""


def copy_layers(teacher: PreTrainedModel, layers: Sequence[int], dtype: torch.dtype) -> PreTrainedModel:
    """Build a student from the given layers of its teacher; embeddings, norms and head are copied.

    In an encoder-decoder model the layers are those of the decoder, and of the encoder too where it has
    as many; otherwise the encoder is kept whole. An adapter of the teacher is merged into the copy.

    Args:
        teacher: the model to copy from; it is not changed and shares no memory with the student.
        layers: indices of the teacher's layers, in the student's order.
        dtype: type of the student's weights.

    Returns:
        The student, on the CPU, in evaluation mode.

    Raises:
        InputError: a layer the teacher does not have, or an architecture whose layers are not
            interchangeable.
    """
    if is_adapted(teacher):
        teacher = _merged(teacher)
    stacks = layer_stacks(teacher)
    _check_layers(layers, _depth(stacks, "decoder"))
    config = _shorter_config(teacher, layers, stacks)
    with torch.random.fork_rng(devices=[]):
        try:
            student = type(teacher)._from_config(config, dtype=dtype)
        except LIBRARY_ERRORS as error:
            raise _refusal(teacher, str(error)) from error
    if _depth(layer_stacks(student), "decoder") != len(layers):
        raise _refusal(teacher, "its configuration does not say how many layers there are in a known way")
    student.load_state_dict(_chosen_weights(teacher, student, layers, stacks), strict=True)
    student.generation_config = copy.deepcopy(teacher.generation_config)
    return student.eval()


def layer_stacks(model: PreTrainedModel) -> dict[str, tuple[str, int]]:
    """Find the lists of layers of a model.

    Returns:
        For each list its path in the model: whether it is part of the 'decoder' or the 'encoder', and
        its length. Most models have one; T5 and BART have two, XLM four in parallel.
    """
    parts: dict[str, nn.Module] = {"decoder": model.get_decoder()}
    if model.config.is_encoder_decoder:
        parts["encoder"] = model.get_encoder()  # pyright: ignore[reportArgumentType]
    paths = {id(module): path for path, module in model.named_modules()}
    found: dict[str, tuple[str, int]] = {}
    for part, root in parts.items():
        lists = _outermost_lists(root)
        depth = max((len(layers) for layers in lists), default=0)
        found |= {paths[id(layers)]: (part, depth) for layers in lists if len(layers) == depth}
    return found


def _merged(teacher: Any) -> PreTrainedModel:
    """A copy of a teacher with its adapter folded into the weights of its base."""
    return copy.deepcopy(teacher).merge_and_unload()  # pyright: ignore[reportCallIssue]


def _outermost_lists(root: nn.Module) -> list[nn.ModuleList]:
    if isinstance(root, nn.ModuleList):
        return [root]
    return [found for child in root.children() for found in _outermost_lists(child)]


def _depth(stacks: dict[str, tuple[str, int]], part: str) -> int:
    return max((depth for owner, depth in stacks.values() if owner == part), default=0)


def _check_layers(layers: Sequence[int], depth: int) -> None:
    missing = [index for index in layers if not 0 <= index < depth]
    if missing or not layers:
        given = f"from_teacher.layers asks for layer {missing[0]}" if missing else "from_teacher.layers is empty"
        raise InputError(f"{given}, but the teacher has {depth} layers: choose from 0 to {depth - 1}")


def _resized(layers: Sequence[int], stacks: dict[str, tuple[str, int]]) -> set[str]:
    """The parts that the list of layers applies to."""
    same = _depth(stacks, "encoder") == _depth(stacks, "decoder")
    return {"decoder", "encoder"} if same else {"decoder"}


def _shorter_config(
    teacher: PreTrainedModel, layers: Sequence[int], stacks: dict[str, tuple[str, int]]
) -> PreTrainedConfig:
    """The teacher's configuration, for as many layers as are kept."""
    config, depth = teacher.config, _depth(stacks, "decoder")
    fields = config.to_dict()
    if fields.get("quantization_config"):
        raise _refusal(teacher, "its weights are quantized")
    parts = _resized(layers, stacks)
    for section, counts in _sections(config, fields, parts):
        if section.get("num_kv_shared_layers"):
            raise _refusal(teacher, "its last layers share the keys and values of earlier ones")
        section.update(_shorter_fields(section, counts, layers, depth))
    try:
        shorter = type(config).from_dict(copy.deepcopy(fields))
    except LIBRARY_ERRORS as error:
        raise _refusal(teacher, str(error)) from error
    kept = [section.get("layer_types") for section, _ in _sections(shorter, shorter.to_dict(), parts)]
    if kept != [section.get("layer_types") for section, _ in _sections(config, fields, parts)]:
        raise _refusal(teacher, f"its configuration does not allow these kinds of layers in this order: {layers}")
    return shorter


def _sections(
    config: PreTrainedConfig, fields: dict[str, Any], parts: set[str]
) -> list[tuple[dict[str, Any], tuple[str, ...]]]:
    """The dictionaries within a configuration that hold numbers of layers, and the names of these."""
    if config.is_encoder_decoder and isinstance(fields.get("decoder"), dict):
        return [(fields[part], ("num_hidden_layers",)) for part in sorted(parts)]
    if config.is_encoder_decoder:
        return [(fields, DECODER_COUNTS + (ENCODER_COUNTS if "encoder" in parts else ()))]
    text = config.get_text_config()
    name = text.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    nested = [key for key in config.sub_configs if getattr(config, key) is text]
    return [(fields[nested[0]] if nested else fields, (name,))]


def _shorter_fields(fields: dict[str, Any], counts: Sequence[str], layers: Sequence[int], depth: int) -> dict[str, Any]:
    """The fields that change when only some layers are kept.

    >>> given = {"n_layer": 2, "layer_types": ["a", "b"], "eos_token_id": [0, 1]}
    >>> _shorter_fields(given, ["n_layer"], [1], 2)
    {'n_layer': 1, 'layer_types': ['b']}
    """
    changed: dict[str, Any] = {name: len(layers) for name in counts if fields.get(name) == depth}
    for name, value in fields.items():
        if name in INDEX_LISTS and value:
            changed[name] = [new for new, old in enumerate(layers) if old in value]
        elif name == "per_layer_config" and value:
            by_index = {int(key): settings for key, settings in value.items()}
            changed[name] = {str(new): by_index[old] for new, old in enumerate(layers) if old in by_index}
        elif _is_per_layer(name) and isinstance(value, list | tuple) and len(value) == depth:
            changed[name] = [value[index] for index in layers]
    return changed


def _is_per_layer(name: str) -> bool:
    return "layer" in name or name in ("intermediate_size", "activation_sparsity_pattern")


def _chosen_weights(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    layers: Sequence[int],
    stacks: dict[str, tuple[str, int]],
) -> dict[str, torch.Tensor]:
    """The teacher's weights under the student's names."""
    parts = _resized(layers, stacks)
    prefixes = [f"{path}." for path, (part, _) in stacks.items() if part in parts]
    source, chosen = teacher.state_dict(), {}
    for name, weight in student.state_dict().items():
        origin = _origin(name, prefixes, layers)
        given = source.get(origin, source.get(name) if HELD_BY_POSITION in name else None)
        if given is None or given.shape != weight.shape:
            raise _refusal(teacher, f"its layers differ in kind: no weight of layer {origin} fits {name}")
        chosen[name] = given
    return chosen


def _origin(name: str, prefixes: Sequence[str], layers: Sequence[int]) -> str:
    """The teacher's name of a student's weight.

    >>> _origin("model.layers.1.mlp.weight", ["model.layers."], [0, 2])
    'model.layers.2.mlp.weight'
    >>> _origin("model.norm.weight", ["model.layers."], [0, 2])
    'model.norm.weight'
    """
    for prefix in prefixes:
        if name.startswith(prefix):
            index, dot, rest = name.removeprefix(prefix).partition(".")
            return f"{prefix}{layers[int(index)]}{dot}{rest}"
    return name


def _refusal(teacher: PreTrainedModel, reason: str) -> InputError:
    reason = " ".join(reason.split())[:300]
    return InputError(
        f"from_teacher cannot copy layers of this teacher ({teacher.config.model_type}): {reason}; "
        "choose other layers, or give the student by model or from_config"
    )
