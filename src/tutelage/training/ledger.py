"""Counting the bytes that tensors hold, without having the tensors.

Under fake tensors every operation works out shapes and types but no numbers: a forward and backward pass of any
architecture takes about a second, whatever its size, and says to the byte what the real one keeps alive.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Ledger(TorchDispatchMode):
    """While it is entered, keeps count of the bytes in the storages of all tensors that operations return.

    >>> import torch
    >>> with Ledger() as ledger:
    ...     total = torch.ones(10).double().sum()
    >>> ledger.peak, ledger.held
    (120, 8)
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = 0
        """Bytes alive now."""
        self.peak = 0
        """Most bytes alive at a time."""
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run an operation and count what it returns."""
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.held -= size


def pretending() -> FakeTensorMode:
    """A context in which tensors are fake: nothing is computed and nothing allocated."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def as_fake(skeleton: AnyModule) -> AnyModule:
    """Give a model on the meta device fake tensors on the CPU, in place; call it while pretending."""
    fake = skeleton.to_empty(device="cpu")
    tie = getattr(fake, "tie_weights", None)
    if tie is not None:
        tie()
    return fake
