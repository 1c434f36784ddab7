"""Loading tiny random models: from folders, configurations, teachers, adapters and GGUF files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import httpx
from tests.models.tiny import (
    FAMILIES,
    SIZES,
    TOKENIZER,
    fresh,
    letters,
    logits,
    spread,
    stored,
)
from transformers import (
    AutoConfig,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    ByT5Tokenizer,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from tutelage import config
from tutelage.errors import InputError
from tutelage.models import loading, sources

# From a configuration


@pytest.mark.parametrize("kind", FAMILIES)
def test_fresh_weights_depend_on_the_seed_alone(kind):
    torch.manual_seed(5)
    first = fresh(kind, seed=7)
    torch.manual_seed(6)
    before = torch.random.get_rng_state()
    second, third = fresh(kind, seed=7), fresh(kind, seed=8)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert loading.fingerprint(first) == loading.fingerprint(second) != loading.fingerprint(third)
    assert not first.training


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bart"])
def test_fresh_model_takes_sizes_and_ids_from_the_tokenizer(kind):
    settings = fresh(kind).config
    assert (settings.vocab_size, settings.eos_token_id, settings.pad_token_id) == (64, 61, 62)
    if settings.is_encoder_decoder:
        assert settings.decoder_start_token_id == 62


def test_fresh_model_never_pads_with_a_token_of_its_own():
    backend = letters()
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")
    assert fresh("llama", bare).config.pad_token_id is None
    bart = fresh("bart", PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    assert bart.model.shared.padding_idx is None
    assert bart.generation_config.decoder_start_token_id == 61


def test_fresh_sizes_in_the_recipe_win():
    assert fresh("llama", vocab_size=72).lm_head.weight.shape == (72, 16)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_type": "lama"}, "no model_type that transformers knows; did you mean 'llama'"),
        ({"hidden_size": 16}, "no model_type"),
        ({"model_type": "llama", "hiden_size": 16}, "unknown key 'hiden_size'; did you mean 'hidden_size'"),
        ({"model_type": "llama", "hidden_size": "16"}, "expected int, got str"),
        ({"model_type": "llama", "vocab_size": 63}, "vocab_size 63, but the tokenizer has 64 tokens"),
        ({"model_type": "bert"}, "bert encoder, whose tokens see the ones after them"),
        ({"model_type": "vit"}, "vit model, which does not write text"),
    ],
)
def test_mistaken_configuration_is_refused_in_one_line(given, message):
    spec = config.Model(from_config=given, device="cpu")
    with pytest.raises(InputError, match=message) as raised:
        loading.load_model(spec, "student", seed=0, tokenizer=TOKENIZER)
    assert "\n" not in str(raised.value)


def test_fresh_model_needs_a_vocabulary():
    spec = config.Model(from_config={"model_type": "llama"}, device="cpu")
    with pytest.raises(InputError, match="needs vocab_size"):
        loading.load_model(spec, "student", seed=0)


# From a folder


@pytest.mark.parametrize("kind", FAMILIES)
def test_folder_gives_back_the_same_model(kind, tmp_path):
    model = spread(fresh(kind))
    model.save_pretrained(tmp_path)
    student, teacher = stored(tmp_path), stored(tmp_path, "teacher")
    assert torch.equal(logits(student), logits(model))
    assert loading.fingerprint(student) == loading.fingerprint(teacher) == loading.fingerprint(model)
    assert all(p.requires_grad for p in student.parameters())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_dtype_comes_from_the_recipe(tmp_path):
    fresh("llama").save_pretrained(tmp_path)
    assert {p.dtype for p in stored(tmp_path, dtype="bfloat16").parameters()} == {torch.bfloat16}


def test_tokenizer_beside_the_weights_or_named(tmp_path):
    TOKENIZER.save_pretrained(tmp_path / "there")
    beside = loading.load_tokenizer(config.Model(model=str(tmp_path / "there")), "teacher")
    named = config.Model(from_config={"model_type": "llama"}, tokenizer=str(tmp_path / "there"))
    assert beside.get_vocab() == loading.load_tokenizer(named, "student").get_vocab() == TOKENIZER.get_vocab()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_missing_tokenizer_is_not_an_empty_one(kind, tmp_path):
    fresh(kind).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"the student has no tokenizer: .*set student.tokenizer"):
        loading.load_tokenizer(config.Model(model=str(tmp_path)), "student")
    spec = config.Model(from_config={"model_type": kind}, tokenizer=str(tmp_path))
    with pytest.raises(InputError, match=r"the teacher has no tokenizer: .*set teacher.tokenizer"):
        loading.load_tokenizer(spec, "teacher")


def test_tokenizer_of_bytes_has_no_files(tmp_path):
    ByT5Tokenizer().save_pretrained(tmp_path)
    assert loading.load_tokenizer(config.Model(model=str(tmp_path)), "student").encode("a") == [100, 1]


def test_fresh_model_without_tokenizer_is_refused():
    with pytest.raises(InputError, match=r"the student has no tokenizer: from_config .* set student.tokenizer"):
        loading.load_tokenizer(config.Model(from_config={"model_type": "llama"}), "student")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "nowhere.gguf", "../x/y", "{tmp}/runs/nothing"])
def test_path_that_does_not_exist(name, tmp_path):
    name = name.format(tmp=tmp_path)
    with pytest.raises(InputError, match=r"the student '.*' does not exist: no such (folder|file)"):
        stored(name)
    with pytest.raises(InputError, match="does not exist"):
        loading.load_tokenizer(config.Model(model=name), "student")


def test_relative_path_below_an_existing_folder_is_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match="no such folder"):
        stored("runs/first")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused_unopened(name, tmp_path):
    model = fresh("llama")
    model.config.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR.")
    with pytest.raises(InputError, match=rf"only pickled weights \({name}\).*convert"):
        stored(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(InputError, match=r"has no config.json.*expected config.json and \*.safetensors"):
        stored(tmp_path)
    (tmp_path / "weights.gguf").touch()
    with pytest.raises(InputError, match=r"point to the file: .*weights.gguf"):
        stored(tmp_path)
    fresh("llama").config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"needs its weights as \*.safetensors and holds none"):
        stored(tmp_path)
    with pytest.raises(InputError, match="is a single file; give its folder"):
        stored(tmp_path / "config.json")


def test_truncated_weights_are_refused(tmp_path):
    fresh("llama").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"the student '.*' cannot be loaded: "):
        stored(tmp_path)


def test_weights_of_another_size_are_refused(tmp_path):
    fresh("llama").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "intermediate_size": 32}))
    with pytest.raises(InputError, match="cannot be loaded: "):
        stored(tmp_path)


def test_models_that_do_not_write_text_are_refused(tmp_path):
    sizes = {**SIZES, "vocab_size": 64}
    BertForMaskedLM(BertConfig(**sizes)).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match=r"is a bert encoder.*such as Llama or T5"):
        stored(tmp_path / "bert")
    BertModel(BertConfig(**sizes, is_decoder=True)).save_pretrained(tmp_path / "headless-bert")
    LlamaModel(AutoConfig.for_model("llama", **sizes)).save_pretrained(tmp_path / "headless")
    for name in ("headless-bert", "headless"):
        with pytest.raises(InputError, match=r"lacks \d+ weights of a .*which would be random"):
            stored(tmp_path / name)


def test_remote_code_is_refused_without_a_question(tmp_path):
    fresh("llama").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    own = {"model_type": "ours", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (tmp_path / "config.json").write_text(json.dumps(settings | own))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\n")
    script = (
        "import sys; from tutelage import config; from tutelage.models import loading\n"
        "from tutelage.errors import InputError\n"
        "try: loading.load_model(config.Model(model=sys.argv[1], device='cpu'), 'student', seed=0)\n"
        "except InputError as error: print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(loading.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], input="y\n", capture_output=True, text=True,
        timeout=240, env=environment, check=True,
    )  # fmt: skip
    assert "give --student.trust-remote-code" in done.stdout
    assert "[y/N]" not in done.stdout + done.stderr
    assert not (tmp_path / "owned").exists()


def test_devices_that_are_not_there():
    for name, message in (("cuda:99", "PyTorch sees"), ("gpu", "expected auto, cpu, cuda")):
        spec = config.Model(from_config={"model_type": "llama"}, device=name)
        with pytest.raises(InputError, match=message):
            loading.load_model(spec, "student", seed=0)


# From the hub


def hub_says(monkeypatch, error):
    def answer(*_, **__):
        raise error

    monkeypatch.setattr(HfApi, "model_info", answer)


def response(status):
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/x"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError("no", response=response(403)), "is gated: ask for access .*hf auth login.*HF_TOKEN"),
        (
            RepositoryNotFoundError("no", response=response(404)),
            "neither a folder here nor a model on the hub",
        ),
        (RevisionNotFoundError("no", response=response(404)), "has no revision 'v9'"),
    ],
)
def test_hub_refusals_say_what_to_do(error, message, monkeypatch):
    hub_says(monkeypatch, error)
    with pytest.raises(InputError, match=message):
        stored("owner/name", revision="v9")


def test_hub_out_of_reach_and_nothing_in_the_cache(monkeypatch):
    hub_says(monkeypatch, httpx.ConnectError("Name or service not known"))
    with pytest.raises(InputError, match=r"the hub cannot be reached .*hf download owner/nothing-like-it") as raised:
        stored("owner/nothing-like-it")
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="the hub cannot be reached"):
        loading.load_tokenizer(config.Model(model="owner/nothing-like-it"), "student")


def test_hub_out_of_reach_but_in_the_cache(tmp_path):
    model = fresh("llama")
    snapshot = tmp_path / "models--owner--kept" / "snapshots" / ("a" * 40)
    model.save_pretrained(snapshot)
    TOKENIZER.save_pretrained(snapshot)
    (tmp_path / "models--owner--kept" / "refs").mkdir()
    (tmp_path / "models--owner--kept" / "refs" / "main").write_text("a" * 40)
    script = (
        "from huggingface_hub import HfApi\n"
        "from huggingface_hub.utils import httpx\n"
        "def down(*_, **__): raise httpx.ConnectError('down')\n"
        "HfApi.model_info = down\n"
        "from tutelage import config; from tutelage.models import loading\n"
        "spec = config.Model(model='owner/kept', device='cpu')\n"
        "print(len(loading.load_tokenizer(spec, 'student')))\n"
        "print(loading.fingerprint(loading.load_model(spec, 'student', seed=0)))\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(loading.__file__).parents[2]),
        "HF_HUB_CACHE": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        check=False,
    )
    assert done.stdout.split() == ["64", loading.fingerprint(model)], done.stderr


def test_names_that_are_no_hub_id():
    with pytest.raises(InputError, match="nor a hub id of the form owner/name"):
        sources.locate("a/b/c", "teacher")


# Ends and names


def test_stop_ids_are_the_union_with_the_tokenizers_first():
    model = fresh("llama")
    assert loading.stop_ids(model, TOKENIZER) == (61,)
    model.generation_config.eos_token_id = [63, 9, 61]
    assert loading.stop_ids(model, TOKENIZER) == (61, 9, 63)
    model.config.eos_token_id = 7
    assert loading.stop_ids(model, TOKENIZER) == (61, 7, 9, 63)


def test_without_any_end_of_sequence():
    model = fresh("llama")
    bare = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer)
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    with pytest.raises(InputError, match="no end-of-sequence token is known"):
        loading.stop_ids(model, bare)


def test_fingerprint_sees_one_bit_a_name_a_shape_and_a_type():
    def name_of(**weights):
        return loading.fingerprint(torch.nn.ParameterDict(weights))

    plain = torch.arange(6.0)
    flipped = plain.clone()
    flipped[3] = torch.nextafter(flipped[3], torch.tensor(9.0))
    others = [
        name_of(a=flipped), name_of(b=plain), name_of(a=plain.view(2, 3)), name_of(a=plain.double()),
        name_of(a=plain, b=plain.clone()),
    ]  # fmt: skip
    assert len({name_of(a=plain), *others}) == 6
    assert name_of(a=plain) == name_of(a=plain.clone())
    assert len(name_of(a=plain.bfloat16())) == 16
