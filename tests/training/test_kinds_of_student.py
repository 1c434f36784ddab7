"""Students of every kind with every method: adapters, of which nothing else learns, and encoder-decoder models."""

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import mapping, tokenizer
from tests.training.test_run import SILENT, stop_after
from transformers import AutoModelForCausalLM

from tutelage.errors import Stopped
from tutelage.methods import METHODS
from tutelage.recipe import recipe_of
from tutelage.training.run import train

peft = pytest.importorskip("peft")


@pytest.fixture
def adapter(tmp_path):
    """A fresh LoRA adapter on the tiny student."""
    mapping(tmp_path, "sft")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "llama-student")
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(0)
    peft.get_peft_model(base, settings).save_pretrained(tmp_path / "adapter")
    tokenizer().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("method", ["supervised-kd", "gkd"])
def test_only_the_adapter_learns_and_resumes_bit_for_bit(tmp_path, monkeypatch, adapter, method):
    def recipe(name):
        return recipe_of(mapping(tmp_path, method, student={"model": str(adapter)}, output=str(tmp_path / name)))

    whole = train(recipe("whole"), **SILENT)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            train(recipe("interrupted"), **SILENT)
    resumed = train(recipe("interrupted"), **SILENT)
    first, second = (load_file(run.model / "adapter_model.safetensors") for run in (whole, resumed))
    start = load_file(adapter / "adapter_model.safetensors")
    assert first.keys() == second.keys() == start.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], start[name]) for name in first)
    assert not (whole.model / "model.safetensors").exists()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_an_adapter(tmp_path, adapter, method):
    recipe = recipe_of(mapping(tmp_path, method, student={"model": str(adapter)}, train={"steps": 2}, evaluation={}))
    run = train(recipe, **SILENT)
    after, before = load_file(run.model / "adapter_model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    assert any(not torch.equal(after[name], before[name]) for name in after)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_an_encoder_decoder_model(tmp_path, method):
    recipe = recipe_of(mapping(tmp_path, method, "t5", train={"steps": 2}, data={"max_tokens": 50}))
    run = train(recipe, **SILENT)
    after = load_file(run.model / "model.safetensors")
    before = load_file(tmp_path / "t5-student" / "model.safetensors")
    assert any(not torch.equal(after[name], before[name]) for name in after)
