"""Cut models are read by the first process alone, and every process has the parts of the whole model."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.distributed.launch import HERE, environment, torchrun, written_jobs
from tests.tiny_models import ARCHITECTURES, build, ragged

from tutelage.config import Model
from tutelage.models.language_model import LanguageModel
from tutelage.models.loading import load_model

JOBS = [
    *((name, "student", "float32") for name in ARCHITECTURES),
    *((name, "teacher", "bfloat16") for name in ("llama", "gemma2", "t5")),
]


def written(folder: Path, name: str, width: int = 16) -> Path:
    """A model, and beside it a folder that has everything but its weights."""
    build(name, 3, width=width, dtype=torch.float32).save_pretrained(folder)
    shutil.copytree(folder, bare(folder), ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def bare(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-bare")


def job(folder: Path, role: str, dtype: str, **more) -> dict:
    return {"model": str(folder), "bare": str(bare(folder)), "role": role, "dtype": dtype, **more}


def loaded(folder: Path, jobs: list[dict], processes: int = 2) -> list[list[dict]]:
    """What each process has of each model."""
    command = [*torchrun(processes), str(HERE / "loading.py"), str(written_jobs(folder, jobs))]
    done = subprocess.run(command, env=environment(), timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [[torch.load(folder / f"found-{number}-{rank}") for rank in range(processes)] for number in range(len(jobs))]


def assert_is(found: dict, job: dict) -> None:
    """What a process has, put together, is the whole model to the last bit."""
    whole = load_model(Model(model=job["model"], dtype=job["dtype"], device="cpu"), job["role"], seed=0)
    weights = dict(whole.named_parameters(remove_duplicate=False))
    shared: dict[int, list[str]] = {}
    for name, parameter in weights.items():
        shared.setdefault(id(parameter), []).append(name)
    assert found["cut"]
    assert found["tied"] == [names for names in shared.values() if len(names) > 1]
    assert found["learns"] == [parameter.requires_grad for parameter in whole.parameters()]
    assert found["stop"] == whole.generation_config.eos_token_id
    for there, here in ((found["weights"], weights), (found["buffers"], dict(whole.named_buffers()))):
        assert there.keys() == here.keys()
        for name in here:
            assert there[name].dtype == here[name].dtype
            assert torch.equal(there[name], here[name]), name
    language = LanguageModel(whole)
    with torch.no_grad():
        logits = language.head.logits(language.hidden(ragged()))
    torch.testing.assert_close(found["logits"], logits, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """Every architecture as a student, three as a teacher in 16 bits."""
    folder = tmp_path_factory.mktemp("cut")
    models = {name: written(folder / name, name) for name in ARCHITECTURES}
    jobs = [job(models[name], role, dtype) for name, role, dtype in JOBS]
    return jobs, loaded(folder, jobs)


@pytest.mark.parametrize("number", range(len(JOBS)), ids=["-".join(each) for each in JOBS])
def test_two_processes_have_the_model_that_only_the_first_can_read(cut, number):
    jobs, found = cut
    for each in found[number]:
        assert_is(each, jobs[number])


def test_the_second_process_never_holds_the_whole_model(tmp_path):
    folder = written(tmp_path / "wide", "llama", width=128)
    size = sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
    ((_, second),) = loaded(tmp_path, [job(folder, "student", "float32")])
    assert size / 2 <= second["most"] < 0.9 * size


def test_a_model_that_is_not_as_its_configuration_says_is_read_by_all(tmp_path):
    """Stored with a head of its own, although the configuration ties it to the embedding."""
    folder = written(tmp_path / "untied", "gpt2")
    weights = load_file(folder / "model.safetensors")
    embedding = next(tensor for name, tensor in weights.items() if name.endswith("wte.weight"))
    save_file({**weights, "lm_head.weight": embedding + 1}, folder / "model.safetensors", {"format": "pt"})
    untied = job(folder, "student", "float32", all_read=True)
    (found,) = loaded(tmp_path, [untied])
    for each in found:
        assert each["tied"] == []
        assert_is(each, untied)


@pytest.mark.slow
def test_three_processes_have_uneven_parts(tmp_path):
    jobs = [job(written(tmp_path / name, name), "student", "float32") for name in ("llama", "gpt2")]
    for each, found in zip(jobs, loaded(tmp_path, jobs, processes=3), strict=True):
        for process in found:
            assert_is(process, each)
