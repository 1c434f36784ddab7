"""Quantised teachers: what they compute against the libraries' documented rounding in float64, and what is refused."""

import json
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from scipy.stats import norm
from tests.quantised import KINDS, SILENT, each_kind, load, recipe_for, save_quantised, spec, stored_bytes, write_model
from tests.tiny import mapping
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

from tutelage import config
from tutelage.errors import InputError
from tutelage.models import adapters, loading, quantising
from tutelage.models.identity import weights_identity
from tutelage.models.language_model import LanguageModel
from tutelage.models.pairing import pair_notes, same_weights_note
from tutelage.models.skeleton import load_skeleton
from tutelage.recipe import recipe_of
from tutelage.rollouts.rollout import Rollout
from tutelage.training.run import train
from tutelage.training.setup import first_checks

TEXT = Rollout.of([(3, 4, 5), (6,), (7, 8, 9, 10)], [(9, 10, 1), (11, 12, 13, 14), (15, 1)])


# What it computes


def steps_of_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's weights in steps of its largest size over 127.5, and the steps: −128 to 127 of them are to be had."""
    step = weight.abs().amax(1, keepdim=True) / 127.5
    return weight / step, step


def to_nf4(weight: torch.Tensor) -> torch.Tensor:
    """Blocks of 64 over their largest size, each number the nearest of sixteen quantiles of the normal distribution."""
    offset = 0.9677083  # arXiv 2305.14314, appendix E: eight values above zero, seven below, and zero
    above, below = (norm.ppf(torch.linspace(offset, 0.5, n, dtype=torch.float64)[:-1]) for n in (9, 8))
    values = torch.tensor([*-below, 0.0, *above], dtype=torch.float64).sort().values
    blocks = weight.reshape(-1, 64)
    size = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks / size).unsqueeze(-1).sub(values / values.max()).abs().argmin(-1)
    return ((values / values.max())[nearest] * size).reshape(weight.shape)


def unpacked(layer: nn.Module) -> torch.Tensor:
    """A quantised layer's weights, read off by multiplying with the unit vectors."""
    return layer(torch.eye(layer.in_features)).T.double() - (0 if layer.bias is None else layer.bias[:, None].double())


@each_kind
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_weights_are_rounded_as_documented_and_everything_else_is_as_it_was(tmp_path, kind, family):
    folder = write_model(tmp_path / family, family=family)
    whole, found = load(folder), load(folder, kind)
    layers = {name: layer for name, layer in found.named_modules() if isinstance(layer, nn.Linear)}
    for name, layer in layers.items():
        weight, rounded = whole.get_submodule(name).weight.double(), unpacked(layer)
        if name == "lm_head" or (kind == "nf4" and name.endswith(".wo")):  # which transformers keeps for T5
            assert torch.equal(rounded, weight), name
        elif kind == "int8":
            wanted, step = steps_of_int8(weight)
            steps = rounded / step
            assert (steps - steps.round()).abs().max() < 1e-3, name
            assert (steps.round() >= -128).all(), name
            assert (steps.round() <= 127).all(), name
            assert (steps - wanted).abs().max() < 0.5 + 1e-3, name
            assert (steps - wanted).abs().max() > 0.4, name
        else:
            assert (rounded - to_nf4(weight)).abs().max() < 2e-4 * weight.abs().max(), name
    for name, weight in whole.named_parameters():
        if name.rpartition(".")[0] not in layers:
            assert torch.equal(weight, found.get_parameter(name)), name


@each_kind
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_hidden_states_are_those_of_the_rounded_weights(tmp_path, kind, family):
    folder = write_model(tmp_path / family, family=family)
    whole, found = load(folder), load(folder, kind)
    auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    exact = auto.from_pretrained(folder, dtype=torch.float64).eval()
    for name, layer in found.named_modules():
        if isinstance(layer, nn.Linear):
            exact.get_submodule(name).weight.data = unpacked(layer)
    wanted = LanguageModel(exact).hidden(TEXT)
    scale = wanted.abs().max()
    assert (LanguageModel(found).hidden(TEXT) - wanted).abs().max() < 2e-5 * scale
    assert (LanguageModel(whole).hidden(TEXT) - wanted).abs().max() > 1e-3 * scale  # so that rounding counts


@each_kind
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_head_and_embeddings_keep_every_bit(tmp_path, kind, tied, dtype):
    folder = write_model(tmp_path / "teacher", tie_word_embeddings=tied)
    whole, found = load(folder, dtype=dtype), load(folder, kind, dtype=dtype)
    head = LanguageModel(found).head
    assert head.weight.dtype == getattr(torch, dtype)
    assert torch.equal(head.weight, LanguageModel(whole).head.weight)
    assert torch.equal(found.get_input_embeddings().weight, whole.get_input_embeddings().weight)
    assert (found.get_input_embeddings().weight is head.weight) == tied
    assert found.num_parameters() == whole.num_parameters()


@each_kind
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_it_takes_the_bytes_that_were_foretold(tmp_path, kind, family):
    folder = write_model(tmp_path / family, family=family)
    skeleton = load_skeleton(spec(folder, kind), "teacher")
    whole, less = stored_bytes(load(folder)), stored_bytes(load(folder, kind))
    assert quantising.weight_bytes(skeleton) == whole
    assert quantising.weight_bytes(skeleton, kind) == less  # pyright: ignore
    assert less < 0.6 * whole


@each_kind
def test_looking_at_its_weights_leaves_it_as_it_is(tmp_path, kind):
    """bitsandbytes repacks weights in the first pass on some CPUs, and spoils them at the next look."""
    folder = write_model(tmp_path / "teacher")
    model = load(folder, kind)
    found, language_model = loading.fingerprint(model), LanguageModel(model)
    before = language_model.hidden(TEXT)
    assert loading.fingerprint(model) == found
    assert torch.equal(language_model.hidden(TEXT), before)


# Which teacher it is


@each_kind
def test_it_is_another_teacher_than_with_all_bits_and_always_the_same(tmp_path, kind):
    folder = write_model(tmp_path / "teacher")
    assert loading.fingerprint(load(folder, kind)) == loading.fingerprint(load(folder, kind))
    assert loading.fingerprint(load(folder, kind)) != loading.fingerprint(load(folder))
    other = "nf4" if kind == "int8" else "int8"
    names = {weights_identity(spec(folder, one), "teacher") for one in ("none", kind, other)}
    assert len(names) == 3
    plain = config.Model(model=str(folder))
    assert weights_identity(plain, "teacher") == weights_identity(spec(folder), "teacher")


@each_kind
def test_a_student_on_the_same_model_has_weights_of_its_own(tmp_path, kind):
    pytest.importorskip("peft")
    folder = write_model(tmp_path / "both")
    student, teacher = config.Model(model=str(folder), device="cpu", adapter=config.Adapter()), spec(folder, kind)
    assert adapters.is_on(student, spec(folder))
    assert not adapters.is_on(student, teacher)
    assert same_weights_note(student, spec(folder)) is not None
    assert same_weights_note(student, teacher) is None
    model = loading.load_model(student, "student", seed=0, teacher=load(folder, kind))
    assert torch.equal(LanguageModel(model).hidden(TEXT), LanguageModel(load(folder)).hidden(TEXT))


@each_kind
def test_weights_that_share_a_byte_are_all_counted(tmp_path, kind):
    folder = write_model(tmp_path / "both")
    small, large = load(folder), load(folder, kind)
    tokenizer = loading.load_tokenizer(spec(folder), "student")
    assert pair_notes(small, large, tokenizer, tokenizer) == []


# What is stored quantised


@each_kind
def test_a_folder_that_is_stored_quantised_loads_as_it_is(tmp_path, kind):
    folder = write_model(tmp_path / "whole")
    stored = save_quantised(folder, kind, tmp_path / "stored")
    assert torch.equal(LanguageModel(load(stored)).hidden(TEXT), LanguageModel(load(folder, kind)).hidden(TEXT))
    assert loading.stored_method_at(loading.locate(str(stored), "teacher"), False) == quantising.LIBRARIES[kind]
    whole = recipe_for(tmp_path, "gkd", "none", train={"steps": 2}, teacher={"model": str(stored)})
    train(recipe_of(whole), **SILENT)
    with pytest.raises(InputError, match=r"it is stored quantised \(\w+\) and loads as it is; leave teacher.quantize"):
        load(stored, kind)


@each_kind
def test_an_adapter_on_a_stored_quantised_base_teaches(tmp_path, kind):
    peft = pytest.importorskip("peft")
    stored = save_quantised(write_model(tmp_path / "whole"), kind, tmp_path / "stored")
    settings = peft.LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    model = peft.get_peft_model(load(stored), settings)
    model.save_pretrained(tmp_path / "adapter")
    found = LanguageModel(load(tmp_path / "adapter")).hidden(TEXT)
    assert torch.equal(found, LanguageModel(model).hidden(TEXT))
    assert not torch.allclose(found, LanguageModel(load(stored)).hidden(TEXT), atol=1e-2)


@each_kind
def test_a_folder_that_is_stored_quantised_needs_its_library(tmp_path, kind, monkeypatch):
    stored = save_quantised(write_model(tmp_path / "whole"), kind, tmp_path / "stored")
    _uninstall(kind, monkeypatch)
    with pytest.raises(InputError, match=r"missing here or too old: pip install 'tutelage\[quantised\]'"):
        load(stored)


@pytest.mark.parametrize(("method", "library"), [("gptq", "optimum"), ("compressed-tensors", "compressed_tensors")])
def test_other_libraries_are_named_by_transformers(tmp_path, method, library):
    if find_spec(library) is not None:
        pytest.skip(f"{library} is installed here")
    folder = write_model(tmp_path / "stored")
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 32}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"the teacher '.*' cannot be loaded: .*`pip install"):
        load(folder)


def test_a_quantised_head_is_refused(tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = write_model(tmp_path / "whole")
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["none"])
    stored = write_model(tmp_path / "stored")
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings).save_pretrained(stored)
    with pytest.raises(InputError, match="has a quantised output head, which the losses read as it is"):
        load(stored)


# What is refused


def _uninstall(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantising, f"is_{quantising.LIBRARIES[kind]}_available", lambda: False)


@pytest.mark.parametrize("missing", KINDS)
def test_the_missing_library_is_named(tmp_path, monkeypatch, missing):
    folder = write_model(tmp_path / "teacher")
    _uninstall(missing, monkeypatch)
    for look in (load, lambda *given: load_skeleton(spec(*given), "teacher")):
        with pytest.raises(InputError, match=f"is quantised by {quantising.LIBRARIES[missing]}, and that or"):
            look(folder, missing)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"teacher": {"quantize": "int3"}}, "int8"),
        ({"teacher": {"quantize": "int8", "url": "http://localhost:1/v1"}}, "quantised by its server: leave quantize"),
        ({"teacher": {"quantize": "int8", "model": None, "from_config": {}}}, "quantize is for stored weights"),
        ({"student": {"quantize": "int8"}}, "quantize"),
    ],
)
def test_recipes_that_cannot_be_meant(tmp_path, sections, message):
    with pytest.raises(InputError, match=message):
        recipe_of(mapping(tmp_path, "gkd", **sections))


def complaint(recipe) -> str:
    with pytest.raises(InputError) as found:
        _ = [check() for check in first_checks(recipe)]
    return str(found.value)


@each_kind
@pytest.mark.parametrize("is_stored", [False, True])
def test_weights_that_are_needed_as_they_were(tmp_path, kind, is_stored):
    whole = recipe_for(tmp_path, "gkd", "none")
    teacher: dict[str, Any] = {**whole["teacher"], "quantize": kind}
    if is_stored:
        teacher = {"model": str(save_quantised(tmp_path / "llama-teacher", kind, tmp_path / "stored"))}
    copied = {**whole, "teacher": teacher, "student": {"from_teacher": {"layers": [0]}}}
    assert "student.from_teacher needs the weights as they were; name a student.model" in complaint(recipe_of(copied))
    cut = {**whole, "teacher": teacher, "train": {**whole["train"], "shard": "both"}}
    assert "train.shard needs the weights as they were; use train.shard: student" in complaint(recipe_of(cut))


@each_kind
@pytest.mark.parametrize("with_adapter", [False, True])
def test_a_quantised_student_is_refused(tmp_path, kind, with_adapter):
    whole = mapping(tmp_path, "gkd")
    base = write_model(tmp_path / "base", seed=1)
    student: dict[str, Any] = {"model": str(save_quantised(base, kind, tmp_path / "stored"))}
    if with_adapter:
        student["adapter"] = {"rank": 2}
    message = complaint(recipe_of({**whole, "student": student}))
    assert "is stored quantised" in message
    assert "a student learns with all bits of its weights" in message


def test_an_adapter_and_a_gguf_file_are_not_quantised(tmp_path):
    peft = pytest.importorskip("peft")
    folder = write_model(tmp_path / "base")
    model = peft.get_peft_model(load(folder), peft.LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="it is an adapter; merge it into its base"):
        load(tmp_path / "adapter", "int8")
    (tmp_path / "tiny.gguf").write_bytes(b"")
    with pytest.raises(InputError, match="it is a GGUF file; name the folder or hub id that it was made from"):
        load(tmp_path / "tiny.gguf", "nf4")


def test_a_model_without_layers_of_its_kind(tmp_path):
    """GPT-2's layers are stored the other way round, which torchao leaves alone."""
    pytest.importorskip("torchao")
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=22)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(InputError, match=r"has no linear layer that int8 is for; try another teacher\.quantize"):
        load(tmp_path / "gpt2", "int8")


@pytest.mark.parametrize("narrow", [{"hidden_size": 48}, {"intermediate_size": 80}])
def test_rows_that_bitsandbytes_unpacks_wrongly_on_a_cpu(tmp_path, narrow):
    pytest.importorskip("bitsandbytes")
    folder = write_model(tmp_path / "teacher", **narrow)
    with pytest.raises(InputError, match=rf"linear layers that read {next(iter(narrow.values()))} numbers, and bits"):
        load(folder, "nf4")
    load(folder, "int8")
