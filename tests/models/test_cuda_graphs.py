"""What a device asks of a step, and what it would be asked: no waiting, and graphs that are captured in order."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from types import SimpleNamespace

import pytest
import torch
from tests.models.replaying import Watch
from tests.models.test_captured_steps import DECODING, PLAIN, PROMPTS, both, same
from tests.models.tiny import DECODERS, fresh, spread
from tests.rollouts.test_decoding import writer

from tutelage.models import captured
from tutelage.models.captured import CudaGraphs
from tutelage.models.language_model import LanguageModel
from tutelage.models.stepping import SlotStepper, stepper
from tutelage.rollouts import writing
from tutelage.rollouts.decoding import decode

pytestmark = pytest.mark.filterwarnings(
    "error",
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",  # what other tests left open
)


@torch.no_grad()
@pytest.mark.parametrize("kind", [kind for kind in DECODERS if kind != "xlm"])
def test_a_plain_step_waits_for_no_device(kind: str) -> None:
    """A question of the host would stop a GPU at every token, and could not be captured."""
    reader = stepper(LanguageModel(spread(fresh(kind)).eval(), stop_ids=(1,)))
    if not isinstance(reader, SlotStepper):
        pytest.skip("it has a cache of its own, from transformers")
    reader.read(PROMPTS[:5])
    tokens = torch.arange(5) + 3
    with Watch():
        reader.step(tokens)


@pytest.mark.parametrize("changes", [{}, {"strategy": "greedy"}, {"top_k": 5, "top_p": 0.9}])
def test_choosing_a_token_waits_for_no_device(changes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    append = writing._Texts.append

    def watched(self, *given):
        with Watch():
            return append(self, *given)

    model, decoding = writer("llama"), replace(DECODING, cuda_graphs=False, **changes)
    plain = decode(model, PROMPTS, decoding, seed=2)
    monkeypatch.setattr(writing._Texts, "append", watched)
    assert decode(model, PROMPTS, decoding, seed=2) == plain


class Device:
    """Stands in for torch.cuda, and writes down in which order it is used."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.mode: int | str = 0
        capturing = signature(torch.cuda.graph)
        waiting, replaying = (lambda other: self.log.append("wait")), (lambda: self.log.append("replay"))
        for name in ("Stream", "CUDAGraph", "current_stream", "graph_pool_handle"):
            thing = SimpleNamespace(wait_stream=waiting, replay=replaying)
            monkeypatch.setattr(torch.cuda, name, lambda *given, thing=thing: thing)
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: self.mode)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: setattr(self, "mode", mode))
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: self.within("stream"))
        monkeypatch.setattr(
            torch.cuda, "graph", lambda *given, **named: capturing.bind(*given, **named) and self.within("capture")
        )

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        self.log.append(name)
        try:
            yield
        finally:
            self.log.append(f"end of {name}")


def test_cuda_graphs_try_a_function_before_they_capture_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the device is refused outside of the capture, and nothing stays as it was meanwhile."""
    device, result = Device(monkeypatch), torch.ones(1)
    graphs = CudaGraphs(torch.device("cuda"))

    def function() -> torch.Tensor:
        device.log.append(f"run, mode {device.mode}")
        return result

    replay = graphs.record(function)
    assert device.log == ["wait", "stream", "run, mode error", "capture", "run, mode 0", "end of capture",
                          "end of stream", "wait"]  # fmt: skip
    device.log.clear()
    assert replay() is result
    assert device.log == ["replay"]

    def asks() -> torch.Tensor:
        raise RuntimeError("called a synchronizing CUDA operation")

    device.log.clear()
    with pytest.raises(RuntimeError, match="synchronizing"):
        graphs.record(asks)
    assert device.mode == 0
    assert device.log == ["wait", "stream", "end of stream"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_graphs_write_what_plain_steps_write(name: str, dtype: torch.dtype) -> None:
    """A warning would be an error, so nothing was refused and no check failed."""
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA here")
    model = writer(name, dtype=dtype)
    model.network.to("cuda")
    for _ in range(2):
        found = both(model, replace(DECODING, max_new_tokens=40))
        if dtype == torch.float32:  # others round so coarsely that texts may part
            same(found, 1e-3)
        with torch.no_grad():
            for weight in model.network.parameters():
                weight.mul_(1.1)
    assert captured._KEPT[model][1] is not None
