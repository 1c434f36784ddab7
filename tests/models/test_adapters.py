"""PEFT adapters as teachers and as students."""

import json

import pytest
import torch
from tests.models.tiny import (
    TOKENIZER,
    fresh,
    logits,
    spread,
    stored,
    student_of,
)
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tutelage import config
from tutelage.errors import InputError
from tutelage.models import loading


@pytest.fixture
def adapter(tmp_path):
    """A folder with an adapter that changes much, its base, and the logits of the two together."""
    peft = pytest.importorskip("peft")
    base = spread(fresh("llama"))
    base.save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    base = stored(tmp_path / "base")
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(base, settings)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", logits(adapted.eval())


def test_adapter_as_teacher(adapter):
    folder, expected = adapter
    teacher = stored(folder, "teacher")
    assert torch.equal(logits(teacher), expected)
    assert not torch.allclose(logits(stored(folder.parent / "base")), expected, atol=1e-2)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_adapter_as_student_trains_nothing_else(adapter):
    folder, expected = adapter
    student = stored(folder)
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    assert len(trained) == 3 * 2 * 2
    assert all("lora_" in name for name in trained)
    assert torch.equal(logits(student), expected)


def test_adapter_takes_the_tokenizer_of_its_base_unless_it_has_one(adapter):
    folder, _ = adapter
    spec = config.Model(model=str(folder))
    assert len(loading.load_tokenizer(spec, "student")) == 64
    longer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(TOKENIZER.backend_tokenizer.to_str()))
    longer.add_tokens(["<tool>"])
    longer.save_pretrained(folder)
    assert len(loading.load_tokenizer(spec, "student")) == 65


def test_student_from_the_layers_of_an_adapted_teacher(adapter):
    folder, expected = adapter
    teacher = stored(folder, "teacher")
    torch.testing.assert_close(logits(student_of(teacher, (0, 1, 2))), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(teacher), expected)


def test_adapters_that_cannot_be_used(adapter):
    folder, _ = adapter
    weights, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    given = json.loads(settings.read_text())
    settings.write_text(json.dumps({**given, "base_model_name_or_path": "./gone"}))
    with pytest.raises(InputError, match=r"student's base model './gone' does not exist.*adapter_config.json"):
        stored(folder)
    settings.write_text(json.dumps({**given, "base_model_name_or_path": None}))
    with pytest.raises(InputError, match="names no base"):
        stored(folder)
    settings.write_text(json.dumps({**given, "target_modules": ["q_proj", "v_proj", "o_proj"]}))
    with pytest.raises(InputError, match="missing adapter keys"):
        stored(folder)
    settings.write_text(json.dumps(given))
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match=r"has no adapter_model.safetensors .*can run code"):
        stored(folder)
    fresh("llama").save_pretrained(folder)
    with pytest.raises(InputError, match="holds both a whole model and an adapter"):
        stored(folder)


def test_prompt_tuning_is_refused(tmp_path):
    peft = pytest.importorskip("peft")
    fresh("llama").save_pretrained(tmp_path / "base")
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(stored(tmp_path / "base"), settings).save_pretrained(tmp_path / "prompt")
    with pytest.raises(InputError, match="adds positions of its own"):
        stored(tmp_path / "prompt")
