"""`tutelage report --teacher`: the token view of a run that had no teacher."""

from dataclasses import replace

import pytest
from tests import tiny

from tutelage.cli import main
from tutelage.recipe import recipe_of
from tutelage.reports.run_record import read_record, write_record
from tutelage.training.run import train


def run(folder, method, **changes):
    evaluation = {"metrics": ["loss"], "decoding": {"strategy": "greedy", "max_new_tokens": 6}, "samples": 3}
    recipe = recipe_of(tiny.mapping(folder, method, evaluation=evaluation, output=str(folder / method), **changes))
    return train(recipe, report=lambda line: None)


def test_it_finds_what_a_run_with_its_teacher_in_memory_found(tmp_path) -> None:
    """The teacher's head has rows beyond the tokenizer, which are neither written nor compared."""
    tiny.write_model(tmp_path / "llama-teacher", 2, vocab_size=400)
    found = run(tmp_path, "gkd", train={"steps": 1})
    record = read_record(found.folder)
    assert record is not None
    write_record(found.folder, replace(record, teacher_parameters=None, samples=(), note="nothing"))
    assert main(["report", str(found.folder), "--teacher", str(tmp_path / "llama-teacher")]) == 0
    assert read_record(found.folder) == record


def test_a_run_without_a_teacher_gets_its_token_view(tmp_path, capsys) -> None:
    found = run(tmp_path, "sft", teacher=None, train={"steps": 1})
    before = read_record(found.folder)
    assert before is not None
    assert "tutelage report RUN --teacher MODEL" in before.note
    assert not any(sample.tokens for sample in before.samples)

    tiny.write_model(tmp_path / "llama-teacher", 2)
    assert main(["report", str(found.folder), "--teacher", str(tmp_path / "llama-teacher")]) == 0
    assert f"report in {found.report}" in capsys.readouterr().out
    after = read_record(found.folder)
    assert after is not None
    assert [sample.student for sample in after.samples] == [sample.student for sample in before.samples]
    assert all(sample.tokens and sample.teacher is not None for sample in after.samples)
    assert (len(after.samples), after.note, after.rows) == (3, "", before.rows)
    assert "Each token of the student is coloured" in found.report.read_text(encoding="utf-8")


@pytest.mark.parametrize("missing", ["report.json", "model"])
def test_a_run_that_has_not_ended_is_refused(tmp_path, capsys, missing) -> None:
    found = run(tmp_path, "sft", teacher=None, train={"steps": 1})
    tiny.write_model(tmp_path / "llama-teacher", 2)
    (found.folder / missing).rename(found.folder / "elsewhere")
    assert main(["report", str(found.folder), "--teacher", str(tmp_path / "llama-teacher")]) == 2
    assert "no report.json" in (said := capsys.readouterr().err) or "no model yet" in said
