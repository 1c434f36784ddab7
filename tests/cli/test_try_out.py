"""`tutelage try`: both answers side by side, the student's coloured by how far it is off."""

import io

import pytest
import torch
from rich.console import Console
from tests import tiny

from tutelage.cli import main
from tutelage.commands.try_out import coloured, try_out
from tutelage.config import Decoding
from tutelage.errors import InputError
from tutelage.models.language_model import LanguageModel
from tutelage.models.loading import load_model, load_tokenizer
from tutelage.recipe import recipe_of
from tutelage.reports.token_view import Token
from tutelage.rollouts.decoding import decode
from tutelage.training.run import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("try")
    evaluation = {"metrics": ["loss"], "decoding": {"max_new_tokens": 6}, "samples": 1}
    data = {"template": "c {prompt} d"}
    return train(recipe_of(tiny.mapping(folder, "gkd", evaluation=evaluation, data=data)), report=lambda line: None)


def asked(*arguments, **options):
    console = Console(file=io.StringIO(), width=200, highlight=False)
    try_out(*arguments, console=console, **options)
    return console.file.getvalue()


def greedy(folder, prompt):
    tokenizer = load_tokenizer(tiny_model(folder), "student")
    model = LanguageModel(load_model(tiny_model(folder), "student", seed=0), (1,))
    rollout = decode(model, [tokenizer.encode(prompt)], Decoding(strategy="greedy", max_new_tokens=6), seed=0)
    return tokenizer.decode(list(rollout.responses[0]), skip_special_tokens=True).strip(), len(rollout.responses[0])


def tiny_model(folder):
    from tutelage.config import Model

    return Model(model=str(folder), device="cpu")


def test_both_answer_in_the_runs_template(run):
    student, length = greedy(run.model, "c a b d")
    teacher, _ = greedy(run.folder.parent / "llama-teacher", "c a b d")
    said = asked(str(run.folder), "a b")
    line = next(line for line in said.splitlines() if teacher in line)
    assert student in line
    assert line.index(teacher) <= line.rindex(student)
    assert f"student {length} tokens" in said
    assert "nats a token" in said


def test_any_two_models_are_compared_and_samples_are_numbered(run):
    said = asked(str(run.model), "a b", teacher=str(run.folder.parent / "llama-teacher"), samples=2)
    assert "1: student" in said
    assert "2: student" in said
    assert said == asked(str(run.model), "a b", teacher=str(run.folder.parent / "llama-teacher"), samples=2)


def test_without_a_teacher_the_student_answers_alone(run):
    said = asked(str(run.model), "a b", settings={"max_new_tokens": 6})
    assert said.splitlines()[0].strip() == greedy(run.model, "a b")[0]
    assert "no teacher to compare with" in said


def test_prompts_are_read_line_by_line(run, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("a b\n\nc\n"))
    assert main(["try", str(run.folder), "--decoding.max-new-tokens", "2"]) == 0
    assert capsys.readouterr().out.count("reverse KL, nats") == 2


def test_colours_grow_with_the_divergence():
    figures = dict.fromkeys(("forward_kl", "total_variation", "student_logp", "teacher_logp"), 0.0)
    view = [
        Token(text, text, reverse_kl=value, **figures, student_top=(), teacher_top=())
        for text, value in (("a", 0.0), (" b", 0.1), (" c", 3.0), ("", 0.0))
    ]
    text = coloured(view)
    assert text.plain == "a b c"
    assert [str(span.style) for span in text.spans] == ["white on #492e15", "underline white on #983e1b"]


def test_mistakes_are_named(run, tmp_path):
    with pytest.raises(InputError, match="give at least 1"):
        try_out(str(run.folder), "a", samples=0)
    with pytest.raises(InputError, match=r"no recipe that --teacher\.device could change"):
        try_out(str(run.model), "a", keys=["--teacher.device", "cpu"])
    (tmp_path / "config.yaml").write_text((run.folder / "config.yaml").read_text())
    with pytest.raises(InputError, match="has no model yet"):
        try_out(str(tmp_path), "a")
    assert torch.is_grad_enabled()
