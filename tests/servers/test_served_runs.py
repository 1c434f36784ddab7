"""Whole runs with a served teacher: the student is that of the teacher here, whatever happens to the server."""

import json
import random
import shutil
from pathlib import Path

import pytest
import stamina
import torch
from safetensors.torch import load_file
from tests import tiny
from tests.servers.reference import NAME, Reference, running, status
from tests.training.test_health_memory import short_of_memory

from tutelage.cli import main
from tutelage.errors import InputError
from tutelage.recipe import dump_recipe, recipe_of
from tutelage.training.run import train

SILENT = {"report": lambda text: None}
METHODS = {"supervised-kd": {}, "gkd": {"student_fraction": 1.0}, "on-policy-kd": {}}


def recipe(folder: Path, output: Path, method: str, server: Reference | None, changes=None, **sections):
    """Three steps, from a teacher that is served or here."""
    served = {"url": server.url, "model": NAME, "tokenizer": str(folder / "llama-teacher")} if server else {}
    teacher = {**served, **(changes or {})}
    sections["train"] = {"steps": 3, "save_every": 1, **sections.get("train", {})}
    sections.setdefault("evaluation", {"metrics": ["loss"]})
    whole = tiny.mapping(folder, method, output=str(output), teacher=teacher, **sections)
    whole["method"] |= METHODS.get(method, {})
    return recipe_of(whole)


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model" / "model.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_the_student_is_that_of_the_teacher_here(tmp_path: Path, folder: Path, server: Reference, method: str) -> None:
    train(recipe(folder, tmp_path / "here", method, None), **SILENT)
    train(recipe(folder, tmp_path / "served", method, server), **SILENT)
    local, served = weights(tmp_path / "here"), weights(tmp_path / "served")
    for name, tensor in local.items():
        torch.testing.assert_close(served[name], tensor, rtol=1e-3, atol=1e-4)  # Adam magnifies rounding
    lines = [json.loads(line) for line in (tmp_path / "served" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["seconds"]["teacher"] > 0 for line in lines if "loss" in line)
    known = json.loads((tmp_path / "served" / "environment.json").read_text())["teacher"]
    assert known["max_length"] == 64
    assert len(known["logps"]) > 8
    assert (tmp_path / "served" / "report.html").exists()


def test_what_the_first_micro_batches_need_is_asked_first(tmp_path: Path, folder: Path, server: Reference) -> None:
    """Else the first one waits for nearly all answers, and the student works when the server is done."""
    changes = {"concurrency": 1}
    train(recipe(folder, tmp_path / "run", "supervised-kd", server, changes, train={"steps": 1}), **SILENT)
    asked = [len(body["prompt"]) for body in server.requests if isinstance(body["prompt"], list)]
    assert len(set(asked[-6:])) > 2
    assert asked[-6:] == sorted(asked[-6:], reverse=True)  # micro-batches begin with the longest sequences


def test_smaller_micro_batches_after_memory_ran_out_ask_nothing_again(
    tmp_path: Path, folder: Path, server: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropout = {"dropout": True}  # by which short_of_memory knows an update
    train(recipe(folder, tmp_path / "whole", "gkd", server, train=dropout), **SILENT)
    asked = len(server.requests)
    with monkeypatch.context() as patch:
        refused = short_of_memory(patch, 12)
        train(recipe(folder, tmp_path / "short", "gkd", server, train=dropout), **SILENT)
    assert len(refused) == 1
    assert len(server.requests) == 2 * asked
    for name, tensor in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "short")[name], tensor, rtol=1e-3, atol=1e-4)


def test_it_stops_with_75_when_the_server_is_gone_and_goes_on_with_the_same_student(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Reference(folder / "llama-teacher")
    with running(server):
        train(recipe(folder, tmp_path / "whole", "gkd", server), **SILENT)
        asked = len(server.requests)

        def gone(request, answer):
            return status(503)(request, answer)

        server.faults, server.always = [None] * (asked * 2 // 3), gone
        cut = recipe(folder, tmp_path / "cut", "gkd", server, {"patience": 4.0})
        (tmp_path / "cut.yaml").write_text(dump_recipe(cut))
        assert main(["train", str(tmp_path / "cut.yaml")]) == 75
        said = capsys.readouterr()
        assert "gave no answer within 4 s (last: HTTP 503" in said.err
        assert "saved at step" in said.err
        assert list((tmp_path / "cut" / "checkpoints").iterdir())
        server.faults, server.always = [], None
        assert main(["train", str(tmp_path / "cut.yaml")]) == 0
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "cut")[name], tensor), name


def test_a_resumed_run_refuses_another_teacher_and_takes_the_same_one_elsewhere(
    tmp_path: Path, folder: Path, server: Reference
) -> None:
    begun = tmp_path / "begun"
    train(recipe(folder, begun, "supervised-kd", server, train={"schedule": "constant"}), **SILENT)
    longer = {"train": {"schedule": "constant", "steps": 4}}
    refused = pytest.raises(InputError, match="has other weights than the one that")
    with running(Reference(folder / "other")) as other, refused:
        train(recipe(folder, begun, "supervised-kd", other, **longer), **SILENT)
    with running(Reference(folder / "llama-teacher")) as moved:
        train(recipe(folder, begun, "supervised-kd", moved, **longer), **SILENT)


def test_passing_faults_change_nothing(tmp_path: Path, folder: Path, server: Reference) -> None:
    """One request of three fails."""
    train(recipe(folder, tmp_path / "whole", "supervised-kd", server), **SILENT)
    draws = random.Random(3)
    server.faults = [None, *(status(draws.choice((200, 200, 200, 429, 500, 503))) for _ in range(200))]
    with stamina.set_testing(True, attempts=50):
        train(recipe(folder, tmp_path / "rough", "supervised-kd", server), **SILENT)
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "rough")[name], tensor)


def test_check_looks_at_the_server(
    tmp_path: Path, folder: Path, server: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe(folder, tmp_path / "run", "gkd", server)))
    assert main(["check", str(path)]) == 0
    assert "22 shared ids" in capsys.readouterr().out
    assert main(["check", str(path), "--teacher.model", "big"]) == 2
    assert "does not serve 'big'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("minillm", {}, "needs more of it than its most probable tokens"),
        ("sft", {"evaluation": {"metrics": ["agreement"]}}, "needs its whole distribution"),
        ("gkd", {"evaluation": {"metrics": ["distances"]}}, "needs its whole distribution"),
        ("gkd", {"teacher_cache": {"kind": "top-k"}}, "no cache is kept of it"),
        ("gkd", {"method": {"temperature": 2.0}}, "set method.temperature: 1"),
        ("supervised-kd", {"student": {"model": None, "from_teacher": {"layers": [0]}}}, "no layers to copy"),
        ("supervised-kd", {"teacher": {"url": "localhost:8000"}}, "teacher.url"),
        ("supervised-kd", {"student": {"url": "http://localhost"}}, "unknown key 'student.url'"),
    ],
)
def test_what_a_served_teacher_cannot_give_is_told_by_the_recipe(
    folder: Path, method: str, changes: dict, message: str
) -> None:
    whole = tiny.mapping(folder, method, evaluation={"metrics": ["loss"]}, teacher={"url": "http://127.0.0.1:9"})
    for section, keys in changes.items():
        whole[section] = {**whole.get(section, {}), **keys}
    with pytest.raises(InputError) as error:
        recipe_of(whole)
    assert message in str(error.value)


def test_a_served_teacher_writes_no_text(tmp_path: Path, folder: Path) -> None:
    whole = tiny.mapping(
        folder, "gkd", evaluation={"metrics": ["loss"]}, teacher={"url": "http://127.0.0.1:9"}, output=str(tmp_path)
    )
    whole["method"] |= {"offline": "teacher", "student_fraction": 0.5}
    with pytest.raises(InputError, match="has it write text"):
        train(recipe_of(whole), **SILENT)
    shutil.rmtree(tmp_path)


def test_verbs_that_need_its_weights_say_so(tmp_path: Path, folder: Path, server: Reference, capsys) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe(folder, tmp_path / "run", "gkd", server)))
    assert main(["generate", str(path), "--by", "teacher", "--out", str(tmp_path / "text.jsonl")]) == 2
    assert "this needs the weights of the teacher 'tiny-teacher'" in capsys.readouterr().err
