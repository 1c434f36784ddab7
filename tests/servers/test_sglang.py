"""A teacher behind SGLang's `/generate` says what the same teacher says behind vLLM, or in this process."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny
from tests.servers.conftest import here, spec
from tests.servers.reference import Fault, Reference, running, status
from tests.servers.sglang_reference import SglangReference
from tests.servers.test_served_runs import SILENT, recipe
from tests.servers.test_served_teacher import TEXT, compared

from tutelage.errors import InputError
from tutelage.models.served_teacher import ServedTeacher
from tutelage.models.teachers import LocalTeacher
from tutelage.rollouts.rollout import Rollout
from tutelage.training.run import train
from tutelage.training.served import served_positions

SIZE = len(tiny.WORDS)
LAST = SIZE - 1


@pytest.fixture
def sglang(folder: Path) -> Iterator[SglangReference]:
    with running(SglangReference(folder / "llama-teacher")) as found:
        yield found  # pyright: ignore


def teacher_of(folder: Path, server: Reference, **changes: Any) -> ServedTeacher:
    return ServedTeacher(spec(folder, server, protocol="sglang", **changes), lambda text: None)


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd(0.3)"])
def test_all_tokens_served_are_the_teacher_in_this_process(
    folder: Path, sglang: SglangReference, divergence: str
) -> None:
    one, its_gradient = compared(teacher_of(folder, sglang), folder, divergence)
    two, gradient = compared(LocalTeacher(here(folder, "llama-teacher")), folder, divergence)
    torch.testing.assert_close(one.divergence, two.divergence, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.teacher_logp, two.teacher_logp, rtol=1e-5, atol=1e-5, check_dtype=False)
    for found, expected in zip(its_gradient, gradient, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_it_says_what_vllm_says(folder: Path, server: Reference, sglang: SglangReference) -> None:
    """Also of the last id of the vocabulary, which SGLang writes as 0, and of less than the whole vocabulary."""
    text = Rollout.of([*TEXT.prompts, [3, LAST]], [*TEXT.responses, [LAST, 0, LAST]])
    for vocabulary in (SIZE, SIZE - 3):
        one = teacher_of(folder, sglang, top_k=8).scores(text, vocabulary)
        two = ServedTeacher(spec(folder, server, top_k=8)).scores(text, vocabulary)
        for found, expected in zip(one, two, strict=True):
            assert torch.equal(found, expected)
    assert teacher_of(folder, sglang).fingerprint.is_near(ServedTeacher(spec(folder, server)).fingerprint)


def test_what_is_asked(folder: Path, sglang: SglangReference) -> None:
    teacher = teacher_of(folder, sglang, top_k=4)
    sglang.requests.clear()
    teacher.scores(TEXT, SIZE)
    asked = {
        "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        "return_logprob": True,
        "top_logprobs_num": 4,
    }
    assert sorted(sglang.requests, key=lambda body: body["input_ids"]) == [
        {"input_ids": [3, 4, 5, 9, 10, 1], "logprob_start_len": 2, **asked},
        {"input_ids": [6, 11, 12, 13, 14, 1], "logprob_start_len": 0, **asked},
        {"input_ids": [7, 8, 9, 16, 17, 3, 1], "logprob_start_len": 3, **asked},
    ]


def test_a_run_ends_in_the_student_of_the_teacher_here(tmp_path: Path, folder: Path, sglang: SglangReference) -> None:
    train(recipe(folder, tmp_path / "here", "supervised-kd", None), **SILENT)
    train(recipe(folder, tmp_path / "served", "supervised-kd", sglang, {"protocol": "sglang"}), **SILENT)
    here_, served = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("here", "served"))
    for name, tensor in here_.items():
        torch.testing.assert_close(served[name], tensor, rtol=1e-3, atol=1e-4)


def test_rows_that_it_has_no_room_for_are_too_long(folder: Path, sglang: SglangReference) -> None:
    teacher = teacher_of(folder, sglang)
    longest = served_positions(teacher)
    assert longest == 57
    teacher.scores(Rollout.of([[3] * (longest - 1)], [[4]]), SIZE)
    with pytest.raises(InputError, match="HTTP 400: Input length"):
        teacher.scores(Rollout.of([[3] * longest], [[4]]), SIZE)


def test_passing_faults_pass(folder: Path, sglang: SglangReference) -> None:
    teacher = teacher_of(folder, sglang, top_k=8)
    expected = teacher.scores(TEXT, SIZE)
    sglang.faults = [status(503), None, None]
    assert torch.equal(teacher.scores(TEXT, SIZE)[1], expected[1])


class TestProbes:
    """What is found out before a run."""

    def test_the_wrong_protocol(self, folder: Path, server: Reference, sglang: SglangReference) -> None:
        with pytest.raises(InputError, match=r"in the way of teacher.protocol \(vllm\).*teacher.protocol: sglang"):
            ServedTeacher(spec(folder, sglang))
        with pytest.raises(InputError, match=r"HTTP 404.*teacher.protocol is sglang"):
            teacher_of(folder, server)

    def test_no_tokenizer(self, folder: Path) -> None:
        with (
            running(SglangReference(folder / "llama-teacher", tokenizes=False)) as server,
            pytest.raises(InputError, match=r"/tokenize refuses a request .HTTP 404"),
        ):
            teacher_of(folder, server)

    def test_another_model(self, folder: Path, sglang: SglangReference) -> None:
        teacher = teacher_of(folder, sglang)
        sglang.serve(folder / "other")
        sglang.faults = [status(503)]
        with pytest.raises(InputError, match="gives other log-probabilities than the teacher that this run began with"):
            teacher.scores(TEXT.select([0]), SIZE)


def meta(change: Callable[[dict[str, Any]], Any]) -> Fault:
    """Change what is said besides the text."""

    def fault(request, answer) -> None:
        change(answer["meta_info"])

    return fault


def own(change: Callable[[list], Any]) -> Fault:
    return meta(lambda said: said.update(input_token_logprobs=change(said["input_token_logprobs"])))


def best(change: Callable[[list], Any]) -> Fault:
    return meta(lambda said: said.update(input_top_logprobs=change(said["input_top_logprobs"])))


MALFORMED: dict[str, tuple[Fault, str]] = {
    "nothing": (meta(dict.clear), "it has no prompt_logprobs"),
    "no best ones": (meta(lambda said: said.pop("input_top_logprobs")), "it has no prompt_logprobs"),
    "too short": (own(lambda told: told[:-1]), "it has 5 and 6 positions, and 6 were asked for"),
    "cut": (meta(lambda said: [said[key].pop() for key in ("input_token_logprobs", "input_top_logprobs")]), "it has 5"),
    "shifted": (own(lambda told: [told[0], *told[2:], told[1]]), "it speaks of other tokens than those"),
    "null": (own(lambda told: [*told[:-1], (None, *told[-1][1:])]), "a token has no log-probability"),
    "null among the best": (
        best(lambda told: [*told[:-1], [(None, 3, None), *told[-1][1:]]]),
        "has no log-probability",
    ),
    "a hole": (best(lambda told: [*told[:-1], None]), "it has 1 tokens at a position, and 8 were asked for"),
    "nan": (own(lambda told: [*told[:-1], (math.nan, *told[-1][1:])]), "finite number"),
    "above zero": (own(lambda told: [*told[:-1], (0.5, *told[-1][1:])]), r"a log-probability of 0\.5"),
    "no pairs": (best(lambda told: [one and [-1.0] for one in told]), "answers otherwise than expected"),
    "text": (meta(lambda said: said.update(input_token_logprobs="no")), "answers otherwise than expected"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_nothing_of_an_answer_that_cannot_be_right_is_used(folder: Path, sglang: SglangReference, name: str) -> None:
    fault, message = MALFORMED[name]
    teacher = teacher_of(folder, sglang, top_k=8)
    sglang.always = fault
    with pytest.raises(InputError, match=message):
        teacher.scores(Rollout.of([[6]], [[11, 12, 13, 14, 1]]), SIZE)
