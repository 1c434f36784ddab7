"""Cut models are written by all processes, each some of the files, and are the whole model's to the last bit."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.distributed.launch import HERE, environment, torchrun, written_jobs
from tests.tiny_models import DECODER_ONLY, build
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from tutelage.config import Model
from tutelage.models.loading import load_model
from tutelage.sealing import Seal

FILE_BYTES = 4000
"""Several files for a model of some thousand weights, in several rounds."""


def mixture(folder: Path) -> Path:
    """A mixture of experts, whose weights are stored expert by expert, and held as one tensor."""
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(5)
    MixtralForCausalLM(MixtralConfig(**sizes, vocab_size=50, num_local_experts=4)).save_pretrained(folder)
    return folder


def stored(folder: Path, stem: str = "model") -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob(f"{stem}*.safetensors")):
        tensors = load_file(path)
        assert not found.keys() & tensors.keys()
        found |= tensors
    return found


def write(folder: Path, jobs: list[dict], processes: int = 2) -> list[list[dict]]:
    """What each process wrote of each model."""
    command = [*torchrun(processes), str(HERE / "writing.py"), str(written_jobs(folder, jobs))]
    done = subprocess.run(command, env=environment(), timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        [json.loads((folder / f"wrote-{number}-{rank}.json").read_text()) for rank in range(processes)]
        for number in range(len(jobs))
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    for name in DECODER_ONLY:
        build(name, 3, dtype=torch.float32).save_pretrained(folder / name)
    mixture(folder / "mixtral")
    names = [*DECODER_ONLY, "mixtral"]
    jobs = [
        {"model": str(folder / name), "to": str(folder / f"{name}-written"), "file_bytes": FILE_BYTES} for name in names
    ]
    one_file = {"model": str(folder / "gpt2"), "to": str(folder / "gpt2-one-file"), "file_bytes": 2**30}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 32, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=50)).save_pretrained(folder / "deep")
    deep = {"model": str(folder / "deep"), "to": str(folder / "deep-written"), "file_bytes": 100_000}
    found = write(folder, [*jobs, one_file, deep])
    return folder, dict(zip([*names, "one-file", "deep"], found, strict=True))


@pytest.mark.parametrize("name", [*DECODER_ONLY, "mixtral"])
def test_what_two_processes_write_is_what_transformers_writes(written, name):
    folder, _ = written
    there, here = stored(folder / f"{name}-written"), stored(folder / name)
    assert there.keys() == here.keys()
    assert all(torch.equal(there[key], here[key]) for key in here)
    weights = [dict(load_model(Model(model=str(folder / each)), "student", seed=0).named_parameters())
               for each in (name, f"{name}-written")]  # fmt: skip
    assert all(torch.equal(one, two) for one, two in zip(*(w.values() for w in weights), strict=True))
    moments = stored(folder / f"{name}-written", "optimizer")
    assert moments.pop("step") == 3
    assert moments.keys() == {f"moments.{key}" for key in weights[0]}
    assert all(torch.equal(moments[f"moments.{key}"], 2 * weight) for key, weight in weights[0].items())


def test_each_process_writes_its_share_of_the_files_and_knows_all_seals(written):
    folder, found = written
    for name in (*DECODER_ONLY, "mixtral"):
        first, second = found[name]
        on_disk = {path.name for path in (folder / f"{name}-written").glob("*.safetensors")}
        assert sorted(first["mine"] + second["mine"]) == sorted(on_disk)
        assert abs(len(first["mine"]) - len(second["mine"])) <= 2
        assert first["files"] == second["files"]
        assert first["files"].keys() == on_disk
        for file, (sha256, sizes) in first["files"].items():
            assert Seal.of(folder / f"{name}-written" / file).sha256 == sha256
            with safe_open(folder / f"{name}-written" / file, framework="pt") as opened:
                assert sizes == {key: opened.get_tensor(key).nbytes for key in opened.keys()}  # noqa: SIM118
                assert opened.metadata() == {"format": "pt"}


def test_the_layers_of_a_file_are_whole(written):
    folder, _ = written
    layers = [
        {".".join(key.split(".")[:3]) for key in load_file(path) if ".layers." in key}
        for path in sorted((folder / "mixtral-written").glob("model-*.safetensors"))
    ]
    named = [layer for file in layers for layer in file]
    assert sorted(named) == ["model.layers.0", "model.layers.1"]


def test_what_fits_is_one_file_without_an_index(written):
    folder, found = written
    names = {path.name for path in (folder / "gpt2-one-file").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "optimizer.safetensors"}
    assert found["one-file"][1]["mine"] == []


def test_no_process_collects_the_model(written):
    folder, found = written
    size = sum(tensor.nbytes for tensor in stored(folder / "deep").values())
    for process in found["deep"]:
        assert len(process["mine"]) >= 30
        # A layer is a file. Some are held at a time, and what another thread frees is not counted as free.
        assert process["most"] < size / 4


@pytest.mark.slow
def test_the_files_are_the_same_whatever_the_number_of_processes(written, tmp_path):
    folder, found = written
    job, wanted = {"model": str(folder / "llama"), "file_bytes": FILE_BYTES}, found["llama"][0]["files"]
    (three,) = write(tmp_path, [{**job, "to": str(tmp_path / "by-3")}], processes=3)
    assert all(process["files"] == wanted for process in three)
    ((one,),) = write(tmp_path, [{**job, "to": str(tmp_path / "by-1")}], processes=1)
    assert one["files"] == {name: file for name, file in wanted.items() if name.startswith("optimizer")}
    there, here = stored(tmp_path / "by-1"), stored(folder / "llama")  # a whole model is written by transformers
    assert there.keys() == here.keys()
    assert all(torch.equal(there[key], here[key]) for key in here)
