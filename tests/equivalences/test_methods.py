"""Methods that are the same method under two names give the same rollouts and the same gradients."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.tiny_models import STOP, language_model, pair, ragged

from tutelage.config import Decoding
from tutelage.data import Example
from tutelage.methods import GKD, SFT, ImitKD, MiniLLMSingleStep, OnPolicyKD, SeqKD, SupervisedKD
from tutelage.methods.objective import Objective
from tutelage.models.teachers import LocalTeacher
from tutelage.rollouts.rollout import Rollout
from tutelage.rollouts.samplers import DataSampler, Mixture, Sources, StudentSampler, TeacherSampler
from tutelage.rollouts.store import TextStore

STEPS = 12
DECODING = Decoding(max_new_tokens=6)


def example(item: int, prompt: Sequence[int], response: Sequence[int], mask: Sequence[bool] | None = None) -> Example:
    mask = tuple(mask or (True,) * len(response))
    return Example(item, f"rows.jsonl:{item + 1}", tuple(prompt), tuple(response), mask, "", "")


def examples() -> list[Example]:
    rows = ragged()
    return [
        example(item, prompt, response, mask)
        for item, (prompt, response, mask) in enumerate(zip(rows.prompts, rows.responses, rows.masks, strict=True))
    ]


@dataclass
class World:
    """A student, a teacher, and the samplers around them."""

    student: object
    teacher: LocalTeacher
    folder: Path
    seed: int = 0

    def sources(self) -> Sources:
        return Sources(
            data=DataSampler,
            student=lambda decoding: StudentSampler(self.student, decoding, self.seed),
            teacher=lambda decoding: TeacherSampler(
                self.teacher.model, decoding, self.seed, TextStore(self.folder / "text.jsonl", {})
            ),
            seed=self.seed,
            steps=STEPS,
        )

    def step(self, method: Objective, step: int) -> tuple[Rollout, torch.Tensor, dict[str, torch.Tensor]]:
        rollout = method.sampler(self.sources()).sample(examples(), step)
        self.student.model.zero_grad(set_to_none=True)
        loss = method.terms(rollout, self.student, self.teacher).losses["student"] / method.units(rollout)["student"]
        loss.backward()
        return rollout, loss.detach(), {n: p.grad for n, p in self.student.model.named_parameters()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    student, _ = pair("gpt2")
    return World(student, LocalTeacher(language_model("gpt2", 2, width=24)), tmp_path)


def assert_same_method(world: World, first: Objective, second: Objective, steps: int = 6) -> list[Rollout]:
    """Exactly: not one bit of loss or gradient differs."""
    rollouts = []
    for step in range(steps):
        rollout, loss, gradients = world.step(first, step)
        other, other_loss, other_gradients = world.step(second, step)
        assert rollout == other
        assert torch.equal(loss, other_loss)
        assert all(torch.equal(gradients[name], other_gradients[name]) for name in gradients)
        rollouts.append(rollout)
    return rollouts


def test_gkd_without_student_text_is_supervised_kd(world: World) -> None:
    gkd = GKD(student_fraction=0.0, divergence="forward_kl", student_decoding=DECODING)
    rollouts = assert_same_method(world, gkd, SupervisedKD())
    assert {writer for rollout in rollouts for writer in rollout.writers} == {"data"}
    assert rollouts[0].responses == ragged().responses
    assert rollouts[0].masks == ragged().masks


def test_gkd_with_student_text_only_is_on_policy_kd(world: World) -> None:
    gkd = GKD(student_fraction=1.0, divergence="forward_kl", student_decoding=DECODING)
    rollouts = assert_same_method(world, gkd, OnPolicyKD(student_decoding=DECODING))
    assert {writer for rollout in rollouts for writer in rollout.writers} == {"student"}
    assert len({rollout.responses for rollout in rollouts}) == len(rollouts)  # new text at every step


def test_minillm_single_step_is_gkd_with_student_text_only_and_reverse_kl(world: World) -> None:
    gkd = GKD(student_fraction=1.0, divergence="reverse_kl", student_decoding=DECODING)
    assert_same_method(world, MiniLLMSingleStep(student_decoding=DECODING), gkd)


def test_gkds_imitkd_is_gkd_with_half_student_text_and_forward_kl(world: World) -> None:
    imitkd = ImitKD(schedule="constant", rate=0.5, unit="step", student_decoding=DECODING)
    gkd = GKD(student_fraction=0.5, divergence="forward_kl", student_decoding=DECODING)
    rollouts = assert_same_method(world, imitkd, gkd, STEPS)
    assert {rollout.writers[0] for rollout in rollouts} == {"data", "student"}


def test_seqkd_without_cross_entropy_is_supervised_kd_on_teacher_text(world: World) -> None:
    seqkd = SeqKD(cross_entropy=0.0, teacher_decoding=DECODING)
    rollout, loss, gradients = world.step(seqkd, 0)
    assert set(rollout.writers) == {"teacher"}
    as_data = Rollout.of(rollout.prompts, rollout.responses)
    world.student.model.zero_grad(set_to_none=True)
    supervised = SupervisedKD().terms(as_data, world.student, world.teacher).losses["student"] / as_data.positions
    supervised.backward()
    assert torch.equal(loss, supervised.detach())
    for name, parameter in world.student.model.named_parameters():
        assert torch.equal(gradients[name], parameter.grad)


def test_seqkd_is_sft_on_teacher_text(world: World) -> None:
    rollout, loss, gradients = world.step(SeqKD(teacher_decoding=DECODING), 0)
    world.student.model.zero_grad(set_to_none=True)
    fine_tuning = SFT().terms(rollout, world.student, None).losses["student"] / rollout.positions
    fine_tuning.backward()
    assert torch.equal(loss, fine_tuning.detach())
    for name, parameter in world.student.model.named_parameters():
        assert torch.equal(gradients[name], parameter.grad)


def test_supervised_kd_with_full_cross_entropy_is_sft(world: World) -> None:
    assert_same_method(world, SupervisedKD(cross_entropy=1.0), SFT(), 1)


def test_gkd_on_teacher_text_is_seqkd_without_cross_entropy(world: World) -> None:
    gkd = GKD(student_fraction=0.0, divergence="forward_kl", offline="teacher", teacher_decoding=DECODING)
    assert_same_method(world, gkd, SeqKD(cross_entropy=0.0, teacher_decoding=DECODING), 2)


def test_jsd_one_half_is_symmetric_in_student_and_teacher(world: World) -> None:
    method, rows = SupervisedKD(divergence="jsd(0.5)"), ragged()
    there = method.terms(rows, world.student, world.teacher).losses["student"]
    swapped = LocalTeacher(language_model("gpt2", 1))
    back = method.terms(rows, world.teacher.model, swapped).losses["student"]
    torch.testing.assert_close(there, back, rtol=1e-12, atol=0)
    other = SupervisedKD(divergence="jsd(0.1)")
    assert not torch.isclose(
        other.terms(rows, world.student, world.teacher).losses["student"],
        other.terms(rows, world.teacher.model, swapped).losses["student"],
        rtol=1e-3,
    )


def test_reverse_kl_is_forward_kl_with_the_models_swapped(world: World) -> None:
    rows, swapped = ragged(), LocalTeacher(language_model("gpt2", 1))
    there = SupervisedKD(divergence="reverse_kl").terms(rows, world.student, world.teacher).losses["student"]
    back = SupervisedKD(divergence="forward_kl").terms(rows, world.teacher.model, swapped).losses["student"]
    torch.testing.assert_close(there, back, rtol=1e-12, atol=0)


@dataclass(frozen=True)
class Scribe:
    """A sampler that writes nothing but its name."""

    name: str

    def sample(self, rows: Sequence[Example], step: int) -> Rollout:
        return Rollout.of(
            [e.prompt for e in rows], [(STOP,)] * len(rows), writer=self.name, items=[e.item for e in rows]
        )


def mixture(fraction: float, unit: str, seed: int = 0) -> Mixture:
    return Mixture(Scribe("student"), Scribe("data"), lambda step: fraction, unit, seed)


def share(writers: Sequence[str]) -> float:
    return sum(writer == "student" for writer in writers) / len(writers)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_mixture_by_step_has_one_writer_a_batch_with_the_right_frequency(fraction: float) -> None:
    steps, rows = 2000, examples()
    batches = [mixture(fraction, "step").sample(rows, step).writers for step in range(steps)]
    assert all(len(set(writers)) == 1 for writers in batches)
    deviation = math.sqrt(fraction * (1 - fraction) / steps)
    assert share([writers[0] for writers in batches]) == pytest.approx(fraction, abs=4 * deviation)
    # Independent steps: the writer changes as often as it should, 2 f (1 − f).
    changes = sum(a != b for a, b in itertools.pairwise(batches)) / (steps - 1)
    assert changes == pytest.approx(2 * fraction * (1 - fraction), abs=0.05)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_mixture_by_example_draws_every_row_anew(fraction: float) -> None:
    steps, rows = 400, examples()
    batches = [mixture(fraction, "example").sample(rows, step) for step in range(steps)]
    writers = [writer for batch in batches for writer in batch.writers]
    deviation = math.sqrt(fraction * (1 - fraction) / len(writers))
    assert share(writers) == pytest.approx(fraction, abs=4 * deviation)
    assert any(len(set(batch.writers)) == 2 for batch in batches)
    for item in range(len(rows)):  # no row is always the student's
        assert 0 < share([batch.writers[item] for batch in batches]) < 1
    assert all(batch.items == (0, 1, 2, 3, 4) for batch in batches)
    assert all(batch.prompts == tuple(e.prompt for e in rows) for batch in batches)


@pytest.mark.parametrize("unit", ["step", "example"])
@pytest.mark.parametrize(("fraction", "writer"), [(0.0, "data"), (1.0, "student")])
def test_mixture_at_its_ends_is_exact(unit: str, fraction: float, writer: str) -> None:
    for step in range(300):
        assert set(mixture(fraction, unit).sample(examples(), step).writers) == {writer}


def test_mixture_by_example_depends_on_the_row_not_on_the_batch() -> None:
    rows, sampler = examples(), mixture(0.5, "example")
    for step in range(20):
        whole = sampler.sample(rows, step).writers
        parts = sampler.sample(rows[:2], step).writers + sampler.sample(rows[2:], step).writers
        assert whole == parts
        assert whole[::-1] == sampler.sample(rows[::-1], step).writers


def test_seeds_draw_other_mixtures() -> None:
    draws = [
        tuple(mixture(0.5, "step", seed).sample(examples(), step).writers[0] for step in range(40)) for seed in (0, 1)
    ]
    assert draws[0] != draws[1]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # r^(−i/I) with r = 200: 200^0, 200^-¼, 200^-½, 200^-1
        (ImitKD(schedule="exponential", rate=200), {0: 1.0, 25: 0.265915, 50: 0.0707107, 100: 0.005}),
        (ImitKD(schedule="exponential", rate=10), {0: 1.0, 50: 0.3162278, 100: 0.1}),
        (ImitKD(schedule="linear"), {0: 1.0, 25: 0.75, 99: 0.01}),
        # k / (k + exp(i / k)) with k = 20: 20 / 21, 20 / (20 + e), 20 / (20 + e⁵)
        (ImitKD(schedule="reverse_sigmoid", rate=20), {0: 0.952381, 20: 0.8803495, 100: 0.1187556}),
        (ImitKD(schedule="constant", rate=0.3), {0: 0.3, 50: 0.3, 99: 0.3}),
    ],
    ids=lambda value: f"{value.schedule}({value.rate:g})" if isinstance(value, ImitKD) else "",
)
def test_imitkd_schedules_by_hand(method: ImitKD, expected: dict[int, float]) -> None:
    found = {step: method.offline_probability(step, 100) for step in expected}
    assert found == pytest.approx(expected, rel=1e-5)


def test_imitkd_starts_from_the_data_and_ends_with_the_student(world: World) -> None:
    method = ImitKD(rate=1e9, student_decoding=Decoding(strategy="greedy", max_new_tokens=3))
    sampler = method.sampler(world.sources())
    assert set(sampler.sample(examples(), 0).writers) == {"data"}
    assert set(sampler.sample(examples(), STEPS - 1).writers) == {"student"}


def test_gradients_do_not_go_through_the_sampling(world: World) -> None:
    """The same text gives the same gradient, whoever sampled it."""
    method = OnPolicyKD(divergence="reverse_kl", student_decoding=DECODING)
    rollout, loss, gradients = world.step(method, 0)
    by_hand = Rollout.of(rollout.prompts, rollout.responses, writer="student")
    world.student.model.zero_grad(set_to_none=True)
    again = method.terms(by_hand, world.student, world.teacher).losses["student"] / by_hand.positions
    again.backward()
    assert torch.equal(loss, again.detach())
    for name, parameter in world.student.model.named_parameters():
        assert torch.equal(gradients[name], parameter.grad)
