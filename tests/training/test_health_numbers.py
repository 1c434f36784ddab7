"""Numbers that are not finite: they never reach the weights, the culprit is named, and the batch is written out."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import mapping
from tests.training.test_run import stop_after

from tutelage.errors import DivergedError, Stopped
from tutelage.methods import METHODS
from tutelage.methods.critics import Critic
from tutelage.recipe import recipe_of
from tutelage.rollouts.samplers import StudentSampler
from tutelage.training import loop as loop_module
from tutelage.training.run import train

SILENT = {"report": lambda text: None}
Poison = Callable[[Any, pytest.MonkeyPatch], None]


def after_norm(model: Any, change: Callable[[torch.Tensor], torch.Tensor], patch: pytest.MonkeyPatch) -> None:
    """Change a Llama's final hidden states until the patch is undone."""
    norm = model.base_model.norm
    original = norm.forward
    patch.setattr(norm, "forward", lambda hidden: change(original(hidden)))


def third_position(hidden: torch.Tensor) -> torch.Tensor:
    """NaN at the third place of every sequence that is as long."""
    hidden = hidden.clone()
    hidden[:, 2:3] = math.nan
    return hidden


def teacher_states(loop: Any, patch: pytest.MonkeyPatch) -> None:
    after_norm(loop._setup.teacher.model.model, third_position, patch)


def teacher_weights(loop: Any, patch: pytest.MonkeyPatch, value: float = math.inf) -> None:
    row = loop._setup.teacher.model.model.lm_head.weight.data[3]
    before = row.clone()
    row[:] = value
    patch.callback = lambda: row.copy_(before)


def teacher_logit(loop: Any, patch: pytest.MonkeyPatch) -> None:
    """Finite weights and finite states, whose product overflows for one id."""
    teacher_weights(loop, patch, 1e30)
    after_norm(loop._setup.teacher.model.model, lambda hidden: 1e30 * hidden.abs(), patch)


def student_states(loop: Any, patch: pytest.MonkeyPatch) -> None:
    after_norm(loop._setup.student.model, lambda hidden: hidden * math.inf, patch)


def student_gradient(loop: Any, patch: pytest.MonkeyPatch) -> None:
    parameter = loop._setup.student.model.model.layers[0].mlp.up_proj.weight
    handle = parameter.register_hook(lambda gradient: gradient * math.nan)
    patch.callback = handle.remove


def critic(loop: Any, patch: pytest.MonkeyPatch) -> None:
    original = Critic.hidden
    patch.setattr(Critic, "hidden", lambda self, states: original(self, states) * math.nan)


def written_logps(loop: Any, patch: pytest.MonkeyPatch) -> None:
    original = StudentSampler.sample

    def sample(self, examples, step):
        rollout = original(self, examples, step)
        logps = [[math.nan if row == 1 and place == 0 else value for place, value in enumerate(values)]
                 for row, values in enumerate(rollout.logps)]  # fmt: skip
        return type(rollout).of(rollout.prompts, rollout.responses, writer="student", items=rollout.items, logps=logps)

    patch.setattr(StudentSampler, "sample", sample)


def everything(loop: Any) -> dict[str, torch.Tensor]:
    """A copy of all weights and of what the optimisers remember."""
    found = {}
    for name, module in loop._updater.modules.items():
        for key, parameter in module.named_parameters():
            found[f"{name}.{key}"] = parameter.detach().clone()
            for kind, value in loop._updater.optimizers[name].state.get(parameter, {}).items():
                found[f"{name}.{key}.{kind}"] = value.clone()
    return found


def poison_at(monkeypatch: pytest.MonkeyPatch, steps: set[int], poison: Poison) -> list[bool]:
    """Poison some steps (counted from 0) and cure the run after each; say of each whether all weights stayed."""
    original, kept = loop_module.Loop.step, []

    def step(self, number):
        if number not in steps:
            return original(self, number)
        before = everything(self)
        with pytest.MonkeyPatch.context() as patch:
            patch.callback = lambda: None
            poison(self, patch)
            try:
                return original(self, number)
            finally:
                patch.callback()
                after = everything(self)
                kept.append(before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before))

    monkeypatch.setattr(loop_module.Loop, "step", step)
    return kept


def lines(folder: Path) -> list[dict[str, Any]]:
    """The steps of metrics.jsonl, read by a parser that knows no NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    text = (folder / "metrics.jsonl").read_text()
    found = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    return [line for line in found if "loss" in line]


CASES = [
    ("supervised-kd", teacher_states, "loss", "the teacher's hidden states are not finite"),
    ("supervised-kd", teacher_logit, "loss", "the teacher's log-probabilities are not finite"),
    ("on-policy-kd", teacher_weights, "loss", "the weights of the teacher are not finite (lm_head.weight)"),
    ("sft", student_states, "loss", "the student's hidden states are not finite"),
    ("sft", student_gradient, "gradient_norm", "its gradient of the student is not finite"),
    ("moment-matching", critic, "loss", None),
    ("moment-matching", student_gradient, "gradient_norm", "its gradient of the student is not finite"),
    ("gkd-reward", student_gradient, "gradient_norm", "its gradient of the student is not finite"),
    ("on-policy-kd", written_logps, "loss", "the writer's log-probabilities are not finite"),
]


@pytest.mark.parametrize(("method", "poison", "visible", "suspect"), CASES, ids=lambda v: getattr(v, "__name__", None))
def test_a_poisoned_step_is_skipped_and_leaves_nothing_behind(tmp_path, monkeypatch, method, poison, visible, suspect):
    recipe = recipe_of(mapping(tmp_path, method, train={"on_nonfinite": "skip", "save_every": 1}))
    kept = poison_at(monkeypatch, {3}, poison)
    run = train(recipe, **SILENT)
    assert kept == [True]
    steps = lines(run.folder)
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert not math.isfinite(float(steps[3][visible]))
    assert isinstance(steps[3][visible], str)  # visible, and valid JSON
    assert [line.get("skipped_steps", 0) for line in steps] == [0, 0, 0, 1, 1, 1]
    assert all(math.isfinite(line["loss"]) for line in steps if line["step"] != 4)
    found = json.loads((run.folder / "bad_batch_4.json").read_text())
    assert (found["suspect"] or {}).get("what", "").startswith(suspect or "")
    assert len(found["sequences"]) >= 6
    assert all(sequence["row"].endswith(f"rows.jsonl:{sequence['item'] + 1}") for sequence in found["sequences"])


def test_the_dump_says_what_where_and_in_which_row(tmp_path, monkeypatch):
    recipe = recipe_of(mapping(tmp_path, "supervised-kd"))
    poison_at(monkeypatch, {3}, teacher_states)
    with pytest.raises(DivergedError, match="the loss is nan at step 4") as caught:
        train(recipe, **SILENT)
    folder = Path(recipe.output)
    assert caught.value.exit_status == 3
    found = json.loads((folder / "bad_batch_4.json").read_text())
    suspect = found["suspect"]
    bad = found["sequences"][suspect["sequence"]]
    assert len(bad["prompt_ids"]) - 1 + suspect["position"] == 2  # what is predicted from the third place
    assert bad["loss"] == "NaN"
    for sequence in found["sequences"]:
        first, count = len(sequence["prompt_ids"]) - 1, len(sequence["response_ids"])
        assert (sequence["loss"] == "NaN") == (first <= 2 < first + count)
        assert sequence["prompt"].split() == [chr(ord("a") + i - 2) for i in sequence["prompt_ids"]]
    assert found["micro_batch_losses"][-1] == "NaN"
    assert found["updated"] == ["student"]
    place = f"token {suspect['position'] + 1} of the response"
    for part in (bad["row"], place, "bad_batch_4.json", "the teacher is at fault"):
        assert part in str(caught.value)


def test_stopping_saves_the_last_good_step_first_and_the_run_can_go_on_by_skipping(tmp_path, monkeypatch):
    recipe = recipe_of(mapping(tmp_path, "gkd"))  # saves at the end only
    with monkeypatch.context() as patch:
        poison_at(patch, {3}, student_gradient)
        with pytest.raises(DivergedError, match="the gradient of the student is nan at step 4"):
            train(recipe, **SILENT)
        assert [p.name for p in (Path(recipe.output) / "checkpoints").glob("step-*")] == ["step-00000003"]
        skipping = recipe_of(mapping(tmp_path, "gkd", train={"on_nonfinite": "skip"}))
        resumed = train(skipping, **SILENT)
    whole = recipe_of(mapping(tmp_path, "gkd", train={"on_nonfinite": "skip"}, output=str(tmp_path / "whole")))
    poison_at(monkeypatch, {3}, student_gradient)
    uninterrupted = train(whole, **SILENT)
    ours, theirs = ([{**line, "seconds": 0} for line in lines(run.folder)] for run in (resumed, uninterrupted))
    assert ours == theirs
    ours, theirs = ((run.model / "model.safetensors").read_bytes() for run in (resumed, uninterrupted))
    assert ours == theirs


def test_a_run_that_was_stopped_when_its_only_step_had_been_skipped_goes_on(tmp_path, monkeypatch):
    """Adam remembers nothing yet: there is nothing of it in the checkpoint."""
    recipe = recipe_of(mapping(tmp_path, "moment-matching", train={"on_nonfinite": "skip"}))
    with monkeypatch.context() as patch:
        poison_at(patch, {0}, student_gradient)
        stop_after(patch, 1)
        with pytest.raises(Stopped, match="saved at step 1 "):
            train(recipe, **SILENT)
    resumed = train(recipe, **SILENT)
    poison_at(monkeypatch, {0}, student_gradient)
    whole = train(replace(recipe, output=str(tmp_path / "whole")), **SILENT)
    ours, theirs = ((run.model / "model.safetensors").read_bytes() for run in (resumed, whole))
    assert ours == theirs


def test_the_budget_is_counted_over_the_whole_run(tmp_path, monkeypatch):
    sections = {"on_nonfinite": "skip", "nonfinite_budget": 2, "save_every": 1}
    recipe = recipe_of(mapping(tmp_path, "sft", train=sections))
    with monkeypatch.context() as patch:
        kept = poison_at(patch, {1, 2, 4}, student_gradient)
        with pytest.raises(DivergedError, match="2 steps were skipped before, which is train"):
            train(recipe, **SILENT)
        assert kept == [True] * 3
    poison_at(monkeypatch, {4}, student_gradient)
    with pytest.raises(DivergedError, match="2 steps were skipped before"):  # it is remembered
        train(recipe, **SILENT)
    raised = recipe_of(mapping(tmp_path, "sft", train={**sections, "nonfinite_budget": 3}))
    assert lines(train(raised, **SILENT).folder)[-1]["skipped_steps"] == 3


@pytest.mark.parametrize(
    ("method", "changes"),
    [*((name, {}) for name in METHODS if METHODS[name]().needs_teacher), ("imitkd", {"loss": "opt", "rate": 200.0})],
)
def test_no_method_hides_what_the_teacher_says_wrongly(tmp_path, monkeypatch, method, changes):
    """In the second epoch, where all that the teacher writes beforehand is there."""
    whole = mapping(tmp_path, method, train={"on_nonfinite": "skip", "steps": 8})
    whole["method"] |= changes
    if method == "seqkd":
        whole["method"]["cross_entropy"] = 0.5  # at its default it compares with nobody
    if method == "minillm" or method == "distillm-2":
        whole["method"]["collection"] = 6  # sampled and prepared while the teacher is wrong, too
    kept = poison_at(monkeypatch, {5, 6, 7}, teacher_weights)
    run = train(recipe_of(whole), **SILENT)
    steps = lines(run.folder)
    assert kept == [True] * 3
    assert [line.get("skipped_steps", 0) for line in steps] == [0, 0, 0, 0, 0, 1, 2, 3]
    assert "the teacher" in json.loads((run.folder / "bad_batch_6.json").read_text())["suspect"]["what"]


def test_text_that_the_teacher_wrote_from_such_numbers_is_not_kept(tmp_path, monkeypatch):
    whole = mapping(tmp_path, "seqkd")
    whole["method"]["teacher_decoding"] = {"strategy": "sample", "max_new_tokens": 5}
    poison_at(monkeypatch, {2}, teacher_weights)
    with pytest.raises(DivergedError, match=r"while it writes for .*rows\.jsonl:\d+; nothing of this text is kept"):
        train(recipe_of(whole), **SILENT)
    stored = (Path(whole["output"]) / "teacher_text.jsonl").read_text().splitlines()
    assert len([line for line in stored if "response" in line]) <= 12  # those of the two steps before
    assert (Path(whole["output"]) / "checkpoints" / "step-00000002").is_dir()
