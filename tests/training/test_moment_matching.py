"""Whole runs of moment matching and of distillation with a reward."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import mapping

from tutelage.models.remembering import RememberingTeacher
from tutelage.models.teachers import LocalTeacher
from tutelage.recipe import recipe_of
from tutelage.rollouts.rollout import Rollout
from tutelage.training.run import train

SILENT = {"report": lambda text: None}


def steps_of(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_critics_never_find_more_than_the_bound(tmp_path, kind, weight):
    """d_MM ≤ 2B · d_TV at every step, in training and on held-out text; at the start they find nothing."""
    whole = mapping(tmp_path, "moment-matching", kind, train={"steps": 8}, evaluation={"metrics": ["distances"]})
    overrides = ["--method.on-policy-weight", str(weight), "--method.bound", "0.7", "--method.critic-rank", "null"]
    overrides += ["--method.unit", "sequence"]
    overrides += ["--evaluation.decoding.max-new-tokens", "5", "--evaluation.every", "4"]
    run = train(recipe_of(whole, overrides), **SILENT)
    sides = [side for side, share in (("off", 1 - weight), ("on", weight)) if share]
    for line in steps_of(run.folder):
        for side in sides:
            assert 0 < line[f"moment_{side}"] <= line[f"bound_{side}"]
        shares = {"off": 1 - weight, "on": weight}
        assert line["loss"] == pytest.approx(sum(shares[side] * line[f"moment_{side}"] for side in sides), abs=1e-6)
        assert {name for name in line if name.startswith(("moment_", "bound_"))} == {
            f"{name}_{side}" for name in ("moment", "bound") for side in sides
        }
    first, *later = [evaluation["metrics"] for evaluation in run.evaluations]
    for side in sides:
        assert first[f"critic_{side}"]["value"] == 0
        assert all(0 < found[f"critic_{side}"]["value"] <= found[f"moment_{side}"]["value"] for found in later)
        assert first[f"moment_{side}"]["value"] == pytest.approx(1.4 * first[f"total_variation_{side}"]["value"])


def test_distances_are_measured_for_any_method(tmp_path):
    whole = mapping(tmp_path, "sft", evaluation={"metrics": ["distances"], "decoding": {"max_new_tokens": 4}})
    run = train(recipe_of(whole), **SILENT)
    assert {"moment_off", "moment_on", "forward_kl_on", "reverse_kl_off"} <= set(run.evaluations[-1]["metrics"])
    assert not any(name.startswith("critic") for name in run.evaluations[-1]["metrics"])


@pytest.mark.parametrize("method", ["distribution-matching", "moment-matching", "gkd-reward"])
def test_micro_batches_do_not_change_the_result(tmp_path, method):
    """The gradient norms agree too, which an optimiser that divides by its own scale would hide."""
    runs = [
        train(
            recipe_of(
                mapping(
                    tmp_path,
                    method,
                    train={"micro_batch_tokens": tokens, "steps": 3},
                    output=str(tmp_path / str(tokens)),
                )
            ),
            **SILENT,
        )
        for tokens in (1, 24, 10_000)
    ]
    first, *others = [load_file(run.model / "model.safetensors") for run in runs]
    norms = [[line["gradient_norm"] for line in steps_of(run.folder)] for run in runs]
    for other, norm in zip(others, norms[1:], strict=True):
        assert norm == pytest.approx(norms[0], rel=1e-3)
        for name, tensor in first.items():
            torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=1e-4)


def test_a_reward_is_learnt_from_and_both_norms_are_logged(tmp_path):
    """RL alone, on a reward that asks for one letter."""
    whole = mapping(tmp_path, "gkd-reward", train={"steps": 25, "batch_size": 12})
    whole["method"] |= {"alpha": 0.2, "reward": {"kind": "function", "function": f"{__name__}:letters"}}
    lines = steps_of(train(recipe_of(whole), **SILENT).folder)
    rewards = [line["reward"] for line in lines]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1
    assert all(line["gradient_norm/reward"] > 0 and line["gradient_norm/divergence"] > 0 for line in lines)
    assert all(0 <= reward <= 1 for reward in rewards)


def letters(prompts, responses, references) -> list[float]:
    """The share of words from the first half of the alphabet."""
    return [sum(word < "k" for word in r.split()) / max(1, len(r.split())) for r in responses]


@pytest.mark.parametrize("method", ["distribution-matching", "gkd-reward"])
def test_encoder_decoder_models_train_too(tmp_path, method):
    run = train(recipe_of(mapping(tmp_path, method, "t5", train={"steps": 2})), **SILENT)
    assert len(run.evaluations) == 2


def test_the_teacher_is_asked_once_for_each_text_of_a_step(tmp_path, monkeypatch):
    """However often the critics move; and the run ends where it would if the teacher were asked each time."""
    asked: list[Rollout] = []
    hidden = LocalTeacher.hidden

    def counted(self, rollout):
        asked.append(rollout)
        return hidden(self, rollout)

    monkeypatch.setattr(LocalTeacher, "hidden", counted)
    counts, weights = [], []
    for name in ("once", "each time"):
        whole = mapping(tmp_path, "moment-matching", train={"steps": 3, "micro_batch_tokens": 24})
        run = train(recipe_of(whole, ["--method.baseline", "none", "--output", str(tmp_path / name)]), **SILENT)
        counts.append(len(asked))
        weights.append(load_file(run.model / "model.safetensors"))
        asked.clear()
        monkeypatch.setattr(RememberingTeacher, "hidden", lambda self, rollout: self._teacher.hidden(rollout))
    spared = counts[1] - counts[0]
    assert spared >= 2 * 3, "every text of the 3 steps in two of three phases: the critics move twice"
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
