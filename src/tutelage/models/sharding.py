"""Models cut over the processes of a run: weights, gradients and optimiser state, by PyTorch's FSDP2.

Every process holds a part of each tensor. A forward pass collects a layer's weights for as long as it needs them, and
the backward pass leaves each process its part of the gradient's *sum* over the processes. So every process has to make
the same number of passes; writing text, which takes each process its own number of steps, is done with whole weights.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from tutelage.errors import InputError
from tutelage.models.shell import without_adapter_shell
from tutelage.world import limit, world

Ties = list[list[tuple[nn.Module, str]]]
"""The places of each parameter that has several."""


def shard(
    model: PreTrainedModel, role: str, within: Literal["run", "host"] = "run", device: str | None = None
) -> PreTrainedModel:
    """Cut a model over all processes of the run, in place; alone, or cut before, leave it as it is.

    Layers of decoder and encoder are collected one by one, and words that both read from one table by themselves. The
    layers of an adapter belong to those that it is on. Where weights are not there yet, `begin` has to follow.

    Args:
        model: the whole model, the same in every process; or a PEFT model around one.
        role: whose model it is, for messages.
        within: cut it over the whole run, or over the processes of each host, the hosts holding the same.
        device: the type of device where it will be; by default, of that where it is.

    Raises:
        InputError: layers share weights with one another, or weights lie outside of encoder, decoder and head; or hosts
            have different numbers of processes.
    """
    if world().size == 1 or is_sharded(model):
        return model
    network = without_adapter_shell(model)
    device = device or next(network.parameters()).device.type
    stacks = _stacks(network)
    tables = _table_in_common(network, stacks)
    units = [*tables, *_layers(network, stacks), *stacks]
    mesh = _hosts(device) if within == "host" else init_device_mesh(device, (world().size,))
    ties = _ties(network)
    for module in units:
        # Else the root stays whole after a pass without gradients, and its parameters are not those of the optimiser.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    _check_that_nothing_is_cut_twice(network, ties, role)
    _tie(ties, cut=True)
    head = network.get_output_embeddings()
    assert isinstance(head, nn.Linear)  # LanguageModel has looked at it
    if not isinstance(head.weight, DTensor):
        fully_shard(head, mesh=mesh)
    _check_that_all_is_cut(network, role)
    for module in _sharded(network):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        module.set_unshard_in_backward(module not in tables)  # the gradient of an embedding does not depend on it
    begin(model)
    return model


def begin(model: nn.Module) -> None:
    """Let a cut model be run, once its weights are there; `shard` does so where they were.

    FSDP takes what runs first for the root of all. Encoder and decoder run one after the other, with words in common,
    so both have to be told their root beforehand.
    """
    network = without_adapter_shell(model)  # type: ignore[arg-type]
    weight = next(network.parameters())
    if isinstance(weight, DTensor) and not weight.is_meta and network.config.is_encoder_decoder:
        root = _Root(_stacks(network))
        fully_shard(root, mesh=weight.device_mesh)
        root()


class _Root(nn.Module):
    def __init__(self, stacks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.stacks = nn.ModuleList(stacks)

    def forward(self) -> None:
        """Nothing: that it runs is what FSDP looks at."""


def _stacks(network: PreTrainedModel) -> list[PreTrainedModel]:
    """What a pass runs: the decoder, after the encoder where there is one."""
    decoder = network.get_decoder()
    return [network.get_encoder(), decoder] if network.config.is_encoder_decoder else [decoder]


def _layers(network: PreTrainedModel, stacks: Iterable[nn.Module]) -> list[nn.Module]:
    """The outermost modules that transformers keeps together."""
    names = set(network._no_split_modules or ())
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in (module for stack in stacks for module in stack.modules()):  # outer ones come first
        is_layer = isinstance(module, GradientCheckpointingLayer) or type(module).__name__ in names
        if is_layer and module not in inside:
            found.append(module)
            inside.update(module.modules())
    return found


def _table_in_common(network: PreTrainedModel, stacks: Sequence[PreTrainedModel]) -> list[nn.Module]:
    """The embedding that encoder and decoder share, as one module in both, for FSDP to find it there."""
    if len(stacks) == 1:
        return []
    tables = [model.get_input_embeddings() for model in (network, *stacks)]
    if not all(isinstance(table, nn.Embedding) and table.weight is tables[0].weight for table in tables):
        return []
    network.set_input_embeddings(tables[0])
    return tables[:1]


def _ties(network: nn.Module) -> Ties:
    """The places of each parameter that has several."""
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            places.setdefault(parameter, []).append((module, name))
    return [found for found in places.values() if len(found) > 1]


def _tie(ties: Ties, cut: bool) -> None:
    """Put at all places of a parameter what is cut, or whole, at the one where FSDP knows it."""
    for places in ties:
        found = [getattr(module, name) for module, name in places]
        one = next(parameter for parameter in found if isinstance(parameter, DTensor) == cut)
        for module, name in places:
            setattr(module, name, one)


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


def _check_that_nothing_is_cut_twice(network: nn.Module, ties: Ties, role: str) -> None:
    for places in ties:
        parts = {part for module, name in places if isinstance(part := getattr(module, name), DTensor)}
        if len(parts) > 1:
            shared = next(name for name, parameter in network.named_parameters() if parameter in parts)
            raise _unknown(role, f"{shared} belongs to several layers")


def _check_that_all_is_cut(network: nn.Module, role: str) -> None:
    left = [name for name, parameter in network.named_parameters() if not isinstance(parameter, DTensor)]
    if left:
        raise _unknown(role, f"{left[0]} lies outside its encoder, decoder and head")


def _unknown(role: str, problem: str) -> InputError:
    return InputError(
        f"train.shard does not know the {role}'s architecture: {problem}; leave train.shard out, so that every process "
        "holds it whole, and please report the architecture"
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
    ties = [places for model in models if is_sharded(model) for places in _ties(model)]
    for module in modules:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    _tie(ties, cut=False)
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()
        _tie(ties, cut=True)


def whole_tensors(tensors: Mapping[str, Tensor], rank: int = 0) -> dict[str, Tensor]:
    """Collect tensors that may be cut; every process takes part, and the one of this rank has them all (on the CPU)."""
    found = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if world().rank == rank:
            found[name] = full.detach().cpu()
    return found


def cut_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Cut a whole tensor, which every process has, as another one is; no process talks to another."""
    if not isinstance(model, DTensor) or tensor.ndim == 0:
        return tensor
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements, src_data_rank=None)


def cut_alike(module: nn.Module, model: nn.Module) -> None:
    """Cut the parameters of a module along their rows, over the processes that a cut model lies on; in place.

    The module has to be the same in every process, and to collect what it computes with (`Head.gathered`). Beside a
    model that is whole it stays whole.
    """
    like = next(model.parameters())
    if not isinstance(like, DTensor):
        return
    for name, parameter in list(module.named_parameters()):
        owner, _, own_name = name.rpartition(".")
        part = nn.Parameter(cut_like(parameter.detach(), like), requires_grad=parameter.requires_grad)
        setattr(module.get_submodule(owner), own_name, part)


def load_whole(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a module that may be cut, as `load_state_dict` does.

    Raises:
        RuntimeError: names or shapes are not the module's.
    """
    held = module.state_dict()
    module.load_state_dict({name: cut_like(t, held[name]) if name in held else t for name, t in tensors.items()})


def number(tensor: Any) -> float:
    """The value of a tensor with one element, which may be cut."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).item()
