"""Every recipe of the project loads, and runs two steps through the real command line."""

from pathlib import Path

import pytest
from tests.tiny import mapping

from tutelage.cli import main
from tutelage.recipe import load_recipe

RECIPES = sorted(
    {path.resolve().relative_to(Path.cwd()) for path in Path("recipes").glob("**/*.yaml")}
    | {path.resolve().relative_to(Path.cwd()) for path in Path("recipes/tiny").glob("*.yaml")}
)
"""The tests run from the root of the project."""


def test_there_is_a_recipe_for_every_method():
    from tutelage.methods import METHODS

    assert {path.stem for path in Path("recipes").glob("*.yaml")} >= set(METHODS)


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_recipe_runs_two_steps(tmp_path, path):
    tiny = mapping(tmp_path, "sft")
    recipe = load_recipe(path)
    words = {
        "student.model": tiny["student"]["model"],
        "student.from_teacher": "null",
        "student.from_config": "null",
        "student.tokenizer": "null",
        "data.train": tiny["data"]["train"],
        "data.validation": tiny["data"]["train"],
        "data.validation-limit": "4",
        "data.columns": "{}",
        "data.template": "plain",
        "evaluation.answer": "null",
        "train.steps": "2",
        "train.epochs": "null",
        "train.batch-size": "4",
        "output": str(tmp_path / "run"),
    }
    if recipe.teacher is not None:
        words |= {"teacher.model": tiny["teacher"]["model"], "teacher.tokenizer": "null"}
    for name in ("student_decoding", "teacher_decoding"):
        if name in vars(recipe.method):
            words |= {f"method.{name}.max_new_tokens": "4"}
    if recipe.data.text is not None:
        text = tmp_path / "text.txt"
        text.write_text("a b c d e f g h " * 50, encoding="utf-8")
        words |= {"data.text": str(text), "data.text-tokens": "8"}
    if "text_rows" in vars(recipe.method) and recipe.data.text is not None:
        words |= {"method.text-rows": "2"}
    if "collection" in vars(recipe.method):
        words |= {"method.collection": "4"}
    words["evaluation.decoding.max-new-tokens"] = "4"
    arguments = [word for key, value in words.items() for word in (f"--{key}", value)]
    assert main(["train", str(path), *arguments]) == 0
    assert (tmp_path / "run" / "model" / "config.json").exists()
