"""Alarms: each speaks up for what it is about, once, and only then."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny import mapping, write_model
from tests.tiny_models import language_model, own_logits

from tutelage.errors import DivergedError
from tutelage.models.teachers import LocalTeacher
from tutelage.recipe import recipe_of
from tutelage.rollouts.rollout import Rollout
from tutelage.rollouts.samplers import StudentSampler
from tutelage.training import health, measures
from tutelage.training.health import LIMITS, SPIKE_LEAST, SPIKE_WINDOW, WINDOW, Watch
from tutelage.training.run import train

SILENT = {"report": lambda text: None}
STOP = 1
GOOD = (2, 3, 4, 5, 6, 7, 8, STOP)
METRICS = {"loss": 1.0, "gradient_norm": 1.0, "student_text": 1.0, "cross_entropy": 1.0, "teacher_cross_entropy": 1.5}


def watch(alarms: str = "warn") -> Watch:
    recipe = SimpleNamespace(train=SimpleNamespace(alarms=alarms), evaluation=SimpleNamespace(every=None))
    return Watch(
        SimpleNamespace(recipe=recipe, student=SimpleNamespace(stop_ids=(STOP,)), teacher=None, vocabulary=None)
    )


def written(*responses: tuple[int, ...], prompt: tuple[int, ...] = (9,), writer: Any = "student") -> Rollout:
    return Rollout.of([prompt] * len(responses), responses, writer=writer)


def looking(eye: Watch, rollout: Rollout, steps: int, **metrics: float) -> list[tuple[list[str], list[str]]]:
    """What is logged as alarms and what is said, step by step."""
    found = []
    for step in range(steps):
        fields = eye.look(rollout, {**METRICS, **metrics}, step + 1)
        found.append((fields.get("alarms", []), [text.split(":")[0] for text in eye.news]))
    return found


def test_good_text_raises_no_alarm():
    assert looking(watch(), written(GOOD, GOOD[2:], GOOD), 3 * WINDOW) == [([], [])] * (3 * WINDOW)


BAD = [
    ("responses grow", written((*range(2, 30), STOP)), {}),
    ("responses shrink", written((2, 3, STOP)), {}),
    ("repetition", written((2, 3, 2, 3, 2, 3, 2, 3, 2, STOP)), {}),
    ("no end", written((2, 3, 4, 5, 6, 7, 8, 9)), {}),
    ("copies the prompt", written(GOOD, prompt=GOOD[:-1]), {}),
    ("entropy collapse", written(GOOD), {"cross_entropy": 0.1, "teacher_cross_entropy": 2.0}),
    ("equal rewards", written(GOOD, GOOD).with_values(reward=[[0.0] * 8] * 2), {}),
]


@pytest.mark.parametrize(("name", "rollout", "metrics"), BAD, ids=lambda v: v if isinstance(v, str) else None)
def test_each_alarm_is_said_once_and_logged_while_it_lasts(name, rollout, metrics):
    eye = watch()
    looking(eye, written(GOOD), 2 * WINDOW)
    found = looking(eye, rollout, 2 * WINDOW, **metrics)
    first = next(step for step, (alarms, _) in enumerate(found) if alarms)
    assert 0 < first < WINDOW  # a mean, not a single step
    assert all(alarms == [name] for alarms, _ in found[first:])
    said = [names for _, names in found if names]
    assert said[0] == [name]
    assert len(said) <= 3  # again only when it has become twice as bad
    assert looking(eye, written(GOOD), 2 * WINDOW)[-1] == ([], [])


def test_rewards_that_differ_are_no_alarm():
    rewarded = written(GOOD, GOOD).with_values(reward=[[0.0] * 8, [1.0] * 8])
    assert looking(watch(), rewarded, 2 * WINDOW)[-1] == ([], [])


def test_a_whole_batch_of_empty_responses_is_an_alarm_at_once():
    eye = watch()
    assert looking(eye, written((STOP,), (STOP,)), 1) == [(["empty responses"], ["empty responses"])]
    assert looking(watch(), written((STOP,), GOOD), 5) == [([], [])] * 5


def test_text_of_others_is_not_measured():
    looped = (2,) * 40
    for writer in ("data", "teacher", "text"):
        eye = watch()
        assert eye.look(written(looped, writer=writer), METRICS, 1) == {}
        assert looking(eye, written(looped, writer=writer), 2 * WINDOW)[-1] == ([], [])
    assert "repetition" in watch().look(written(looped, writer="mixed"), METRICS, 1)


def test_responses_that_were_cut_at_first_may_shrink():
    eye = watch()
    looking(eye, written(tuple(range(2, 20))), WINDOW)
    assert looking(eye, written((2, 3, STOP)), 2 * WINDOW)[-1] == ([], [])


@pytest.mark.parametrize("name", ["loss", "gradient_norm", "divergence"])
def test_a_spike_is_six_standard_deviations(name):
    eye, rollout = watch(), written(GOOD, writer="data")
    values = [1.0 + 0.01 * (-1) ** step for step in range(SPIKE_WINDOW)]  # deviation 0.01 around 1
    for step, value in enumerate(values):
        assert eye.look(rollout, {**METRICS, name: value}, step + 1) == {}
    restored = watch()
    restored.restore(json.loads(json.dumps(eye.state())))
    assert eye.look(rollout, {**METRICS, name: 1.0599}, 0) == {}
    assert restored.look(rollout, {**METRICS, name: 1.0601}, 0) == {"alarms": [f"{name} spike"]}
    assert restored.news[0].startswith(f"{name} spike: 1.06, 6 standard deviations above")
    assert restored.look(rollout, {**METRICS, name: 0.5}, 0) == {}


def test_the_past_of_a_spike_is_128_steps():
    eye, rollout = watch(), written(GOOD, writer="data")
    for scatter in (1.0, 0.01):
        for step in range(SPIKE_WINDOW):
            eye.look(rollout, {**METRICS, "loss": 3.0 + scatter * (-1) ** step}, step + 1)
    assert eye.look(rollout, {**METRICS, "loss": 3.07}, 0) == {"alarms": ["loss spike"]}


def test_a_response_is_held_against_its_own_prompt():
    prompts, responses = [GOOD, (20, 21, 22, 23, 24)], [(20, 21, 22, 23), GOOD]
    assert measures.prompt_overlap(prompts, responses) == 0
    assert measures.prompt_overlap(prompts[::-1], responses) == 1


def test_no_spikes_without_a_past_and_none_of_nothing():
    eye = watch()
    assert looking(eye, written(GOOD), SPIKE_LEAST - 1) == [([], [])] * (SPIKE_LEAST - 1)
    assert eye.look(written(GOOD), {**METRICS, "loss": 1e6}, 0).get("alarms") is None  # one short of enough
    eye = watch()
    looking(eye, written(GOOD), SPIKE_LEAST)
    assert eye.look(written(GOOD), {**METRICS, "loss": 1.005}, 0).get("alarms") is None  # no scatter so far
    for nothing in (float("nan"), float("inf")):
        assert eye.look(written(GOOD), {**METRICS, "loss": nothing}, 0).get("alarms") is None
    assert eye.look(written(GOOD), {**METRICS, "loss": 2.0}, 0)["alarms"] == ["loss spike"]


def test_worse_is_said_again():
    eye = watch()
    mild, bad = written(GOOD, GOOD, (2, 3) * 6), written((2, 3) * 20)
    assert [names for _, names in looking(eye, mild, 2 * WINDOW) if names] == [["repetition"]]
    later = [names for _, names in looking(eye, bad, 2 * WINDOW) if "repetition" in names]
    assert len(later) == 1
    assert not any(names for _, names in looking(eye, bad, 2 * WINDOW))


def test_the_state_is_all_there_is():
    whole, first = watch(), watch()
    rollouts = [written(GOOD), written((2, 3) * 20), written((STOP,)), written(GOOD, writer="data")] * 20
    said = []
    for step, rollout in enumerate(rollouts):
        fields = whole.look(rollout, {**METRICS, "loss": 1 + step % 7}, step)
        if step == 37:
            again = watch()
            again.restore(json.loads(json.dumps(first.state())))
            first = again
        assert first.look(rollout, {**METRICS, "loss": 1 + step % 7}, step) == fields
        assert first.news == whole.news
        said += whole.news
    assert said


def test_off_measures_nothing():
    eye = watch("off")
    assert eye.look(written((STOP,)), METRICS, 0) == {}
    assert eye.news == []


def test_the_teachers_mass_outside_the_shared_vocabulary():
    teacher = LocalTeacher(language_model("gpt2", 2))
    rollout = Rollout.of([[3, 4], [5]], [[6, 7, STOP], [8, STOP]])
    expected = [
        own_logits(teacher.model.model, prompt, response).softmax(-1)[:, 40:].sum(-1)
        for prompt, response in zip(rollout.prompts, rollout.responses, strict=True)
    ]
    assert measures.mass_outside(teacher, rollout, 40) == pytest.approx(torch.cat(expected).mean().item(), rel=1e-9)
    assert measures.mass_outside(teacher, rollout, 50) == pytest.approx(0, abs=1e-12)


def test_documentation_names_every_alarm_and_limit():
    page = Path("docs/health.md").read_text(encoding="utf-8")
    for limit in LIMITS:
        assert f"| {limit.name} |" in page
        assert f"{limit.bound:g}" in page
    for name in health.SPIKING:
        assert f"{name} spike" in page


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_measures_the_teachers_mass_at_its_first_step_and_after_evaluations(tmp_path):
    whole = mapping(tmp_path, "sft")  # writes the models
    write_model(tmp_path / "padded", 2, vocab_size=30)
    whole = mapping(tmp_path, "on-policy-kd", evaluation={"every": 3}, output=str(tmp_path / "padded-run"))
    whole["teacher"] = {"model": str(tmp_path / "padded")}
    steps = [line for line in lines(train(recipe_of(whole), **SILENT).folder) if "loss" in line]
    measured = {line["step"]: line["teacher_mass_outside"] for line in steps if "teacher_mass_outside" in line}
    assert list(measured) == [1, 4]
    assert all(0.1 < mass < 0.5 for mass in measured.values())  # 8 of 30 tokens of a random model
    assert steps[0]["alarms"] == ["mass outside the vocabulary"]


def looping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the student write the same word for ever."""

    def sample(self, examples, step):
        responses = [(5,) * 8] * len(examples)
        logps = [(-1.0,) * 8] * len(examples)
        return Rollout.of(
            [e.prompt for e in examples], responses, writer="student", items=[e.item for e in examples], logps=logps
        )

    monkeypatch.setattr(StudentSampler, "sample", sample)


def test_a_run_warns_or_stops_and_goes_on(tmp_path, monkeypatch, capsys):
    looping(monkeypatch)
    sections = {"steps": WINDOW + 4, "learning_rate": 1e-3}
    warned = train(recipe_of(mapping(tmp_path, "on-policy-kd", train=sections)), **SILENT)
    printed = capsys.readouterr().out
    assert printed.count("alarm: repetition") == 1
    assert printed.count("alarm: no end") == 1
    alarms = {line["step"]: line.get("alarms") for line in lines(warned.folder) if "loss" in line}
    assert alarms == {step: None if step < WINDOW else ["repetition", "no end"] for step in range(1, WINDOW + 5)}

    stopping = {"train": {**sections, "alarms": "stop"}, "output": str(tmp_path / "stopping")}
    recipe = recipe_of(mapping(tmp_path, "on-policy-kd", **stopping))
    with pytest.raises(DivergedError, match=f"stopped by an alarm at step {WINDOW}: repetition") as caught:
        train(recipe, **SILENT)
    assert caught.value.exit_status == 3
    assert (Path(recipe.output) / "checkpoints" / f"step-{WINDOW:08d}").is_dir()
    resumed = train(recipe, **SILENT)  # it has been said
    ours, theirs = ([{**line, "seconds": 0} for line in lines(run.folder)] for run in (resumed, warned))
    assert ours == theirs

    off = {"train": {**sections, "alarms": "off"}, "output": str(tmp_path / "off")}
    silent = train(recipe_of(mapping(tmp_path, "on-policy-kd", **off)), **SILENT)
    assert not any("alarms" in line or "repetition" in line for line in lines(silent.folder))
