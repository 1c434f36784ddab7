"""Text that servers write is the student's: with its weights of the moment, drawn from its law, told as drawn."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny
from tests.servers.conftest import here
from tests.servers.reference import NAME, running
from tests.servers.student_reference import StudentReference

from tutelage import config
from tutelage.config import Decoding
from tutelage.config_sampler import Sampling
from tutelage.data import Example
from tutelage.models.language_model import LanguageModel
from tutelage.models.loading import load_tokenizer
from tutelage.recipe import recipe_of
from tutelage.rollouts.rollout import LOG_WEIGHT, Rollout
from tutelage.rollouts.served import ServedStudentSampler
from tutelage.rollouts.student_servers import StudentServers
from tutelage.training.run import train

SILENT = {"report": lambda text: None}
SIZE = len(tiny.WORDS)
ROWS = [Example(item, "", prompt, (), (), "", "") for item, prompt in enumerate([(3, 4, 5), (6,), (7, 8, 9), (2, 3)])]


def recipe(folder: Path, output: Path, name: str, *servers: StudentReference, changes=None, **sections):
    """Six steps of six rows; the student's text from servers, where there are some."""
    sampler = {"backend": "vllm-http", "url": [server.url for server in servers], "model": NAME}
    sections["sampler"] = {**sampler, "timeout": 10.0, "patience": 20.0, **(changes or {})} if servers else {}
    sections.setdefault("evaluation", {"metrics": ["loss"]})
    mapping = {**tiny.mapping(folder, name, output=str(output)), "sampler": {}}
    for key, section in sections.items():
        mapping[key] = {**mapping[key], **section}
    return recipe_of(mapping)


GREEDY = {"student_decoding": {"max_new_tokens": 5, "strategy": "greedy"}}


@pytest.fixture
def student_server(folder: Path):
    """It starts with another model than the student's: everything that it writes with was handed over."""
    with running(StudentReference(folder / "other")) as found:
        yield found


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model" / "model.safetensors")


def lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def servers_of(folder: Path, tmp_path: Path, *servers: StudentReference, **changes) -> StudentServers:
    tokenizer = load_tokenizer(config.Model(model=str(folder / "llama-student")), "student")
    given = {"timeout": 10.0, "patience": 20.0, **changes}
    spec = Sampling(backend="vllm-http", url=tuple(server.url for server in servers), model=NAME, **given)
    return StudentServers(spec, tmp_path, tokenizer, lambda text: None)


def sampled(student: LanguageModel, servers: StudentServers, decoding: Decoding, step: int = 0, **options) -> Rollout:
    return ServedStudentSampler(student, servers, decoding, 3, **options).sample(ROWS, step)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("on-policy-kd", GREEDY),
        ("gkd", {**GREEDY, "student_fraction": 0.6}),
        ("distribution-matching", {**GREEDY, "offline": "data"}),
    ],
)
def test_a_greedy_run_is_the_one_in_this_process_bit_for_bit(
    tmp_path: Path, folder: Path, student_server: StudentReference, method: str, settings: dict
) -> None:
    train(recipe(folder, tmp_path / "here", method, method=settings), **SILENT)
    train(recipe(folder, tmp_path / "served", method, student_server, method=settings), **SILENT)
    local, served = weights(tmp_path / "here"), weights(tmp_path / "served")
    assert all(torch.equal(served[name], tensor) for name, tensor in local.items())
    logged = [line for line in lines(tmp_path / "served") if "loss" in line]
    assert [line.get("rollout_staleness") for line in logged] == [
        0 if line["student_text"] else None for line in logged
    ]
    assert not any("importance_weight" in line for line in logged)
    assert len({line["loss"] for line in logged}) == 6  # the student changes, or nothing is shown here
    assert len(student_server.reloads) == 1 + sum(line["student_text"] > 0 for line in logged)
    assert not list((tmp_path / "served" / "weights").rglob("*.safetensors")), "the last weights stay behind"


def test_two_servers_share_the_work(tmp_path: Path, folder: Path, student_server: StudentReference) -> None:
    train(recipe(folder, tmp_path / "here", "on-policy-kd", method=GREEDY), **SILENT)
    with running(StudentReference(folder / "llama-teacher")) as second:
        train(recipe(folder, tmp_path / "served", "on-policy-kd", student_server, second, method=GREEDY), **SILENT)
        assert len(second.reloads) == len(student_server.reloads) == 7
        assert min(len(second.requests), len(student_server.requests)) > 12
    for name, tensor in weights(tmp_path / "here").items():
        assert torch.equal(weights(tmp_path / "served")[name], tensor)


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.7}, {"temperature": 1.4, "top_k": 5}, {"top_p": 0.6}, {"strategy": "greedy", "top_p": 0.5}],
)
def test_recorded_log_probabilities_are_those_of_the_law_that_was_drawn_from(
    tmp_path: Path, folder: Path, student_server: StudentReference, settings: dict
) -> None:
    student, decoding = here(folder, "llama-student"), Decoding(max_new_tokens=6, **settings)
    rollout = sampled(student, servers_of(folder, tmp_path, student_server), decoding, samples=2)
    assert rollout.logps is not None
    assert rollout.items == (0, 0, 1, 1, 2, 2, 3, 3)
    for prompt, response, logps in zip(rollout.prompts, rollout.responses, rollout.logps, strict=True):
        logits = student.network(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        for row, token, logp in zip(logits, response, logps, strict=True):
            assert logp == pytest.approx(_expected(row, token, decoding), abs=1e-9)
        assert (response[-1] == 1) or len(response) == 6


def _expected(logits: torch.Tensor, token: int, decoding: Decoding) -> float:
    """The definition: the tokens that a law leaves are those at least as probable as the last one it keeps."""
    if decoding.strategy == "greedy":
        assert token == logits.argmax()
        return logits.log_softmax(-1)[token].item()
    law = (logits / decoding.temperature).softmax(-1)
    if decoding.top_k:
        law = law * (law >= law.sort(descending=True).values[decoding.top_k - 1])
        law = law / law.sum()
    before = torch.stack([law[law > own].sum() for own in law])  # the mass of what is more probable
    law = law * (before < decoding.top_p)
    return (law[token] / law.sum()).log().item()


def test_text_depends_on_the_seed_and_the_place_alone(
    tmp_path: Path, folder: Path, student_server: StudentReference
) -> None:
    student, decoding = here(folder, "llama-student"), Decoding(max_new_tokens=8)
    servers = servers_of(folder, tmp_path, student_server)
    first = sampled(student, servers, decoding, samples=2)
    again = sampled(student, servers, decoding, samples=2)
    assert first == again
    assert first.responses[0] != first.responses[1]
    assert sampled(student, servers, decoding, step=1, samples=2).responses != first.responses
    alone = ServedStudentSampler(student, servers, decoding, 3, samples=2).sample(ROWS[2:3], 0)
    assert alone.responses == first.responses[4:6]


def test_ids_beyond_the_vocabulary_are_never_written(
    tmp_path: Path, folder: Path, student_server: StudentReference
) -> None:
    student, servers = here(folder, "llama-student"), servers_of(folder, tmp_path, student_server)
    decoding = Decoding(max_new_tokens=20, temperature=5.0)
    assert max(map(max, sampled(student, servers, decoding, samples=8).responses)) >= 12
    rollout = sampled(student, servers, decoding, samples=8, vocabulary=12)
    assert max(map(max, rollout.responses)) < 12
    first = zip(rollout.prompts, rollout.responses, rollout.logps or (), strict=True)
    for prompt, response, logps in first:
        law = (student.network(input_ids=torch.tensor([prompt])).logits[0, -1, :12] / 5.0).log_softmax(-1)
        assert logps[0] == pytest.approx(law[response[0]].item(), abs=1e-7)  # exp(-100 / 5) is left


def test_the_student_is_as_it_was(tmp_path: Path, folder: Path, student_server: StudentReference) -> None:
    """The first test of the servers doubles its head, and halves it again."""
    student = here(folder, "llama-student")
    before = {name: tensor.clone() for name, tensor in student.network.state_dict().items()}
    student.network.train()
    sampled(student, servers_of(folder, tmp_path, student_server), Decoding(max_new_tokens=2))
    assert student.network.training
    for name, tensor in student.network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_minillm_without_the_teacher_weighs_text_by_what_the_server_tells(
    tmp_path: Path, folder: Path, student_server: StudentReference
) -> None:
    settings = {"teacher_share": 0.0, "collection": 12, "inner_epochs": 2}
    run = recipe(folder, tmp_path / "run", "minillm", student_server, method=settings)
    train(run, **SILENT)
    logged = [line for line in lines(tmp_path / "run") if "loss" in line]
    assert [line["rollout_staleness"] for line in logged] == [0, 1, 2, 3, 0, 1]
    assert logged[0]["importance_weight"] == pytest.approx(1.0, abs=1e-5)
    assert logged[3]["importance_weight"] != pytest.approx(1.0, abs=1e-5)
    assert len(student_server.reloads) == 3


def test_rows_that_the_server_has_no_room_for_are_too_long(tmp_path: Path, folder: Path) -> None:
    with running(StudentReference(folder / "other", max_length=8)) as server:
        said: list[str] = []
        settings = {"student_decoding": {"max_new_tokens": 5}}
        run = recipe(folder, tmp_path / "run", "on-policy-kd", server, method=settings, data={"max_dropped": 1.0})
        train(run, report=said.append)
    assert any("dropped" in line for line in said)
    assert max(len(body["prompt"]) for body in server.requests if "logit_bias" in body and body["seed"] != 0) <= 3


def test_weights_may_be_handed_over_every_few_steps(
    tmp_path: Path, folder: Path, student_server: StudentReference
) -> None:
    run = recipe(folder, tmp_path / "run", "on-policy-kd", student_server, changes={"max_staleness": 2})
    train(run, **SILENT)
    logged = [line for line in lines(tmp_path / "run") if "loss" in line]
    assert [line["rollout_staleness"] for line in logged] == [0, 1, 2, 0, 1, 2]
    assert len(student_server.reloads) == 1 + 2
    fresh = [line["importance_weight"] == pytest.approx(1.0, abs=1e-5) for line in logged]
    assert fresh == [True, False, False, True, False, False]


@pytest.mark.parametrize("cap", [None, 1.3])
def test_text_of_an_older_student_is_weighed_by_the_student_as_it_is(
    tmp_path: Path, folder: Path, student_server: StudentReference, cap: float | None
) -> None:
    student, before = here(folder, "llama-student"), here(folder, "llama-student")
    servers = servers_of(folder, tmp_path, student_server, max_staleness=3, importance_cap=cap)
    sampler = ServedStudentSampler(student, servers, Decoding(max_new_tokens=6), 3, 20, samples=4)
    assert all(max(map(abs, row)) < 1e-9 for row in sampler.sample(ROWS, 5).values[LOG_WEIGHT])
    with torch.no_grad():
        for parameter in student.network.parameters():
            parameter.mul_(1.3)
    rollout = sampler.sample(ROWS, 8)
    assert servers.behind == 3
    found = [weight for row in rollout.values[LOG_WEIGHT] for weight in row]
    expected = []
    for prompt, response in zip(rollout.prompts, rollout.responses, strict=True):
        ids = torch.tensor([prompt + response])
        laws = [
            m.network(input_ids=ids).logits[0, len(prompt) - 1 : -1, :20].log_softmax(-1) for m in (student, before)
        ]
        ratios = [(laws[0] - laws[1])[place, token].item() for place, token in enumerate(response)]
        expected += [sum(ratios[:place]) for place in range(len(ratios))]
    bound = math.inf if cap is None else math.log(cap)
    assert found == pytest.approx([min(value, bound) for value in expected], abs=1e-6)
    assert cap is None or max(expected) > bound
    assert sampler.sample(ROWS, 9) != rollout
    assert servers.behind == 0
