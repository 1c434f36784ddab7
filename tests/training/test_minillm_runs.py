"""Whole runs of MiniLLM and its alternatives: collections, inner epochs, plain text, every kind of model, resuming."""

import json
from pathlib import Path

import pytest
import torch
from tests.tiny import WORDS, mapping
from tests.training.test_run import SILENT, same, stop_after, weights

from tutelage.errors import InputError, Stopped
from tutelage.recipe import recipe_of
from tutelage.rollouts.rollout import Rollout
from tutelage.training.collections import Collections
from tutelage.training.run import train

OFFICIAL = {
    "weigh_single_step": False,
    "include_current": True,
    "discount": 0.95,
    "length_normalisation": "remaining",
    "whiten": True,
    "estimates": "rollout",
    "behaviour": "recomputed",
    "clip_rule": "pessimistic",
    "reward_scale": 2.0,
    "reward_clip": 100.0,
    "average_over": "tokens",
    "text_rows": 3,
    "text_teacher_share": 0.5,
}
"""As recipes/minillm-official-code.yaml."""
KINDS = {
    "official": ("minillm", OFFICIAL),
    "paper with text": ("minillm", {"text_rows": 2}),
    "samples": (
        "minillm",
        {"samples": 2, "baseline": "leave_one_out", "estimates": "rollout", "importance": "full", "text_rows": 2},
    ),
    "ranking": ("minillm-ranking", {"reference": "data", "pairs": "all"}),
}


def recipe(folder: Path, kind: str, model: str = "llama", **sections):
    method, changes = KINDS[kind]
    text = folder / "text.txt"
    text.write_text(" ".join(WORDS[2 + i * i % 20] for i in range(400)), encoding="utf-8")
    whole = mapping(folder, method, model, **sections)
    whole["method"] = {**whole["method"], **changes}
    whole["data"] = {**whole["data"], "text": str(text), "text_tokens": 6, "max_tokens": 60}
    return recipe_of(whole)


def lines(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in found:
        line.pop("seconds", None)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["llama", "t5"])
def test_stopped_inside_a_collection_and_an_inner_epoch_resumes_bit_for_bit(tmp_path, monkeypatch, kind, model):
    """18 prompts, 6 a step, two inner epochs: steps 2, 4 and 5 are inside the first and the second epoch."""
    whole = train(recipe(tmp_path, kind, model, output=str(tmp_path / "whole")), **SILENT)
    interrupted = recipe(tmp_path, kind, model, output=str(tmp_path / "interrupted"))
    for step in (2, 4, 5):
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            with pytest.raises(Stopped, match=f"saved at step {step} of 6"):
                train(interrupted, **SILENT)
    resumed = train(interrupted, **SILENT)
    assert same(weights(whole.folder), weights(resumed.folder))
    assert lines(whole.folder) == lines(resumed.folder)


def test_a_collection_is_written_once_and_used_in_every_inner_epoch(tmp_path, monkeypatch):
    batches: list[Rollout] = []
    original = Collections.batch

    def kept(self, step):
        batches.append(original(self, step))
        return batches[-1]

    monkeypatch.setattr(Collections, "batch", kept)
    train(recipe(tmp_path, "samples", train={"steps": 12}), **SILENT)
    written = [
        sorted(
            (item, response)
            for batch in batches[start : start + 3]
            for item, response, writer in zip(batch.items, batch.responses, batch.writers, strict=True)
            if writer == "mixed"
        )
        for start in (0, 3, 6, 9)
    ]
    assert written[0] == written[1]
    assert written[2] == written[3]
    assert written[0] != written[2]
    assert len(written[0]) == 36  # 18 prompts, two samples each
    for batch in batches:
        assert [writer for writer in batch.writers if writer == "text"] == ["text"] * 2
        pairs = [item for item, writer in zip(batch.items, batch.writers, strict=True) if writer == "mixed"]
        assert pairs[::2] == pairs[1::2]  # both samples of a prompt are in the same step


@pytest.mark.parametrize("kind", KINDS)
def test_runs_are_the_same_however_they_are_cut(tmp_path, kind):
    """Micro-batches of one sequence, or of all of them, also where a prompt's samples are torn apart."""
    runs = [
        train(
            recipe(
                tmp_path,
                kind,
                train={"micro_batch_tokens": tokens, "steps": 3, "learning_rate": 1e-3},
                output=str(tmp_path / str(tokens)),
            ),
            **SILENT,
        )
        for tokens in (1, 10_000)
    ]
    first, second = (weights(run.folder) for run in runs)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-4, atol=1e-5)


def test_plain_text_is_reported_on_its_own(tmp_path):
    with_text = train(recipe(tmp_path, "paper with text", output=str(tmp_path / "with")), **SILENT)
    line = lines(with_text.folder)[1]
    assert line["text_cross_entropy"] > 0
    assert line["reverse_kl"] > 0
    assert line["importance_weight"] == pytest.approx(1, abs=0.2)
    with pytest.raises(InputError, match="has a term on plain text"):
        recipe_of(mapping(tmp_path, "minillm") | {"method": {"name": "minillm", "text_rows": 2}})


@pytest.mark.parametrize("method", ["minillm", "minillm-single-step"])
def test_a_run_brings_the_student_nearer_to_the_teacher(tmp_path, method):
    run = train(recipe_of(mapping(tmp_path, method, train={"steps": 30, "learning_rate": 3e-3})), **SILENT)
    found = [
        line["reverse_kl" if method == "minillm" else "divergence"] for line in lines(run.folder) if "loss" in line
    ]
    assert sum(found[-6:]) < 0.7 * sum(found[:6])
