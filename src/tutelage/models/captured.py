"""Steps of decoding that are recorded once and replayed: on CUDA, one launch instead of those of every kernel.

What a step does to the device depends on its shapes alone, once everything it reads and writes stays where it is: the
weights, the cache's buffers, and two tensors of ours for the tokens and their columns. So the number of sequences is
rounded up to a power of two and the number of columns too, and each pair of both is recorded when it first comes.
Sequences beyond the living ones are read along and never looked at.
"""

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tutelage.models.language_model import LanguageModel
from tutelage.models.sharding import is_sharded
from tutelage.models.stepping import SlotStepper, stepper

_FEWEST_COLUMNS = 64
_TOLERANCE = 1e-3, 6e-2
"""What captured logits may differ by from those of the plain step, as a share of the largest, in float32 and below:
another number of rows is another order of adding."""

Step = Callable[[], Tensor]


class Recorder(Protocol):
    """Something that writes down what a function does to the device."""

    def record(self, function: Step) -> Step:
        """Return what does the same again, on the same memory; it returns the same tensor each time.

        Raises:
            RuntimeError: the function cannot be recorded, as when it asks the device for a number.
        """
        ...


class CudaGraphs:
    """Records CUDA graphs, whose intermediate results share one pool of memory.

    Args:
        device: where the functions run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, function: Step) -> Step:
        """Run it once, so that libraries are set up and what waits for the device shows, and capture its second run."""
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        self._stream.wait_stream(before)
        with torch.cuda.stream(self._stream):  # torch.cuda.graph does not leave its stream when capturing fails
            with _refusing_to_wait():
                function()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = function()
        before.wait_stream(self._stream)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


@contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """Raise where the host waits for the device: torch's allocator does not get over a capture that breaks off."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class CapturedSteps:
    """A `SlotStepper` and what was recorded of its steps.

    The first step of each shape, and the first after `begin`, is computed by the plain step as well. Where the two
    differ, or recording fails, it says so in a warning and all steps are plain from then on.

    Args:
        slots: reads prompts, and knows which sequences there are; its batch is empty.
        recorder: how steps are recorded.
    """

    def __init__(self, slots: SlotStepper, recorder: Recorder) -> None:
        self.slots = slots
        self._recorder: Recorder | None = recorder
        self._recorded: dict[Hashable, Step] = {}
        self._growths, self._is_checked = 0, False
        self._inputs = slots.lengths.new_zeros(2, 0)  # tokens, and their columns

    @property
    def has_given_up(self) -> bool:
        """Whether all steps are plain."""
        return self._recorder is None

    def begin(self) -> None:
        """Start with an empty batch; its first step is checked."""
        self.slots.keep(self.slots.lengths[:0])
        self._is_checked = False

    def step(
        self,
        tokens: Int[Tensor, " sequences"],
        finish: Callable[[Tensor], Tensor],
        settings: Hashable = None,
    ) -> Float[Tensor, "sequences vocabulary"]:
        """Read one token of each sequence; return what `finish` makes of the hidden states.

        Args:
            tokens: one a sequence.
            finish: hidden states → logits; recorded with the step.
            settings: what `finish` depends on; with other settings it is recorded anew.
        """
        if self._recorder is None:
            return finish(self.slots.step(tokens))
        count, slots = len(tokens), self.slots
        rows, width = _rounded(count), max(_FEWEST_COLUMNS, _rounded(slots.width))
        self._make_room(rows, width)
        self._inputs[0, :count], self._inputs[1, :count] = tokens, slots.lengths
        key = (rows, width, settings)
        if key in self._recorded and self._is_checked:
            logits = self._recorded[key]()[:count]
        else:
            logits = self._checked(key, tokens, finish)
        slots.advance()
        return logits

    def _make_room(self, rows: int, width: int) -> None:
        """Forget what was recorded where anything has to move for it."""
        cache = self.slots.cache
        cache.reserve(rows, width)
        if self._inputs.shape[1] < rows:
            self._inputs = self._inputs.new_zeros(2, rows)
            self._recorded.clear()
        if cache.place.growths != self._growths:
            self._growths = cache.place.growths
            self._recorded.clear()

    def _checked(self, key: tuple[int, int, Hashable], tokens: Tensor, finish: Callable[[Tensor], Tensor]) -> Tensor:
        """Compute the step both ways, recording it where it is new."""
        slots = self.slots
        expected = finish(slots.look(tokens, slots.lengths, slots.width))
        try:
            if key not in self._recorded:
                self._recorded[key] = self._record(key, finish)
            found = self._recorded[key]()[: len(tokens)]
            trouble = None if _agree(found, expected, slots.cache.dtype) else "it computes something else"
        except RuntimeError as error:  # torch's, for all that a device may refuse
            found, trouble = expected, str(error).partition("\n")[0]
        if trouble is None:
            self._is_checked = True
            return found
        self._recorder = None
        self._recorded.clear()
        warnings.warn(f"decoding goes on without CUDA graphs, as with cuda_graphs: false ({trouble})", stacklevel=2)
        return expected

    def _record(self, key: tuple[int, int, Hashable], finish: Callable[[Tensor], Tensor]) -> Step:
        """Record the step without autocast's memory of weights that it has converted: they would be replayed as is."""
        assert self._recorder is not None
        slots, (tokens, columns), width = self.slots, self._inputs[:, : key[0]], key[1]
        kind = tokens.device.type
        with torch.autocast(kind, _autocast(kind), enabled=_autocast(kind) is not None, cache_enabled=False):
            return self._recorder.record(lambda: finish(slots.look(tokens, columns, width)))


RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaGraphs}
"""What records the work of a kind of device."""
_KEPT: WeakKeyDictionary[LanguageModel, tuple[Hashable, CapturedSteps | None]] = WeakKeyDictionary()
"""What was recorded of a model, and what that takes for granted; `None` where capturing does not work."""


@contextmanager
def captured_steps(model: LanguageModel) -> Iterator[CapturedSteps | None]:
    """Lend the captured steps of a model, with an empty batch; `None` where its steps are not captured.

    They are kept, with the memory of the cache, for as long as the model lives, its weights stay where they are and
    autocast is what it was. Captured are decoder-only models with plain attention, on CUDA, whose weights are plain
    tensors: neither cut over processes nor put together from others, as some quantised ones are.
    """
    put_together = any(map(is_traceable_wrapper_subclass, model.network.parameters()))
    if model.device.type not in RECORDERS or put_together or is_sharded(model.network):
        yield None
        return
    facts = _facts(model)
    known, steps = _KEPT.pop(model, (None, None))  # whoever decodes meanwhile has others
    if known != facts:
        slots, recorder = stepper(model), RECORDERS[model.device.type](model.device)
        steps = CapturedSteps(slots, recorder) if isinstance(slots, SlotStepper) else None
    if steps is not None:
        steps.begin()
    yield steps
    # After an exception the next one begins anew.
    _KEPT[model] = facts, None if steps is None or steps.has_given_up else steps


def _facts(model: LanguageModel) -> Hashable:
    """What a recorded step takes for granted: where the weights are, and in which type it computes."""
    tensors = chain(model.network.parameters(), model.network.buffers())
    return _autocast(model.device.type), tuple((tensor.data_ptr(), tensor.dtype, tensor.shape) for tensor in tensors)


def _rounded(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()


def _agree(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether logits are equal up to rounding; where the plain step's are not finite, nothing is to be said."""
    types = dtype, _autocast(found.device.type) or dtype
    tolerance = _TOLERANCE[min(torch.finfo(one).bits for one in types) < 32]
    difference, largest = (found - expected).abs().max(), expected.abs().max()
    return bool(difference <= tolerance * largest) or not bool(expected.isfinite().all())


def _autocast(kind: str) -> torch.dtype | None:
    """The type in which autocast has products computed, where it is on."""
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
