"""Encoder-decoder models and adapters, cut over the processes of a run: what they compute, hold, and make of a run."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from tests.distributed.comparing import QUIET, assert_close, lines, weights
from tests.distributed.cutting import CASES, WAYS
from tests.distributed.launch import HERE, environment, launched, torchrun
from tests.tiny import WORDS, mapping, tokenizer
from tests.tiny_models import build
from tests.training.test_run import stop_after

from tutelage.errors import Stopped
from tutelage.recipe import recipe_of
from tutelage.training.run import train

pytest.importorskip("peft")


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def found(request, tmp_path_factory):
    """What each of so many processes, half of them on each of two hosts, has found."""
    folder = tmp_path_factory.mktemp("cut")
    command = [*torchrun(request.param), str(HERE / "cutting.py"), str(folder)]
    done = subprocess.run(command, env=environment(), timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"found-{rank}") for rank in range(request.param)]


@pytest.mark.parametrize("name", CASES)
def test_a_cut_model_computes_what_it_does_whole(found, name):
    for each in found:
        whole, cut = each[name]["logits"]
        torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-5)
        for way in WAYS:
            whole, cut = each[name][way]
            assert cut == whole


@pytest.mark.parametrize("name", CASES)
def test_the_gradients_of_the_parts_are_that_of_the_whole(found, name):
    """Where several modules share a weight, too: each of them adds to its gradient, once."""
    for each in found:
        whole, cut = each[name]["gradients"]
        assert cut.keys() == whole.keys()
        for parameter in whole:
            torch.testing.assert_close(cut[parameter], whole[parameter], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_each_process_holds_its_part_of_the_weights_and_all_buffers(found, name):
    processes = len(found) // 2 if CASES[name].within == "host" else len(found)
    for each in found:
        case = each[name]
        assert case["held"] == pytest.approx(1 / processes, rel=0.3)  # small tensors are not divisible
        assert case["names"][0] == case["names"][1]
        whole, cut = case["buffers"]
        assert cut.keys() == whole.keys()
        assert all(torch.equal(cut[buffer], whole[buffer]) for buffer in whole)
    if CASES[name].within == "run":
        assert sum(each[name]["held"] for each in found) == pytest.approx(1)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.adapter is not None])
def test_only_the_adapter_learns_and_the_first_process_collects_it_alone(found, name):
    for rank, each in enumerate(found):
        whole, collected = each[name]["adapter"]
        learnt = {parameter.replace(".default.", ".") for parameter in each[name]["gradients"][1]}
        assert learnt == {tensor.replace(".default.", ".") for tensor in whole}
        assert collected.keys() == (set() if rank else whole.keys())
        assert all(torch.equal(collected[tensor], whole[tensor]) for tensor in collected)


@pytest.mark.parametrize(("which", "whole"), [("student", 1), ("both", 0)])
def test_a_base_that_is_the_teacher_too(found, which, whole):
    for each in found:
        case = each[f"common weights, {which} cut"]
        torch.testing.assert_close(case["logits"][1], case["logits"][0], rtol=0, atol=1e-9)
        shares = (1 / len(found), 1 if whole else 1 / len(found))
        assert case["held"] == pytest.approx(shares, rel=0.3)


def test_models_that_nobody_knows_are_refused(found):
    """A weight beside the layers, one that encoder and decoder share, and adapters on the words that they share."""
    for each in found:
        start, end = "train.shard does not know the teacher's architecture: ", "; leave train.shard out"
        problems = [said.removeprefix(start).partition(end)[0] for said in each["refusals"]]
        assert problems == [
            "odd lies outside its encoder, decoder and head",
            "encoder.final_layer_norm.weight belongs to several layers",
            "encoder.embed_tokens.base_layer.weight belongs to several layers",
        ]


LORA = {"rank": 2, "targets": ["q_proj", "v_proj"]}
AGAIN = {"gradient_checkpointing": True}
RUNS = {
    "t5-gkd": {},
    "t5-minillm": {"train": AGAIN},
    "bart-gkd": {},
    "lora-gkd": {"adapter": LORA},
    "dora-gkd": {"adapter": {**LORA, "dora": True}, "train": AGAIN},
    "merged-gkd": {"adapter": LORA, "train": {"merge_adapter": True}},
}
GONE_ON = ("t5-gkd", "lora-gkd")


def recipe(folder: Path, name: str, output: str, shard: str = "none") -> dict:
    kind, method = name.split("-")
    kind = kind if kind in ("t5", "bart") else "llama"
    settings = {"steps": 4, "shard": shard, **RUNS[name].get("train", {})}
    whole = mapping(folder, method, kind, train=settings, output=str(folder / output))
    if "adapter" in RUNS[name]:
        whole["student"] |= {"adapter": RUNS[name]["adapter"]}
    if name == "merged-gkd":  # its teacher is its base
        whole["teacher"] = {"model": whole["student"]["model"]}
    return whole


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All of them cut over two processes; two more that one process began, two take up, and one ends."""
    folder = tmp_path_factory.mktemp("runs")
    for role, seed in (("student", 1), ("teacher", 2)):
        build("bart", seed, vocabulary=len(WORDS), dtype=torch.float32).save_pretrained(folder / f"bart-{role}")
        tokenizer().save_pretrained(folder / f"bart-{role}")
    for name in GONE_ON:
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, 1)
            with pytest.raises(Stopped):
                train(recipe_of(recipe(folder, name, f"gone-on-{name}")), **QUIET)
    jobs = [{"recipe": recipe(folder, name, f"two-{name}", "both")} for name in RUNS]
    stopped = [
        {"recipe": recipe(folder, name, f"gone-on-{name}", "both"), "step": 2, "rank": 0, "signal": "SIGTERM"}
        for name in GONE_ON
    ]
    outcomes = launched(folder, jobs + stopped)
    assert outcomes[: len(jobs)] == [["finished", "finished"]] * len(jobs)
    assert all(outcome[0].startswith("saved at step 2") for outcome in outcomes[len(jobs) :])
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_with_cut_models_make_the_run_of_one(runs, name):
    one, two = train(recipe_of(recipe(runs, name, f"one-{name}")), **QUIET).folder, runs / f"two-{name}"
    first = [next(line for line in lines(each) if "loss" in line) for each in (one, two)]
    assert first[1]["loss"] == pytest.approx(first[0]["loss"], rel=1e-5)
    assert first[1]["gradient_norm"] == pytest.approx(first[0]["gradient_norm"], rel=1e-5)
    assert_close(one, two)
    assert {path.name for path in (one / "model").iterdir()} == {path.name for path in (two / "model").iterdir()}
    if name in GONE_ON:
        train(recipe_of(recipe(runs, name, f"gone-on-{name}")), **QUIET)
        assert_close(one, runs / f"gone-on-{name}")


def test_the_adapter_of_a_cut_run_is_stored_as_ever(runs):
    checkpoint = max((runs / "two-lora-gkd" / "checkpoints").glob("step-*"))
    assert (checkpoint / "adapter_model.safetensors").stat().st_size < 10_000
    assert not list(checkpoint.glob("model*.safetensors"))
    assert json.loads((checkpoint / "adapter_config.json").read_text())["r"] == 2
    learnt = weights(runs / "two-lora-gkd")
    assert all(tensor.abs().max() > 1e-3 for name, tensor in learnt.items() if "lora_B" in name)
