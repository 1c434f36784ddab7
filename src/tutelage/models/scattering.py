"""Models that are to be cut: one process reads the weights, and the others receive their parts.

The first process of the run has a model whole in the memory of its host until the last tensor has gone out. The others
build it without weights, on the meta device. A device has one whole tensor at a time, besides its parts.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import GenerationConfig, PreTrainedModel

from tutelage import config
from tutelage.models import adapters
from tutelage.models.language_model import LanguageModel
from tutelage.models.loading import device_of, freeze, load_model
from tutelage.models.sharding import begin, shard
from tutelage.models.skeleton import load_skeleton
from tutelage.models.sources import locate
from tutelage.world import world


def is_read_once(spec: config.Model, role: str) -> bool:
    """Whether `load_cut` takes a model: a folder or hub id with all of its weights, of transformers' own architectures.

    Fresh weights, layers of a teacher, adapters, GGUF files and authors' own code are none of these.
    """
    if spec.model is None or spec.adapter is not None or spec.trust_remote_code:
        return False
    source = locate(spec.model, role, spec.revision)
    return "gguf_file" not in source.options and not adapters.is_adapter(source)


def load_cut(
    spec: config.Model, role: Literal["student", "teacher"], *, seed: int, within: Literal["run", "host"] = "run"
) -> PreTrainedModel:
    """Load a model cut over the processes of a run of several; every process calls it.

    Every part is what `load_model` and `shard` would give, to the last bit. Where a model built from its configuration
    differs from the one that was read (in names, shapes or ties), every process reads it after all.

    Args:
        spec: the model's section of a recipe, one that `is_read_once`.
        role: whose model it is. A teacher comes frozen.
        seed: as `load_model` takes it.
        within: as `shard` takes it.

    Raises:
        InputError: it cannot be loaded or cut, or is not a language model that writes text.
    """
    device, everyone = device_of(spec.device, role), world()
    read: list[PreTrainedModel] = []

    def read_whole() -> _Plan:
        read.append(load_model(replace(spec, device="cpu"), role, seed=seed))
        LanguageModel(read[0])  # compares its logits with its head's, for which weights have to be whole
        return _Plan.of(read[0])

    plan = everyone.main_does(read_whole)
    model = everyone.agreed(lambda: read[0] if everyone.is_main else load_skeleton(spec, role))
    if everyone.any(not plan.fits(model)):
        return shard(everyone.agreed(lambda: load_model(spec, role, seed=seed)), role, within)
    weights, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    _empty(model.eval(), plan)
    if role == "teacher":
        freeze(model)
    shard(model, role, within, device.type)
    _fill(model, plan, weights, buffers, device)
    begin(model)
    model.generation_config = plan.generation
    return model


@dataclass(frozen=True)
class _Plan:
    """What the first process says of a model that it has read; `meta` tensors stand for shapes and types."""

    parameters: dict[str, tuple[str, Tensor]]
    """Of each name: the first name of the same parameter, which is another one where weights are tied."""
    buffers: dict[str, Tensor]
    attention: str | None
    generation: GenerationConfig

    @classmethod
    def of(cls, model: PreTrainedModel) -> "_Plan":
        first: dict[Tensor, str] = {}
        return cls(
            {
                name: (first.setdefault(parameter, name), _shape(parameter))
                for name, parameter in model.named_parameters(remove_duplicate=False)
            },
            {name: _shape(buffer) for name, buffer in model.named_buffers()},
            model.config._attn_implementation,
            model.generation_config,
        )

    def fits(self, model: PreTrainedModel) -> bool:
        """Whether a model takes these weights, and has no tensors besides that would stay without values."""
        own = _Plan.of(model)
        return (
            own._shapes() == self._shapes()
            and own.attention == self.attention
            and not any(isinstance(x, Tensor) and x.is_meta for part in model.modules() for x in vars(part).values())
        )

    def _shapes(self) -> dict[str, tuple[str, torch.Size]]:
        """Types are left out: which of them are kept in float32 only reading decides."""
        buffers = {name: (name, buffer.shape) for name, buffer in self.buffers.items()}
        return {name: (first, weight.shape) for name, (first, weight) in self.parameters.items()} | buffers


def _shape(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _empty(model: nn.Module, plan: _Plan) -> None:
    """Leave a model without weights; what was tied stays so."""
    empty = {first: nn.Parameter(shape) for first, shape in plan.parameters.values()}
    model.load_state_dict({name: empty[first] for name, (first, _) in plan.parameters.items()}, False, assign=True)


def _fill(
    model: nn.Module, plan: _Plan, weights: dict[str, nn.Parameter], buffers: dict[str, Tensor], device: torch.device
) -> None:
    """Send the weights from the first process, which lets go of each, to the parts of a cut model."""
    parts: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)  # or shard would have refused
        whole = _sent_by_main(weights.pop(name), parameter, device)
        part = distribute_tensor(whole, parameter.device_mesh, parameter.placements)
        parts[name] = nn.Parameter(part, requires_grad=parameter.requires_grad)
    state = {name: parts[first] for name, (first, _) in plan.parameters.items()}
    model.load_state_dict(state, strict=False, assign=True)
    for name, shape in plan.buffers.items():
        buffer = _sent_by_main(buffers[name], shape, device)
        distributed.broadcast(buffer, 0)
        owner, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(owner), own_name, buffer)


def _sent_by_main(tensor: Tensor, like: Tensor, device: torch.device) -> Tensor:
    """A tensor on its device in the first process, and room for it in the others."""
    if world().is_main:
        return tensor.detach().to(device).contiguous()
    return torch.empty(like.shape, dtype=like.dtype, device=device)
