"""The JSON schema for editors takes what the recipe reader takes, and no misspelt key."""

import json
from pathlib import Path

import pytest
import yaml
from tests.tiny import mapping

from tutelage.cli import main
from tutelage.commands.schema import recipe_schema
from tutelage.methods import METHODS
from tutelage.recipe import dump_recipe, load_recipe, recipe_of
from tutelage.recipe_keys import recipe_keys

jsonschema = pytest.importorskip("jsonschema")
RECIPES = sorted([*Path("recipes").glob("**/*.yaml"), *Path("src/tutelage/demo/recipes").glob("*.yaml")])
CHECK = jsonschema.Draft202012Validator(recipe_schema())


def mistakes(whole) -> list[str]:
    return [error.message for error in CHECK.iter_errors(whole)]


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(recipe_schema())


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_every_recipe_is_valid_as_written_and_as_resolved(path):
    assert not mistakes(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert not mistakes(yaml.safe_load(dump_recipe(load_recipe(path))))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_valid_and_a_misspelt_key_of_it_is_not(tmp_path, method):
    whole = yaml.safe_load(dump_recipe(recipe_of(mapping(tmp_path, method, data={"text": "text.txt"}))))
    assert not mistakes(whole)
    for section in ("method", "student", "data", "train", "evaluation"):
        assert mistakes({**whole, section: {**whole[section], "learning_rat": 1}})


def test_wrong_values_and_missing_keys_are_mistakes(tmp_path):
    whole = mapping(tmp_path, "gkd")
    assert not mistakes(whole)
    assert mistakes({**whole, "method": {"name": "gdk"}})
    assert mistakes({**whole, "method": {"student_fraction": 0.5}})
    assert mistakes({**whole, "method": {"name": "gkd", "student_fraction": 1.5}})
    assert mistakes({**whole, "train": {**whole["train"], "batch_size": 0}})
    assert mistakes({**whole, "tran": {}})
    assert mistakes({name: value for name, value in whole.items() if name != "student"})


def test_keys_come_with_their_documentation():
    definitions = recipe_schema()["$defs"]
    for section in ("Train", "Data", "Decoding"):
        for name, key in definitions[section]["properties"].items():
            path = {"Train": f"train.{name}", "Data": f"data.{name}"}.get(section, f"evaluation.decoding.{name}")
            assert " ".join(key["description"].split()) == recipe_keys("sft")[path].text


def test_the_command_prints_or_writes_it(tmp_path, capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == recipe_schema()
    assert main(["schema", "--out", str(tmp_path / "recipe.json")]) == 0
    assert json.loads((tmp_path / "recipe.json").read_text(encoding="utf-8")) == recipe_schema()
