"""Waiting prompts take the place of finished ones: nothing of it shows in the text."""

import pytest
import torch
from tests.rollouts.test_decoding import MANY_STOPS, recorded, writer
from tests.tiny_models import ARCHITECTURES, EXACT

from tutelage.config import Decoding
from tutelage.models.language_model import LanguageModel
from tutelage.models.stepping import SlotStepper
from tutelage.rollouts.decoding import OneModel, decode
from tutelage.rollouts.mixed import decode_mixed
from tutelage.rollouts.rollout import Rollout
from tutelage.rollouts.sampling import logp_of
from tutelage.rollouts.writing import write

PROMPTS = [tuple(3 + (7 * row + k) % 40 for k in range(1 + row * 5 % 9)) for row in range(20)] + [(3, 4)] * 4


def limited(size: int, **changes) -> Decoding:
    return Decoding(max_new_tokens=12, batch_size=size, **changes)


class WithoutRefill:
    """A policy that no prompt may join."""

    joins = False

    def __init__(self, model: LanguageModel) -> None:
        self._policy = OneModel(model)
        self.read, self.step, self.keep = self._read, self._policy.step, self._policy.keep

    def _read(self, prompts):
        self._policy.keep(torch.zeros(0, dtype=torch.long))
        return self._policy.read(prompts)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("strategy", ["sample", "greedy"])
def test_text_and_log_probabilities_depend_on_no_batch_size(name: str, strategy: str) -> None:
    model = writer(name)
    one = decode(model, PROMPTS, limited(1, strategy=strategy), seed=2)
    tolerance = 1e-10 if name in EXACT else 1e-5
    expected = logp_of(model.head.logits(model.hidden(one)), model.targets(one)).detach().double()
    for size in (1, 3, 7, 64):
        found = decode(model, PROMPTS, limited(size, strategy=strategy), seed=2)
        assert found.responses == one.responses
        torch.testing.assert_close(recorded(found), expected, rtol=tolerance, atol=tolerance)
    assert strategy == "greedy" or len(set(map(len, one.responses))) > 2


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_refilling_changes_nothing(name: str) -> None:
    model = writer(name)
    places = [(row,) for row in range(len(PROMPTS))]
    options = {"stop_ids": MANY_STOPS, "seed": 2, "device": model.device}
    with torch.no_grad():
        without = write(WithoutRefill(model), PROMPTS, places, limited(5), **options)
        refilled = write(OneModel(model), PROMPTS, places, limited(5), **options)
    assert without[0] == refilled[0]
    for row, other in zip(without[1], refilled[1], strict=True):
        assert row == pytest.approx(other, abs=1e-6)


def test_waiting_prompts_are_read_while_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes, reads = writer("llama"), [], []
    read, step = SlotStepper.read, SlotStepper.step
    monkeypatch.setattr(SlotStepper, "read", lambda self, prompts: reads.append(len(prompts)) or read(self, prompts))
    monkeypatch.setattr(SlotStepper, "step", lambda self, tokens: sizes.append(len(tokens)) or step(self, tokens))
    rollout = decode(model, PROMPTS, limited(8), seed=2)
    assert sum(reads) == len(PROMPTS)
    assert len(reads) > 3
    assert max(sizes) == 8
    longest = max(map(len, rollout.responses))
    tokens = sum(map(len, rollout.responses))
    assert sum(sizes) == tokens - len(PROMPTS)  # no step is spent on a sequence that is over
    assert len(sizes) < 3 * longest * 0.8  # three batches one after the other would take up to three times the longest


def test_positions_never_run_past_the_limit() -> None:
    """A model that has no position for one token more than the longest sequence."""
    model = writer("gpt2")
    longest = max(map(len, PROMPTS))
    room = model.network.config.n_positions - longest
    decoding = Decoding(max_new_tokens=room, batch_size=6)
    rollout = decode(LanguageModel(model.network, stop_ids=(1,)), PROMPTS * 2, decoding, seed=0)
    assert max(map(len, rollout.responses)) == room


def test_a_long_response_outgrows_the_first_buffers() -> None:
    model = writer("llama", (50,))  # an id that is never drawn
    rollout = decode(model, PROMPTS[:4], Decoding(max_new_tokens=150, batch_size=2), seed=1)
    assert set(map(len, rollout.responses)) == {150}
    with torch.no_grad():
        expected = logp_of(model.head.logits(model.hidden(rollout)), model.targets(rollout))
    torch.testing.assert_close(recorded(rollout), expected.double(), rtol=1e-5, atol=1e-5)


def test_mixed_text_depends_on_no_batch_size() -> None:
    student, teacher = writer("gpt2", seed=1), writer("gpt2", seed=2, width=24)
    texts = [
        decode_mixed(student, teacher, PROMPTS, limited(size), teacher_share=0.4, seed=3).responses
        for size in (1, 5, 64)
    ]
    assert texts[0] == texts[1] == texts[2]
    other = decode_mixed(student, writer("t5", seed=2), PROMPTS, limited(5), teacher_share=1e-12, seed=3)
    assert other.responses == decode(student, PROMPTS, limited(5), seed=3).responses  # one of them cannot refill


def test_a_stop_in_the_middle_leaves_the_models_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    class StopNow(BaseException):
        pass

    def stop(self, tokens):
        raise StopNow

    model = writer("llama")
    calm = decode(model, PROMPTS, limited(5), seed=0)
    model.network.train()
    with monkeypatch.context() as patch:
        patch.setattr(SlotStepper, "step", stop)
        with pytest.raises(StopNow):
            decode(model, PROMPTS, limited(5), seed=0)
    assert model.network.training
    assert torch.is_grad_enabled()
    assert decode(model, PROMPTS, limited(5), seed=0) == calm


def test_no_prompts_are_no_text() -> None:
    assert decode(writer("llama"), [], limited(5), seed=0) == Rollout.of([], [], logps=[])
