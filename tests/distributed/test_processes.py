"""Two processes make the run of one: the same text, the same gradients, the same files, stopped and resumed at will."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.data.test_alignment import byte_level
from tests.distributed.comparing import QUIET, assert_close, lines
from tests.distributed.launch import launch, launched
from tests.tiny import mapping, write_model

from tutelage.errors import DivergedError
from tutelage.methods import METHODS
from tutelage.recipe import recipe_of
from tutelage.training.run import train


@pytest.fixture(scope="module")
def every_method(tmp_path_factory):
    """All methods run by two processes, one after the other in one launch."""
    folder = tmp_path_factory.mktemp("methods")
    jobs = [{"recipe": mapping(folder, method, output=str(folder / f"two-{method}"))} for method in METHODS]
    assert launched(folder, jobs) == [["finished", "finished"]] * len(jobs)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_make_the_run_of_one(every_method, method):
    folder = every_method
    one = train(recipe_of(mapping(folder, method, output=str(folder / f"one-{method}"))), **QUIET).folder
    two = folder / f"two-{method}"
    first = [next(line for line in lines(each) if "loss" in line) for each in (one, two)]
    assert first[1]["loss"] == pytest.approx(first[0]["loss"], rel=1e-5)
    assert first[1]["gradient_norm"] == pytest.approx(first[0]["gradient_norm"], rel=1e-5)
    assert_close(one, two)
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}


def test_an_encoder_decoder_too(tmp_path):
    recipes = {n: mapping(tmp_path, "gkd", kind="t5", output=str(tmp_path / n)) for n in ("one", "two")}
    launched(tmp_path, [{"recipe": recipes["two"]}])
    train(recipe_of(recipes["one"]), **QUIET)
    assert_close(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("method", ["gkd", "minillm"])
def test_a_signal_to_one_process_is_honoured_by_all_and_the_run_goes_on_with_any_number(tmp_path, method):
    """Two processes, of which the second is told to stop; then one; then two again to the end."""
    stopped = mapping(tmp_path, method, output=str(tmp_path / "stopped"))
    (outcome,) = launched(tmp_path, [{"recipe": stopped, "step": 2, "rank": 1, "signal": "SIGTERM"}])
    assert outcome[0] == outcome[1] == "saved at step 2 of 6; the same command goes on from here"
    outcomes = launched(tmp_path, [{"recipe": stopped, "step": 4, "rank": 0, "signal": "SIGUSR1"}], processes=1)
    assert outcomes[0][0].startswith("saved at step 4")
    assert launched(tmp_path, [{"recipe": stopped}]) == [["finished", "finished"]]
    train(recipe_of(mapping(tmp_path, method, output=str(tmp_path / "whole"))), **QUIET)
    assert_close(tmp_path / "whole", tmp_path / "stopped")


def test_a_killed_process_ends_the_others_and_the_run_goes_on(tmp_path):
    recipe = mapping(tmp_path, "gkd", train={"save_every": 2}, output=str(tmp_path / "killed"))
    done = launch(tmp_path, [{"recipe": recipe, "step": 3, "rank": 1, "signal": "SIGKILL"}], 2, 240)
    assert done.returncode != 0
    assert [path.name for path in (tmp_path / "killed" / "checkpoints").glob("step-*")] == ["step-00000002"]
    assert launched(tmp_path, [{"recipe": recipe}]) == [["finished", "finished"]]
    train(recipe_of({**recipe, "output": str(tmp_path / "whole")}), **QUIET)
    assert_close(tmp_path / "whole", tmp_path / "killed")


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """One method of each kind, with student and teacher cut over two processes; at last the two of `BROKEN`."""
    folder = tmp_path_factory.mktemp("cut")
    recipes = [sharded(folder, method, folder / f"two-{method}") for method in CUT]
    recipes += [bridged(folder / "bridged", "two"), *(broken(folder, role, "two") for role in BROKEN)]
    outcomes = launched(folder, [{"recipe": recipe} for recipe in recipes])
    assert outcomes[: -len(BROKEN)] == [["finished", "finished"]] * (len(CUT) + 1)
    return folder, dict(zip(BROKEN, outcomes[-len(BROKEN) :], strict=True))


CUT = ("sft", "gkd", "minillm", "moment-matching", "minillm-ranking", "gkd-reward", "f-distill", "distillm-2")
BROKEN = ("student", "teacher")


def sharded(folder: Path, method: str, output: Path) -> dict:
    """MiniLLM has plain text besides, in fewer rows than there are processes: some have passes for nothing."""
    (folder / "plain.txt").write_text("a b c d e f g h i j k l m n o p q r s t " * 4)
    found = mapping(folder, method, train={"shard": "both"}, output=str(output))
    if method == "minillm":
        found["method"] |= {"text_rows": 1}
        found["data"] |= {"text": str(folder / "plain.txt"), "text_tokens": 10}
    return found


def bridged(folder: Path, output: str) -> dict:
    """Two tokenizers. In a pass of one process all tokens are those of the teacher, in the other's none is."""
    if not folder.exists():
        folder.mkdir()
        for role, merge, seed in (("student", ("h", "e"), 1), ("teacher", ("t", "h"), 2)):
            words = byte_level([merge])
            write_model(folder / f"llama-{role}", seed, vocab_size=len(words), eos_token_id=words.eos_token_id)
            words.save_pretrained(folder / f"llama-{role}")
        rows = [{"prompt": f"p{n % 4}", "completion": ("thethe", "aaabbb", "the", "a")[n % 4]} for n in range(16)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"steps": 4, "batch_size": 4, "micro_batch_tokens": 9, "shard": "both"}
    found = mapping(folder, "cross-tokenizer", train=settings, output=str(folder / output))
    found["method"] |= {"student_fraction": 0.0, "cross_entropy": 0.0}
    return found


def broken(folder: Path, role: str, output: str) -> dict:
    """One of the models has weights that are no numbers, in the part of the second process."""
    found = mapping(folder, "gkd", train={"shard": "both"}, output=str(folder / f"{output}-broken-{role}"))
    here = folder / f"broken-{role}"
    if not here.exists():
        shutil.copytree(found[role]["model"], here)
        weights = load_file(here / "model.safetensors")
        weights["model.embed_tokens.weight"][-1] = torch.nan
        save_file(weights, here / "model.safetensors", metadata={"format": "pt"})
    found[role] = {"model": str(here)}
    found["evaluation"]["metrics"] = []
    return found


@pytest.mark.parametrize("method", CUT)
def test_models_cut_over_two_processes_make_the_same_run(cut, method):
    folder, _ = cut
    one = train(recipe_of(sharded(folder, method, folder / f"one-{method}")), **QUIET).folder
    assert_close(one, folder / f"two-{method}")


def test_cut_models_of_two_tokenizers_too(cut):
    """How much is computed with the heads depends on the text, which is another one in each process."""
    folder, _ = cut
    one = train(recipe_of(bridged(folder / "bridged", "one")), **QUIET).folder
    assert_close(one, folder / "bridged" / "two")


@pytest.mark.parametrize("role", BROKEN)
def test_numbers_that_are_none_are_found_by_all_processes_in_a_part_of_one(cut, role):
    folder, outcomes = cut
    with pytest.raises(DivergedError) as refused:
        train(recipe_of(broken(folder, role, "one")), **QUIET)
    assert f"the weights of the {role} are not finite (model.embed_tokens.weight)" in str(refused.value)
    assert outcomes[role] == [str(refused.value).replace("one-broken", "two-broken")] * 2


def test_a_run_with_cut_models_goes_on_whole_and_the_other_way_round(tmp_path):
    """The checkpoint is the same file either way; the number of processes and the cutting are no part of the run."""
    output = tmp_path / "stopped"
    launched(tmp_path, [{"recipe": sharded(tmp_path, "gkd", output), "step": 2, "rank": 0, "signal": "SIGTERM"}])
    launched(
        tmp_path, [{"recipe": sharded(tmp_path, "gkd", output), "step": 4, "rank": 0, "signal": "SIGTERM"}], processes=1
    )
    assert launched(tmp_path, [{"recipe": sharded(tmp_path, "gkd", output)}]) == [["finished", "finished"]]
    train(recipe_of(mapping(tmp_path, "gkd", output=str(tmp_path / "whole"))), **QUIET)
    assert_close(tmp_path / "whole", output)
