"""A real vLLM that writes the student's text and takes its weights; docs/served-rollouts.md says how it is started.

TUTELAGE_STUDENT_SERVER is its url, TUTELAGE_STUDENT the folder of the model, which is served under that name. The
server's weights are other ones afterwards.
"""

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tutelage import config
from tutelage.config import Decoding
from tutelage.config_sampler import Sampling
from tutelage.data import Example
from tutelage.models.language_model import LanguageModel
from tutelage.models.loading import load_model, load_tokenizer, stop_ids
from tutelage.recipe import recipe_of
from tutelage.rollouts.decoding import decode, evaluating
from tutelage.rollouts.rollout import LOG_WEIGHT, Rollout
from tutelage.rollouts.sampling import logp_of, truncated
from tutelage.rollouts.served import ServedStudentSampler
from tutelage.rollouts.student_servers import StudentServers
from tutelage.training.run import train

URL, MODEL = os.environ.get("TUTELAGE_STUDENT_SERVER"), os.environ.get("TUTELAGE_STUDENT")
pytestmark = [
    pytest.mark.real_server,
    pytest.mark.skipif(not (URL and MODEL), reason="set TUTELAGE_STUDENT_SERVER and TUTELAGE_STUDENT (a running vLLM)"),
]
PROMPTS = (
    "Why does water boil sooner in the mountains?",
    "def fibonacci(n):\n",
    "The capital of France is",
    "A lighthouse keeper counted ships and gulls, day after day, and wrote their numbers into a book. " * 16,
)
"""The last one is longer than the blocks in which vLLM remembers prompts."""


@pytest.fixture
def student() -> LanguageModel:
    model = load_model(config.Model(model=MODEL, device="cpu"), "student", seed=0)
    tokenizer = load_tokenizer(config.Model(model=MODEL), "student")
    return LanguageModel(model, stop_ids(model, tokenizer))


@pytest.fixture
def servers(tmp_path: Path) -> StudentServers:
    spec = Sampling(backend="vllm-http", url=URL, model=MODEL)
    return StudentServers(spec, tmp_path, load_tokenizer(config.Model(model=MODEL), "student"))


def rows() -> list[Example]:
    tokenizer = load_tokenizer(config.Model(model=MODEL), "student")
    return [Example(item, "", tuple(tokenizer.encode(text)), (), (), "", "") for item, text in enumerate(PROMPTS)]


def changed(student: LanguageModel, seed: int) -> None:
    """Move every matrix by a tenth of its spread."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.network.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.1 * parameter.std() * torch.randn(parameter.shape, generator=draws))


def own_logps(student: LanguageModel, rollout: Rollout, decoding: Decoding) -> torch.Tensor:
    with evaluating(student):
        logits = student.head.logits(student.hidden(rollout)) / decoding.temperature
        return logp_of(truncated(logits, decoding.top_k, decoding.top_p), student.targets(rollout))


def test_greedy_text_is_that_of_the_new_weights(student: LanguageModel, servers: StudentServers) -> None:
    decoding, texts = Decoding(max_new_tokens=16, strategy="greedy"), []
    for step in range(3):
        rollout = ServedStudentSampler(student, servers, decoding, 3).sample(rows(), step)
        here = decode(student, rollout.prompts, decoding, seed=3)
        assert rollout.responses == here.responses
        pairs = zip(rollout.logps or (), here.logps or (), strict=True)
        gap = max(abs(one - two) for told, own in pairs for one, two in zip(told, own, strict=True))
        print(f"step {step}: largest difference of a recorded log-probability {gap:.2g}")
        texts.append(rollout.responses)
        changed(student, step)
    assert all(one != two for one, two in pairwise(texts))


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"temperature": 1.3, "top_k": 20}, {"top_p": 0.8}])
def test_recorded_log_probabilities_are_those_of_the_law(
    student: LanguageModel, servers: StudentServers, settings: dict
) -> None:
    decoding = Decoding(max_new_tokens=24, **settings)
    rollout = ServedStudentSampler(student, servers, decoding, 3, samples=4).sample(rows(), 5)
    assert rollout.logps is not None
    told = torch.tensor([logp for row in rollout.logps for logp in row])
    gap = (told - own_logps(student, rollout, decoding)).abs()
    print(f"{settings}: {len(told)} tokens, difference {gap.mean():.2g} on average, {gap.max():.2g} at most")
    assert gap.median() < 1e-3
    assert (gap < 0.02).float().mean() > 0.98  # at the edge of a truncation one token may be in here and out there
    ends = {response[-1] in student.stop_ids for response in rollout.responses}
    assert all(len(r) == 24 or r[-1] in student.stop_ids for r in rollout.responses)
    print(f"{settings}: ended {ends}, cut {sum(len(r) == 24 for r in rollout.responses)} of {len(rollout)}")


def test_the_same_request_gets_the_same_text(student: LanguageModel, servers: StudentServers) -> None:
    sampler = ServedStudentSampler(student, servers, Decoding(max_new_tokens=12), 3, samples=2)
    first = sampler.sample(rows(), 7)
    assert sampler.sample(rows(), 7).responses == first.responses
    assert sampler.sample(rows(), 8).responses != first.responses


def test_weights_may_be_handed_over_every_other_step(student: LanguageModel, tmp_path: Path) -> None:
    spec = Sampling(backend="vllm-http", url=URL, model=MODEL, max_staleness=1)
    servers = StudentServers(spec, tmp_path, load_tokenizer(config.Model(model=MODEL), "student"))
    decoding, behind = Decoding(max_new_tokens=16), []
    sampler = ServedStudentSampler(student, servers, decoding, 3)
    for step in range(3):
        rollout = sampler.sample(rows(), step)
        behind.append(servers.behind)
        told = torch.tensor([logp for row in rollout.logps or () for logp in row])
        assert ((told - own_logps(student, rollout, decoding)).abs().median() < 1e-3) == (behind[-1] == 0)
        weights = torch.tensor([weight for row in rollout.values[LOG_WEIGHT] for weight in row]).exp()
        print(f"step {step}: importance weights {weights.min():.3f} to {weights.max():.3f}, mean {weights.mean():.3f}")
        changed(student, step)
    assert behind == [0, 1, 0]


def test_a_run(tmp_path: Path) -> None:
    lines = [{"prompt": text} for text in PROMPTS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = {
        "method": {"name": "on-policy-kd", "student_decoding": {"max_new_tokens": 12}},
        "student": {"model": MODEL},
        "teacher": {"model": MODEL, "dtype": "bfloat16"},
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "train": {"steps": 3, "batch_size": 4, "learning_rate": 1e-4},
        "sampler": {"backend": "vllm-http", "url": URL, "model": MODEL},
        "output": str(tmp_path / "run"),
    }
    run = train(recipe_of(whole), report=print)
    logged = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["rollout_staleness"] for line in logged] == [0, 0, 0]
    print([(line["divergence"], line["seconds"]) for line in logged])
