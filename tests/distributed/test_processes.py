"""Two processes make the run of one: the same text, the same gradients, the same files, stopped and resumed at will."""

from pathlib import Path

import pytest
from tests.distributed.comparing import QUIET, assert_close, lines
from tests.distributed.launch import launch, launched
from tests.tiny import mapping

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
    """One method of each kind, with student and teacher cut over two processes."""
    folder = tmp_path_factory.mktemp("cut")
    jobs = [{"recipe": sharded(folder, method, folder / f"two-{method}")} for method in CUT]
    assert launched(folder, jobs) == [["finished", "finished"]] * len(jobs)
    return folder


CUT = ("sft", "gkd", "minillm", "moment-matching", "minillm-ranking", "gkd-reward", "f-distill", "distillm-2")


def sharded(folder: Path, method: str, output: Path) -> dict:
    """MiniLLM has plain text besides, in fewer rows than there are processes: some have passes for nothing."""
    (folder / "plain.txt").write_text("a b c d e f g h i j k l m n o p q r s t " * 4)
    found = mapping(folder, method, train={"shard": "both"}, output=str(output))
    if method == "minillm":
        found["method"] |= {"text_rows": 1}
        found["data"] |= {"text": str(folder / "plain.txt"), "text_tokens": 10}
    return found


@pytest.mark.parametrize("method", CUT)
def test_models_cut_over_two_processes_make_the_same_run(cut, method):
    one = train(recipe_of(sharded(cut, method, cut / f"one-{method}")), **QUIET).folder
    assert_close(one, cut / f"two-{method}")


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
