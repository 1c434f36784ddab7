"""What a CUDA graph does, on a CPU: the operations of a run are written down, and a replay does them again, blindly.

As on the device, an operation finds its inputs by their addresses: memory that is freed meanwhile is an error, memory
that is written meanwhile is read as it is now, and nothing of Python runs again. Results of a run lie in memory of the
recording's own, which is spoilt before each replay, so that nothing can be left over from an earlier one. Recording
refuses what a device refuses in a capture: questions of the host, and data that comes from it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

aten = torch.ops.aten
QUESTIONS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.is_nonzero.default,
    aten.equal.default, aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default,
    aten.bincount.default, aten.repeat_interleave.Tensor,
}  # fmt: skip
FROM_THE_HOST = {aten.lift_fresh.default, aten.lift_fresh_copy.default}


def refusal(func: Any, args: tuple, kwargs: dict) -> str | None:
    """Why a capture would not take an operation."""
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    selects = func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
    if func in QUESTIONS or (selects and any(t is not None and t.dtype == torch.bool for t in args[1])):
        return f"{func} asks the device for a number"
    device = kwargs.get("device")
    if func in FROM_THE_HOST or (
        device is not None and any(t.device.type != torch.device(device).type for t in tensors)
    ):
        return f"{func} brings data from elsewhere"
    return None


class Watch(TorchDispatchMode):
    """Refuses what a capture refuses."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        why = refusal(func, args, kwargs or {})
        if why is not None:
            raise RuntimeError(why)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Address:
    """A tensor in memory that someone else owns."""

    memory: StorageWeakRef
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def tensor(self) -> Tensor:
        storage = torch.UntypedStorage._new_with_weak_ptr(self.memory.cdata)
        if storage is None:
            raise RuntimeError("the replay reads memory that was freed")
        return torch.empty(0, dtype=self.dtype).set_(storage, self.offset, self.size, self.stride)


class Tape(TorchDispatchMode):
    """The operations of one run."""

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, tuple, dict, Any]] = []
        self._own: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        why = refusal(func, args, kwargs)
        if why is not None:
            raise RuntimeError(why)
        where = tree_map_only(Tensor, self._found, (args, kwargs))
        result = func(*args, **kwargs)
        if func.is_view:
            return result
        self._operations.append((func, *where, result))
        if not func._schema.is_mutable:
            self._own |= {_memory(tensor): tensor for tensor in tree_flatten(result)[0] if isinstance(tensor, Tensor)}
        return result

    def _found(self, tensor: Tensor) -> Tensor | Address:
        if _memory(tensor) in self._own:
            return tensor
        geometry = (tuple(tensor.size()), tuple(tensor.stride()), tensor.storage_offset())
        return Address(StorageWeakRef(tensor.untyped_storage()), tensor.dtype, *geometry)

    def replay(self) -> None:
        for tensor in self._own.values():
            tensor.untyped_storage().fill_(0xFF)  # NaN in every type of floating point
        for func, args, kwargs, kept in self._operations:
            args, kwargs = tree_map_only(Address, Address.tensor, (args, kwargs))
            result = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for old, new in zip(tree_flatten(kept)[0], tree_flatten(result)[0], strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@dataclass
class Replayer:
    """Records on a CPU, and counts."""

    recorded: int = 0
    replayed: int = 0

    def record(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        function()
        tape = Tape()
        with tape:
            result = function()
        self.recorded += 1

        def replay() -> Tensor:
            self.replayed += 1
            tape.replay()
            return result

        return replay
