"""Waiting for a device, and its memory, the same way for CUDA and the CPU."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import memory
import torch
from timing import in_turn


@dataclass(frozen=True)
class Device:
    """Where things run."""

    name: str
    """`cuda` or `cpu`."""

    @property
    def is_cuda(self) -> bool:
        return self.name == "cuda"

    def describe(self) -> str:
        """The device, the driver's and torch's versions."""
        if not self.is_cuda:
            return "CPU"
        facts = torch.cuda.get_device_properties(0)
        return f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"

    def in_turn(self, candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        """Time candidates in turn, each until the device has finished."""
        return in_turn({name: self._finished(run) for name, run in candidates.items()}, rounds)

    def seconds(self, run: Callable[[], object], rounds: int) -> float:
        """The median time of one thing."""
        return statistics.median(self.in_turn({"": run}, rounds)[""])

    def extra_memory(self, run: Callable[[], object]) -> int:
        """Bytes at the peak of `run` beyond those that were there before."""
        if not self.is_cuda:
            before = memory.forget_peak()
            run()
            return memory.peak() - before
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def _finished(self, run: Callable[[], object]) -> Callable[[], None]:
        def whole() -> None:
            run()
            if self.is_cuda:
                torch.cuda.synchronize()

        return whole
