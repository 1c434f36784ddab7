"""The adaptive mixture: its schedule against the definition, its memory, and that it goes on where it stopped."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from tests.tiny import mapping

from tutelage.data import Example
from tutelage.errors import InputError
from tutelage.methods import DistiLLM
from tutelage.randomness import generator
from tutelage.recipe import recipe_of
from tutelage.rollouts.replay import AdaptiveMixture
from tutelage.rollouts.rollout import Rollout

SIZE, STEPS = 4, 400


@dataclass(frozen=True)
class Scribe:
    """Writes the step and its own name."""

    name: str

    def sample(self, rows: Sequence[Example], step: int) -> Rollout:
        items = [e.item for e in rows]
        return Rollout.of([e.prompt for e in rows], [(step, i) for i in items], writer=self.name, items=items)


def rows(step: int) -> list[Example]:
    items = range(step * SIZE, (step + 1) * SIZE)
    return [Example(item, f"rows.jsonl:{item}", (1, item), (), (), "", "") for item in items]


def mixture(**options) -> AdaptiveMixture:
    return AdaptiveMixture(Scribe("student"), Scribe("data"), **{"steps": STEPS, "seed": 3, "capacity": 40, **options})


def source(sampler: AdaptiveMixture, step: int) -> str:
    """Where a step's batch comes from: the scribes write the step into their text."""
    rollout = sampler.sample(rows(step), step)
    (writer,) = set(rollout.writers)
    old = any(response[0] != step for response in rollout.responses)
    assert len(rollout) == SIZE
    return "buffer" if writer == "student" and old else writer


def by_the_book(fraction: float, steps: int = STEPS, capacity: int = 40, seed: int = 3) -> list[str]:
    """The three cases of the algorithm, one after the other."""
    found, stored = [], 0
    for step in range(steps):
        r, t = generator(seed, "mixture", step).random(), step + 1
        if r < fraction * (1 - t / steps) or (r < fraction and stored < capacity):
            found.append("student")
            stored = min(capacity, stored + SIZE)
        elif r < fraction:
            found.append("buffer")
        else:
            found.append("data")
    return found


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.7, 1.0])
def test_the_schedule_is_the_algorithms(fraction: float) -> None:
    sampler = mixture(fraction=fraction)
    found = [source(sampler, step) for step in range(STEPS)]
    wanted = by_the_book(fraction)
    assert found == wanted
    assert found.count("data") == pytest.approx((1 - fraction) * STEPS, abs=4 * (STEPS * 0.25) ** 0.5)
    if 0 < fraction < 1:
        assert {"data", "student", "buffer"} == set(found)
        late, early = found[STEPS // 2 :], found[: STEPS // 2]
        assert late.count("buffer") > early.count("buffer")


@pytest.mark.parametrize("capacity", [400, 10_000])
def test_a_buffer_that_is_not_full_is_not_drawn_from(capacity: int) -> None:
    """However late it is: with a large buffer the student goes on writing to the end."""
    sampler = mixture(fraction=0.5, capacity=capacity)
    found = [source(sampler, step) for step in range(STEPS)]
    assert found == by_the_book(0.5, capacity=capacity)
    assert ("buffer" in found) == (capacity == 400)
    assert found[-50:].count("student") > 10 if capacity == 10_000 else "buffer" not in found[:100]


def test_the_buffer_fills_first_and_forgets_the_oldest() -> None:
    sampler = mixture(fraction=1.0, steps=10**9, capacity=10)
    for step in range(5):
        sampler.sample(rows(step), step)
        assert sampler.stored == min(10, SIZE * (step + 1))
    kept = sampler.state()["buffer"]["responses"]
    assert [response[0] for response in kept] == [2, 2, 3, 3, 3, 3, 4, 4, 4, 4]


def test_replayed_text_is_old_distinct_and_keeps_its_prompt_and_writer() -> None:
    sampler = mixture(fraction=1.0, steps=100, capacity=20)
    for step in range(95):
        sampler.sample(rows(step), step)
    replayed = [sampler.sample(rows(step), step) for step in range(95, 100)]
    for step, rollout in enumerate(replayed, start=95):
        old = [response[0] for response in rollout.responses]
        if step in old:
            continue  # the student wrote
        assert set(rollout.writers) == {"student"}
        assert len(set(rollout.items)) == SIZE
        assert [prompt[1] for prompt in rollout.prompts] == list(rollout.items)
    assert any(response[0] < 95 for rollout in replayed for response in rollout.responses)


def test_a_buffer_smaller_than_the_batch_still_gives_whole_batches() -> None:
    sampler = mixture(fraction=1.0, steps=2, capacity=1)
    assert len(sampler.sample(rows(0), 0)) == SIZE
    assert len(sampler.sample(rows(1), 1)) == SIZE


def test_the_share_rises_with_the_validation_loss_and_stops_at_one() -> None:
    sampler = mixture(tolerance=0.1)
    seen = []
    for loss in (2.0, 1.0, 1.9, 2.1, 2.15, 2.25, 9.0):
        sampler.observe({"loss": loss})
        seen.append(round(sampler.fraction, 6))
    # 2.0 is the first; falling losses do not count; 2.1 ≥ 2.0 + 0.1; 2.15 < 2.2; 2.25 ≥ 2.2; 9.0
    assert seen == [0.0, 0.0, 0.0, 0.1, 0.1, 0.2, 0.3]
    for loss in range(10, 30):
        sampler.observe({"loss": loss})
    assert sampler.fraction == 1.0


def test_compared_with_the_last_evaluation_it_rises_sooner() -> None:
    sampler = mixture(tolerance=0.1, compare_with="last")
    seen = []
    for loss in (2.0, 1.0, 1.05, 1.2, 1.0):
        sampler.observe({"loss": loss})
        seen.append(round(sampler.fraction, 6))
    assert seen == [0.0, 0.0, 0.0, 0.1, 0.1]


def test_it_goes_on_from_its_state_as_json() -> None:
    whole, first = mixture(fraction=0.5), mixture(fraction=0.5)
    for sampler in (whole, first):
        for step in range(60):
            sampler.sample(rows(step), step)
        sampler.observe({"loss": 1.0})
        sampler.observe({"loss": 2.0})
    second = mixture(fraction=0.5)
    second.restore(json.loads(json.dumps(first.state())))
    for sampler in (whole, second):
        sampler.observe({"loss": 3.0})
    assert second.state() == whole.state()
    for step in range(60, 120):
        assert second.sample(rows(step), step) == whole.sample(rows(step), step)


@pytest.mark.parametrize(
    "change",
    [
        {"evaluation": {"every": None}},
        {"evaluation": {"metrics": ["agreement"]}},
        {"data": {"validation": None}, "evaluation": {"every": None}},
    ],
    ids=str,
)
def test_a_recipe_without_a_validation_loss_is_refused(tmp_path, change) -> None:
    assert recipe_of(mapping(tmp_path, "distillm")).method == DistiLLM(**mapping(tmp_path, "distillm")["method"])
    with pytest.raises(InputError, match=r"goes by the validation loss: add data\.validation, evaluation\.every"):
        recipe_of(mapping(tmp_path, "distillm", **change))
