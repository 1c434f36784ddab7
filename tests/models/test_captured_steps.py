"""Steps that are recorded and replayed write the text of plain steps, whatever happens between them."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from weakref import ref

import pytest
import torch
from safetensors.torch import load_file
from tests.models.replaying import Replayer
from tests.rollouts.test_decoding import recorded, writer
from tests.tiny import mapping
from tests.tiny_models import DECODER_ONLY, EXACT
from tests.training.test_run import SILENT
from torch.testing._internal.two_tensor import TwoTensor

from tutelage.config import Decoding
from tutelage.models import captured, decode_cache
from tutelage.models.captured import CapturedSteps, captured_steps
from tutelage.models.language_model import LanguageModel
from tutelage.models.stepping import SlotStepper, stepper
from tutelage.recipe import recipe_of
from tutelage.rollouts.decoding import decode
from tutelage.rollouts.rollout import Rollout
from tutelage.training.run import train

PLAIN = [name for name in DECODER_ONLY if name != "gemma2"]
PROMPTS = [tuple(3 + (7 * row + k) % 40 for k in range(1 + row * 5 % 9)) for row in range(20)] + [(3, 4)] * 4
DECODING = Decoding(max_new_tokens=12, batch_size=7, cuda_graphs=True)
pytestmark = pytest.mark.filterwarnings(
    "error",
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",  # what other tests left open
)


@pytest.fixture(autouse=True)
def replayer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Replayer]:
    """The CPU records as CUDA does, and nothing is left from another test."""
    found = Replayer()
    monkeypatch.setitem(captured.RECORDERS, "cpu", lambda device: found)
    yield found
    captured._KEPT.clear()


def both(
    model: LanguageModel, decoding: Decoding = DECODING, prompts=PROMPTS, seed: int = 2
) -> tuple[Rollout, Rollout]:
    plain = replace(decoding, cuda_graphs=False)
    return decode(model, prompts, decoding, seed=seed), decode(model, prompts, plain, seed=seed)


def same(found: tuple[Rollout, Rollout], tolerance: float = 1e-5) -> None:
    replayed, plain = found
    assert replayed.responses == plain.responses
    torch.testing.assert_close(recorded(replayed), recorded(plain), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("strategy", ["sample", "greedy"])
def test_replayed_steps_write_what_plain_steps_write(name: str, strategy: str, replayer: Replayer) -> None:
    """Rows leave and join, prompts are shared, and both sizes go through several powers of two."""
    found = both(writer(name), replace(DECODING, strategy=strategy, temperature=0.7))
    same(found, 1e-10 if name in EXACT else 1e-5)
    assert len(set(map(len, found[0].responses))) > 2
    assert 2 <= replayer.recorded <= 4  # of 8, 4, 2 and 1 rows
    assert replayer.replayed > 10


def test_buffers_grow_under_sequences_that_are_under_way(monkeypatch: pytest.MonkeyPatch, replayer: Replayer) -> None:
    monkeypatch.setattr(decode_cache, "_SPARE_COLUMNS", 0)
    long = [tuple(3 + (row + k) % 40 for k in range(90)) for row in range(2)]  # shorter ones are read with these first
    found = both(
        writer("llama", (50,)), Decoding(max_new_tokens=80, batch_size=2, cuda_graphs=True), PROMPTS[:3] + long
    )
    same(found)
    assert set(map(len, found[0].responses)) == {80}
    assert replayer.recorded > 3
    assert replayer.replayed > 100


def test_what_is_recorded_stays_when_weights_change_in_place(replayer: Replayer) -> None:
    model = writer("llama")
    first = both(model)
    count = replayer.recorded
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    second = both(model)
    same(first)
    same(second)
    assert first[0].responses != second[0].responses
    assert replayer.recorded == count


@pytest.mark.parametrize("cached", [True, False])
def test_weights_that_autocast_converts_are_converted_at_every_step(cached: bool, replayer: Replayer) -> None:
    """What autocast remembers of a weight is freed when it ends, and old when the weight has changed."""
    model = writer("llama", dtype=torch.float32)
    model.network.requires_grad_(True)  # autocast remembers no others
    texts = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            texts.append(both(model, replace(DECODING, strategy="greedy"), PROMPTS[:7]))
        with torch.no_grad():
            for weight in model.network.parameters():
                weight.add_(0.2 * torch.randn_like(weight))
    for found in texts:
        same(found, 0.1)
    assert texts[0][0].responses != texts[1][0].responses
    assert replayer.replayed > 0


def test_one_type_is_not_taken_for_another(replayer: Replayer) -> None:
    """A cache in bfloat16 would round the float32 that comes after it."""
    model = writer("llama", dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        decode(model, PROMPTS, DECODING, seed=2)
    count = replayer.recorded
    same(both(model))
    assert replayer.recorded > count


def test_weights_that_have_moved_are_recorded_anew(replayer: Replayer) -> None:
    model = writer("llama")
    before = both(model)[0]
    count = replayer.recorded
    for weight in model.network.parameters():
        weight.data = torch.flip(weight.data, dims=[-1]) * 1.5
    after = both(model)
    same(after)
    assert after[0].responses != before.responses
    assert replayer.recorded >= count + 2


def test_another_temperature_is_another_recording(replayer: Replayer) -> None:
    model, counts = writer("gpt2"), []
    for temperature in (1.0, 0.5, 1.0, 0.5):
        same(both(model, replace(DECODING, temperature=temperature)), 1e-10)
        counts.append(replayer.recorded)
    assert 0 < counts[0] < counts[1] == counts[2] == counts[3]


def test_only_the_first_step_of_each_call_is_computed_twice(
    monkeypatch: pytest.MonkeyPatch, replayer: Replayer
) -> None:
    model, looks = writer("llama"), []
    decode(model, PROMPTS, DECODING, seed=2)
    look = SlotStepper.look
    monkeypatch.setattr(SlotStepper, "look", lambda self, *given: looks.append(1) or look(self, *given))
    replayer.replayed = 0
    decode(model, PROMPTS, DECODING, seed=2)
    assert len(looks) == 1
    assert replayer.replayed > 10


def test_sequences_beyond_the_living_ones_do_not_matter() -> None:
    """Whatever was left in their places, and whatever token and column they have."""
    model = writer("llama")
    plain = stepper(model)
    assert isinstance(plain, SlotStepper)
    with torch.no_grad(), captured_steps(model) as steps:
        assert steps is not None
        for reader in (plain, steps.slots):
            reader.read(PROMPTS[:8])
            reader.keep(torch.tensor([0, 7, 2, 3, 6]))
        for row in range(8):
            tokens = torch.arange(5) + 3 + row
            found = steps.step(tokens, lambda states: states)
            torch.testing.assert_close(found, plain.step(tokens), rtol=1e-10, atol=1e-10)
            for layer in steps.slots.cache.layers:
                for buffer in layer.buffers:  # type: ignore[attr-defined]
                    buffer.states[5:] = torch.nan
            steps._inputs[:, 5:] = torch.tensor([[row], [row + 20]])


def test_a_step_that_cannot_be_recorded_is_said_once_and_taken_plainly(replayer: Replayer) -> None:
    model = writer("llama")
    hook = model.network.base_model.norm.register_forward_pre_hook(
        lambda module, inputs: inputs[0].max().item() and None
    )
    with pytest.warns(UserWarning, match=r"goes on without CUDA graphs.*_local_scalar_dense") as said:
        same(both(model))
    assert len(said) == 1
    same(both(model))  # and a warning would be an error
    hook.remove()
    assert replayer.recorded == replayer.replayed == 0


@pytest.mark.parametrize("call", [0, 1])
def test_a_replay_that_computes_something_else_is_not_believed(call: int, replayer: Replayer) -> None:
    """From the first step on, or from the first of a later call."""
    model, record, error = writer("llama"), replayer.record, torch.zeros(())

    def wrong(function):
        replay = record(function)
        return lambda: replay() + error

    replayer.record = wrong  # type: ignore[method-assign]
    for _ in range(call):
        same(both(model))
    error += 0.1
    with pytest.warns(UserWarning, match="it computes something else") as said:
        same(both(model))
    assert len(said) == 1
    same(both(model))  # and a warning would be an error


def test_a_stop_in_the_middle_begins_anew(replayer: Replayer) -> None:
    class StopNow(BaseException):
        pass

    def stop(done: int) -> None:
        raise StopNow

    model = writer("llama")
    with pytest.raises(StopNow):
        decode(model, PROMPTS, DECODING, seed=2, on_progress=stop)
    same(both(model))


def test_two_at_a_time_have_a_batch_each() -> None:
    model = writer("llama")
    decode(model, PROMPTS, DECODING, seed=2)
    kept = captured._KEPT[model][1]
    with captured_steps(model) as one, captured_steps(model) as other:
        assert one is kept
        assert isinstance(other, CapturedSteps)
        assert other is not kept
    with captured_steps(model) as again:
        assert again is kept


@torch.no_grad()
def test_few_sequences_may_step_before_many_do(replayer: Replayer) -> None:
    """The cache has room for all that were read, and the inputs for those that have taken a step."""
    model = writer("llama")
    plain = stepper(model)
    assert isinstance(plain, SlotStepper)
    with captured_steps(model) as steps:
        assert steps is not None
        for count, kept in ((8, 2), (6, 8), (0, 2)):
            for reader in (plain, steps.slots):
                if count:
                    reader.read(PROMPTS[:count])
                reader.keep(torch.arange(kept))
            for _ in range(3):
                tokens = torch.arange(kept) + 3
                found = steps.step(tokens, lambda states: states)
                torch.testing.assert_close(found, plain.step(tokens), rtol=1e-10, atol=1e-10)
    assert replayer.recorded == 3


def test_what_is_kept_goes_with_its_model() -> None:
    model = writer("llama")
    decode(model, PROMPTS[:3], DECODING, seed=2)
    kept = ref(captured._KEPT[model][1])
    assert kept() is not None
    del model
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("name", ["gemma2", "t5"])
def test_models_with_a_cache_of_their_own_are_read_plainly(name: str, replayer: Replayer) -> None:
    same(both(writer(name)))
    assert replayer.recorded == 0


def test_weights_that_are_put_together_from_others_are_read_plainly(replayer: Replayer) -> None:
    """They have no address of their own."""
    model = writer("llama", dtype=torch.float32)
    weight = model.network.model.layers[0].self_attn.q_proj
    weight.weight = torch.nn.Parameter(TwoTensor(weight.weight.data, weight.weight.data), requires_grad=False)
    with captured_steps(model) as steps:
        assert steps is None
    assert replayer.recorded == 0


def test_a_cpu_records_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with captured_steps(writer("llama")) as steps:
        assert steps is None


@pytest.mark.parametrize("settings", [{"strategy": "beam"}, {"backend": "generate"}])
def test_graphs_are_for_our_own_loop(settings: dict) -> None:
    with pytest.raises(ValueError, match="cuda_graphs records our own loop"):
        Decoding(cuda_graphs=True, **settings)


@pytest.mark.parametrize(("method", "precision"), [("distribution-matching", "float32"), ("on-policy-kd", "bfloat16")])
def test_a_run_learns_what_it_learns_with_plain_steps(
    method: str, precision: str, replayer: Replayer, tmp_path: Path
) -> None:
    """Sampling and updates take turns; in bfloat16 autocast remembers weights in between."""
    students, counts = [], []
    for graphs in (False, True):
        decoding = {"max_new_tokens": 5, "cuda_graphs": graphs}
        whole = mapping(tmp_path, method, train={"precision": precision}, output=str(tmp_path / f"run-{graphs}"))
        for writes in {"student_decoding", "teacher_decoding"} & whole["method"].keys():
            whole["method"][writes] = decoding
        students.append(load_file(train(recipe_of(whole), **SILENT).model / "model.safetensors"))
        counts.append((replayer.recorded, replayer.replayed))
    plain, replayed = students
    for name, weight in plain.items():
        torch.testing.assert_close(replayed[name], weight, rtol=1e-3, atol=1e-4)
    assert counts[0] == (0, 0)
    recorded_steps, replayed_steps = counts[1]
    assert recorded_steps < replayed_steps


def test_stored_text_is_the_same_text_with_graphs() -> None:
    assert Decoding(cuda_graphs=True, batch_size=3).law == Decoding().law
    assert {**vars(Decoding()), "batch_size": 0} == {**Decoding().law, "batch_size": 0, "cuda_graphs": False}
