"""Models cut over the processes of a run: weights, gradients and optimiser state, by PyTorch's FSDP2.

Every process holds a part of each tensor. A forward pass collects a layer's weights for as long as it needs them, and
the backward pass leaves each process its part of the gradient's *sum* over the processes. So every process has to make
the same number of passes; writing text, which takes each process its own number of steps, is done with whole weights.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from tutelage.errors import InputError
from tutelage.world import limit, world


def shard(
    model: PreTrainedModel, role: str, within: Literal["run", "host"] = "run", device: str | None = None
) -> PreTrainedModel:
    """Cut a decoder-only model over all processes of the run, in place; alone, or cut before, leave it as it is.

    Args:
        model: the whole model, the same in every process.
        role: whose model it is, for messages.
        within: cut it over the whole run, or over the processes of each host, the hosts holding the same.
        device: the type of device where it will be; by default, of that where it is.

    Raises:
        InputError: it is an encoder-decoder model, or has an adapter; or hosts have different numbers of processes.
    """
    if world().size == 1 or is_sharded(model):
        return model
    if model.config.is_encoder_decoder or not isinstance(model, PreTrainedModel):
        raise InputError(
            f"train.shard cuts plain decoder-only models, and the {role} is a {type(model).__name__}; leave "
            "train.shard out, so that every process holds it whole"
        )
    device = device or next(model.parameters()).device.type
    mesh = _hosts(device) if within == "host" else init_device_mesh(device, (world().size,))
    layers = [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    assert isinstance(head, nn.Linear)  # LanguageModel has looked at it
    assert isinstance(embedding, nn.Embedding)
    tied = head.weight is embedding.weight
    for module in [*layers, decoder]:
        fully_shard(module, mesh=mesh)
    if tied:
        head.weight = embedding.weight
    else:
        fully_shard(head, mesh=mesh)
    _cut_the_rest(model, mesh)
    for module in _sharded(model):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    return model


def _hosts(device: str) -> DeviceMesh:
    """Hosts × the processes of a host: tensors are repeated along the first dimension, and cut along the second."""
    everyone = world()
    sizes = everyone.gather(int(os.environ.get("LOCAL_WORLD_SIZE", everyone.size)))
    if len(set(sizes)) > 1:
        raise InputError(
            f"train.shard_within is host, and hosts have {min(sizes)} to {max(sizes)} processes; start as many on "
            "each, or leave train.shard_within out"
        )
    ranks = torch.arange(everyone.size).view(-1, sizes[0])
    both_ways = (ranks.mT.tolist(), ranks.tolist())
    groups: list[Any] = [distributed.new_subgroups_by_enumeration(way, timeout=limit())[0] for way in both_ways]
    return DeviceMesh.from_group(groups, device, ranks, mesh_dim_names=("hosts", "processes"))


def _cut_the_rest(model: nn.Module, mesh: DeviceMesh) -> None:
    left = [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]
    if left:
        raise InputError(
            f"train.shard does not know this architecture: {left[0]} lies outside its decoder and its head; leave "
            "train.shard out, and please report the architecture"
        )


def _sharded(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def is_sharded(model: nn.Module) -> bool:
    """Whether a model was cut."""
    return bool(_sharded(model))


@contextmanager
def whole(*models: nn.Module) -> Iterator[None]:
    """Have the weights of models whole in every process meanwhile, so that passes need no other process."""
    modules = [module for model in models for module in _sharded(model)]
    for module in modules:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Collect tensors that may be cut; every process takes part, and the first one has the result (on the CPU)."""
    found = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if world().is_main:
            found[name] = full.detach().cpu() if isinstance(tensor, DTensor) else full
    return found


def cut_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Cut a whole tensor as another one is."""
    if not isinstance(model, DTensor) or tensor.ndim == 0:
        return tensor
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)


def number(tensor: Any) -> float:
    """The value of a tensor with one element, which may be cut."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).item()
