"""Runs that begin an adapter: resumed, merged, and with the base as the teacher."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import mapping
from tests.training.test_run import SILENT, stop_after
from transformers import AutoModelForCausalLM

from tutelage.errors import InputError, Stopped
from tutelage.recipe import recipe_of
from tutelage.training.run import train

peft = pytest.importorskip("peft")
IDS = torch.tensor([[3, 4, 5, 6, 7, 8]])


def recipe(folder, name, method="supervised-kd", **sections):
    whole = mapping(folder, method, output=str(folder / name), **sections)
    whole["student"] |= {"adapter": {"rank": 2, "targets": ["q_proj", "v_proj"]}}
    return whole


def of_itself(whole):
    return {**whole, "teacher": {"model": whole["student"]["model"]}}


@pytest.mark.parametrize("own", [False, True], ids=["teacher", "own-base"])
def test_resumes_bit_for_bit(tmp_path, monkeypatch, own):
    def wanted(name):
        whole = recipe(tmp_path, name, "gkd")
        return recipe_of(of_itself(whole) if own else whole)

    whole = train(wanted("whole"), **SILENT)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            train(wanted("interrupted"), **SILENT)
    resumed = train(wanted("interrupted"), **SILENT)
    first, second = (load_file(run.model / "adapter_model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(weight.abs().max() > 0 for name, weight in first.items() if "lora_B" in name)


def test_the_adapter_loads_from_any_folder_as_its_card_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = recipe(tmp_path, "apart", train={"steps": 1})
    whole["student"]["model"] = "llama-student"
    found = train(recipe_of(whole), **SILENT)
    card = (found.model / "README.md").read_text(encoding="utf-8")
    code = card.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir("/")
    said: dict = {}
    exec(code.replace("path/to/this/folder", str(found.model)), said)
    assert isinstance(said["model"], peft.PeftModel)


def test_the_merged_model_is_whole_and_equals_the_adapted_one(tmp_path):
    apart = train(recipe_of(recipe(tmp_path, "apart")), **SILENT)
    merged = train(recipe_of(recipe(tmp_path, "merged", train={"merge_adapter": True})), **SILENT)
    assert not (merged.model / "adapter_config.json").exists()
    one = AutoModelForCausalLM.from_pretrained(merged.model)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "llama-student")
    start = base(IDS).logits
    two = peft.PeftModel.from_pretrained(base, str(apart.model)).merge_and_unload()
    torch.testing.assert_close(one(IDS).logits, two(IDS).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(one(IDS).logits, start, atol=1e-3)
    assert (merged.model / "tokenizer.json").exists()


def test_the_base_as_teacher_is_what_a_copy_of_it_is(tmp_path):
    """Weights in common or apart: the same losses at each step, to the last bit."""
    import shutil

    whole = of_itself(
        recipe(tmp_path, "shared", train={"steps": 4}) | {"method": {"name": "supervised-kd", "cross_entropy": 0.5}}
    )
    shutil.copytree(whole["student"]["model"], tmp_path / "copy")
    apart = whole | {"teacher": {"model": str(tmp_path / "copy")}, "output": str(tmp_path / "apart")}
    runs = [train(recipe_of(one), **SILENT) for one in (whole, apart)]
    lines = [[json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()] for run in runs]
    losses = [[line["loss"] for line in rows if "loss" in line] for rows in lines]
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][-1]


def test_teachers_begin_no_adapter(tmp_path):
    whole = recipe(tmp_path, "run")
    with pytest.raises(InputError, match="a teacher does not learn"):
        recipe_of(whole | {"teacher": {**whole["teacher"], "adapter": {}}})
