"""The model card: true of the run, fit for a hub, and silent about this machine."""

import json
from pathlib import Path

import pytest
import yaml
from tests.tiny import mapping, write_rows

from tutelage.recipe import recipe_of
from tutelage.training.export import is_exported
from tutelage.training.run import train


def trained(folder, method="gkd", kind="llama", **sections):
    evaluation = {"metrics": ["loss"], "decoding": {"max_new_tokens": 3}, "samples": 1}
    return train(
        recipe_of(mapping(folder, method, kind, **{"evaluation": evaluation, **sections})), report=lambda line: None
    )


def front_matter(card):
    _, fields, _ = card.split("---\n", 2)
    return yaml.safe_load(fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("card")


def test_the_card_says_what_is_true(folder):
    run = trained(folder)
    card = (run.model / "README.md").read_text(encoding="utf-8")
    assert front_matter(card) == {
        "license": "unknown",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["knowledge-distillation", "tutelage", "gkd"],
    }
    assert "license: unknown  # fill in\n" in card
    for expected in (
        "| teacher | llama-teacher |",
        "| student | begins as llama-student |",
        "| training | rows.jsonl | 30 | 30 | 0 |",
        "| validation | rows.jsonl | 6 | 6 | 0 |",
        "| `method.student_decoding.max_new_tokens` | `5` |",
        "| `train.learning_rate` | `0.01` |",
        "AutoModelForCausalLM",
    ):
        assert expected in card
    for evaluation in run.evaluations:
        found = evaluation["metrics"]["loss"]
        assert f"{found['value']:.3g} ({found['low']:.3g}–{found['high']:.3g})" in card


def test_neither_paths_nor_secrets_are_in_it(folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "jsonlsecretvalue")
    rows = write_rows(folder / "rows-of-jsonlsecretvalue.jsonl")
    run = trained(folder, "sft", data={"train": str(rows)}, output=str(folder / "secret"))
    card = (run.model / "README.md").read_text(encoding="utf-8")
    assert str(folder) not in card
    assert str(Path.home()) not in card
    assert "jsonlsecretvalue" not in card
    assert "teacher |" not in card  # fine-tuning had none


def test_a_card_that_was_filled_in_stays_as_it_is(folder):
    run = trained(folder, "sft", output=str(folder / "kept"))
    card = run.model / "README.md"
    card.write_text("licence: mine", encoding="utf-8")
    assert is_exported(run.model, 6)
    trained(folder, "sft", output=str(folder / "kept"))
    assert card.read_text(encoding="utf-8") == "licence: mine"
    assert "README.md" not in json.loads((run.model / "MANIFEST.json").read_text())["files"]


def test_an_encoder_decoder_says_so(folder):
    card = (trained(folder, "sft", "t5", output=str(folder / "t5")).model / "README.md").read_text(encoding="utf-8")
    assert front_matter(card)["pipeline_tag"] == "text2text-generation"
    assert "AutoModelForSeq2SeqLM" in card
