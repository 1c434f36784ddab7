"""Servers of the student that fail in every way: nothing is learnt from text that is not the student's."""

import math
import re
import socket
from pathlib import Path

import pytest
import stamina
import torch
from tests.servers.conftest import here
from tests.servers.reference import Fault, Reference, html, running, status
from tests.servers.student_reference import StudentReference
from tests.servers.test_served_rollouts import GREEDY, SILENT, recipe, sampled, servers_of, weights

from tutelage.cli import main
from tutelage.config import Decoding
from tutelage.errors import InputError
from tutelage.models import serving
from tutelage.recipe import dump_recipe, recipe_of
from tutelage.training.run import train

SHORT = Decoding(max_new_tokens=4)


def text(change) -> Fault:
    """Change the one choice of the right answer."""

    def fault(request, answer) -> None:
        if "prompt_logprobs" not in answer["choices"][0]:
            answer["choices"] = change(answer["choices"][0])

    return fault


def with_ids(ids, **more) -> Fault:
    told = {"token_logprobs": [-1.0] * len(ids)}
    return text(lambda choice: [{"token_ids": ids, "logprobs": told, **more}])


def with_logps(values) -> Fault:
    return text(lambda choice: [{"token_ids": [5] * 4, "logprobs": {"token_logprobs": values}}])


WRONG: dict[str, tuple[Fault, str]] = {
    "html": (html, "answers otherwise than expected"),
    "none": (text(lambda choice: []), "it has 0 responses, and one was asked for"),
    "two": (text(lambda choice: [choice, choice]), "it has 2 responses"),
    "no ids": (text(lambda choice: [{**choice, "token_ids": None}]), "it has no token_ids"),
    "no scores": (text(lambda choice: [{**choice, "logprobs": None}]), "it has no logprobs"),
    "fewer scores": (with_logps([-1.0] * 3), "4 tokens and 3 log-probabilities"),
    "a foreign id": (with_ids([5, 70, 6, 7]), "the id 70, and the student may write those below 22"),
    "a negative id": (with_ids([5, -1, 6, 7]), "the id -1"),
    "too long": (with_ids([5] * 5), "ends after 5 of at most 4 tokens, no stop id"),
    "too short": (with_ids([5] * 3), "ends after 3 of at most 4 tokens, no stop id"),
    "nothing": (with_ids([]), "ends after 0 of at most 4 tokens"),
    "past its end": (with_ids([5, 1, 6, 7]), "ends after 4 of at most 4 tokens, the first stop id is at 1"),
    "without its end": (with_ids([5, 6], finish_reason="stop"), "ends after 2 of at most 4 tokens, no stop id"),
    "nan": (with_logps([math.nan] * 4), "finite number"),
    "null": (with_logps([None] * 4), "valid number"),
    "above zero": (with_logps([0.5] * 4), r"a log-probability of 0\.5"),
    "impossible": (with_logps([-1.0, -9999.0, -1.0, -1.0]), "a log-probability of -9999"),
}


class TestAtTheStart:
    """F23 and F28."""

    def test_nothing_listens(self, tmp_path: Path, folder: Path) -> None:
        server = StudentReference(folder / "other")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            server.port = free.getsockname()[1]
        with pytest.raises(InputError, match=r"gave no answer within 0\.7 s .*start it, or look at sampler\.url"):
            servers_of(folder, tmp_path, server, patience=0.7)

    def test_another_model(self, tmp_path: Path, folder: Path) -> None:
        with running(StudentReference(folder / "other")) as server:
            run = recipe(folder, tmp_path / "run", "on-policy-kd", server, changes={"model": "big"})
            with pytest.raises(InputError, match=r"does not serve 'big', but tiny-teacher; .* as sampler\.model"):
                train(run, **SILENT)

    def test_it_takes_no_weights(self, tmp_path: Path, folder: Path) -> None:
        with (
            running(StudentReference(folder / "other", updates=False)) as server,
            pytest.raises(
                InputError, match=r"HTTP 404.*cannot be given the student's weights: start it .* VLLM_SERVER_DEV_MODE=1"
            ),
        ):
            servers_of(folder, tmp_path, server)

    def test_it_tells_raw_log_probabilities(self, tmp_path: Path, folder: Path) -> None:
        with (
            running(StudentReference(folder / "other", processed=False)) as server,
            pytest.raises(InputError, match=r"does not tell the log-probabilities that it draws .* processed_logprobs"),
        ):
            servers_of(folder, tmp_path, server)

    def test_a_plain_server_of_teachers(self, tmp_path: Path, folder: Path, server: Reference) -> None:
        with pytest.raises(InputError, match="HTTP 404"):
            servers_of(folder, tmp_path, server)

    def test_weights_would_be_handed_over_in_somebody_s_folder(self, tmp_path: Path, folder: Path) -> None:
        """A user's own model may be called `student`."""
        (tmp_path / "student").mkdir()
        (tmp_path / "student" / "config.json").write_text("{}")
        with running(StudentReference(folder / "other")) as server:
            with pytest.raises(InputError, match=r"student would be emptied .* holds config\.json.*weights_folder"):
                servers_of(folder, tmp_path, server)
            assert (tmp_path / "student" / "config.json").exists()

    def test_what_a_run_that_was_killed_has_left_goes(self, tmp_path: Path, folder: Path) -> None:
        left = tmp_path / "student" / "0123abcd-17"
        left.mkdir(parents=True)
        with running(StudentReference(folder / "other")) as server:
            sampled(here(folder, "llama-student"), servers_of(folder, tmp_path, server), SHORT)
        assert not left.exists()

    def test_check_says_so_too(self, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with running(StudentReference(folder / "other")) as server:
            run = recipe(folder, tmp_path / "run", "on-policy-kd", server)
            (tmp_path / "recipe.yaml").write_text(dump_recipe(run))
            assert main(["check", str(tmp_path / "recipe.yaml")]) == 0
            assert main(["check", str(tmp_path / "recipe.yaml"), "--sampler.model", "big"]) == 2
            assert "does not serve 'big'" in capsys.readouterr().err
            assert server.reloads == []


class TestWeights:
    """What a server computes with is the student, or the run ends."""

    def test_a_folder_that_it_does_not_see(self, tmp_path: Path, folder: Path) -> None:
        class Elsewhere(StudentReference):
            async def _rpc(self, request):
                return status(500)(request, {})

        with running(Elsewhere(folder / "other")) as server:
            servers = servers_of(folder, tmp_path, server)
            with pytest.raises(InputError, match=r"could not take the weights in .*status 500.*weights_folder"):
                sampled(here(folder, "llama-student"), servers, SHORT)

    @pytest.mark.parametrize("kept", ["", "lm_head", "embed_tokens", "layers.1.mlp"])
    def test_it_keeps_old_ones(self, tmp_path: Path, folder: Path, kept: str) -> None:
        with running(StudentReference(folder / "other", keeps=kept)) as server:
            servers = servers_of(folder, tmp_path, server, tolerance=1e-3)
            with pytest.raises(InputError, match="was given the student's weights and computes something else"):
                sampled(here(folder, "llama-student"), servers, SHORT)

    def test_it_keeps_the_old_head_of_the_very_same_model(self, tmp_path: Path, folder: Path) -> None:
        """Which shows in the first test alone: the student has not changed yet."""
        with running(StudentReference(folder / "llama-student", keeps="lm_head")) as server:
            servers = servers_of(folder, tmp_path, server)
            with pytest.raises(InputError, match=r"computes something else.*half of what a doubled output"):
                sampled(here(folder, "llama-student"), servers, SHORT)

    def test_what_it_remembers_of_prompts_has_to_go(self, tmp_path: Path, folder: Path) -> None:
        with running(StudentReference(folder / "other")) as server:
            servers = servers_of(folder, tmp_path, server)
            server.resets = [False, True]
            with stamina.set_testing(True, attempts=5):
                sampled(here(folder, "llama-student"), servers, SHORT)
            assert len(server.reloads) == 3
            server.resets = [False] * 99
            refused = pytest.raises(ConnectionError, match="still holds what it read with older weights")
            with refused:
                sampled(here(folder, "llama-student"), servers_of(folder, tmp_path, server, patience=4.0), SHORT)

    def test_another_run_gives_it_weights(self, tmp_path: Path, folder: Path) -> None:
        with running(StudentReference(folder / "other")) as server:
            servers = servers_of(folder, tmp_path, server)

            def meddle(request, answer) -> None:
                server.label = "another-7"

            server.faults = [None, meddle]
            with pytest.raises(InputError, match=r"has other weights .'another-7'. than this run gave it"):
                sampled(here(folder, "llama-student"), servers, SHORT)


class TestText:
    """F26."""

    @pytest.mark.parametrize("name", WRONG)
    def test_nothing_of_it_is_used(self, tmp_path: Path, folder: Path, name: str) -> None:
        fault, message = WRONG[name]
        with running(StudentReference(folder / "other")) as server:
            servers = servers_of(folder, tmp_path, server)
            server.always = fault
            with pytest.raises(InputError, match=message):
                sampled(here(folder, "llama-student"), servers, SHORT)

    @pytest.mark.parametrize("code", [429, 500, 503])
    def test_a_burst_passes(self, tmp_path: Path, folder: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(serving, "REST", 0.0)
        with running(StudentReference(folder / "other")) as server:
            servers, student = servers_of(folder, tmp_path, server), here(folder, "llama-student")
            expected = sampled(student, servers, SHORT)
            server.faults = [status(code)] * 5
            with stamina.set_testing(True, attempts=30):
                assert sampled(student, servers, SHORT) == expected

    def test_a_server_that_starts_anew_gets_the_weights_again(
        self, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(serving, "REST", 0.0)
        with running(StudentReference(folder / "other")) as server:
            train(recipe(folder, tmp_path / "whole", "on-policy-kd", server, method=GREEDY), **SILENT)

            def die(request, answer):
                server.restart()
                return status(503)(request, answer)

            reloads = len(server.reloads)
            server.faults = [None, *[None] * 15, die]
            with stamina.set_testing(True, attempts=30):
                train(recipe(folder, tmp_path / "rough", "on-policy-kd", server, method=GREEDY), **SILENT)
        assert len(server.reloads) == 2 * reloads + 1
        for name, tensor in weights(tmp_path / "whole").items():
            assert torch.equal(weights(tmp_path / "rough")[name], tensor)

    def test_what_it_wrote_before_that_was_noticed_is_written_again(
        self, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two requests are on their way to it when it starts anew, and are answered with the weights of its start."""
        monkeypatch.setattr(serving, "REST", 0.0)
        with running(StudentReference(folder / "other")) as server:
            servers, student = servers_of(folder, tmp_path, server), here(folder, "llama-student")
            expected = sampled(student, servers, SHORT)

            def die(request, answer):
                server.restart()
                return status(503)(request, answer)

            asked = len(server.requests)
            server.faults = [None, None, die]  # the first is for the weights of the day
            with stamina.set_testing(True, attempts=5):
                assert sampled(student, servers, SHORT) == expected
            texts = [body for body in server.requests[asked:] if "logit_bias" in body]
            assert len(texts) == 4 + 1 + 4

    def test_one_that_starts_anew_while_the_other_writes_gets_them_too(self, tmp_path: Path, folder: Path) -> None:
        """It rests after its fault, so that nobody asks it before the batch is written."""
        with (
            running(StudentReference(folder / "other")) as first,
            running(StudentReference(folder / "other")) as second,
        ):
            servers, student = servers_of(folder, tmp_path, first, second), here(folder, "llama-student")
            expected = sampled(student, servers, SHORT)

            def die(request, answer):
                first.restart()
                return status(503)(request, answer)

            reloads = len(first.reloads), len(second.reloads)
            first.faults = [None, die]  # the first is for the weights of the day
            assert sampled(student, servers, SHORT) == expected
            assert not first.faults
            assert (len(first.reloads), len(second.reloads)) == (reloads[0] + 2, reloads[1] + 1)
            assert sampled(student, servers, SHORT) == expected

    def test_one_that_starts_anew_between_two_batches_writes_with_the_weights_that_it_had(
        self, tmp_path: Path, folder: Path
    ) -> None:
        with running(StudentReference(folder / "other")) as server:
            servers, student = servers_of(folder, tmp_path, server, max_staleness=2), here(folder, "llama-student")
            sampled(student, servers, SHORT, step=0)
            expected = sampled(student, servers, SHORT, step=1)
            server.restart()
            assert sampled(student, servers, SHORT, step=1) == expected
            assert servers.behind == 1


def test_it_stops_with_75_when_the_server_is_gone_and_goes_on_with_the_same_student(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(StudentReference(folder / "other")) as server:
        sections = {"method": GREEDY, "train": {"save_every": 1}}
        train(recipe(folder, tmp_path / "whole", "on-policy-kd", server, **sections), **SILENT)
        server.faults, server.always = [None] * 22, status(503)
        cut = recipe(folder, tmp_path / "cut", "on-policy-kd", server, changes={"patience": 4.0}, **sections)
        (tmp_path / "cut.yaml").write_text(dump_recipe(cut))
        assert main(["train", str(tmp_path / "cut.yaml")]) == 75
        said = capsys.readouterr().err
        assert "gave no answer within 4 s (last: HTTP 503" in said
        assert re.search(r"saved at step [2-4] of 6", said)
        assert not list((tmp_path / "cut" / "weights").rglob("*.safetensors"))
        server.always = None
        assert main(["train", str(tmp_path / "cut.yaml")]) == 0
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "cut")[name], tensor)


SERVED = {"backend": "vllm-http", "url": "http://localhost:1/v1", "model": "m"}


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ({"url": "http://localhost:1/v1"}, "url is for a server: set backend: vllm-http"),
        ({"weights_folder": "w"}, "weights_folder is for a server"),
        ({"backend": "vllm-http", "url": "http://localhost:1/v1"}, "backend vllm-http needs url"),
        ({**SERVED, "url": "localhost:1"}, "sampler.url"),
        ({**SERVED, "importance_cap": 0.5}, "sampler.importance_cap must be"),
        ({"max_staleness": 2}, "max_staleness is for a server"),
        ({**SERVED, "backend": "sglang"}, "sampler.backend must be"),
    ],
)
def test_what_does_not_fit_together_is_told_by_the_recipe(folder: Path, sampler: dict, message: str) -> None:
    mapping = {"method": {"name": "on-policy-kd"}, "sampler": sampler}
    whole = {"student": {"model": "m"}, "teacher": {"model": "t"}, "data": {"train": "x"}, "train": {"steps": 1}}
    with pytest.raises(InputError, match=message):
        recipe_of({**whole, **mapping, "output": str(folder / "run")})


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("sft", {}, "has the student write nothing: leave sampler out"),
        ("gkd", {"student_fraction": 0.5, "student_decoding": {"strategy": "beam"}}, "decodes with beam search"),
        ("on-policy-kd", {"student_decoding": {"no_repeat_ngram_size": 3}}, "decodes with no_repeat_ngram_size"),
        ("on-policy-kd", {"student_decoding": {"backend": "generate"}}, "decodes with backend: generate"),
        ("minillm", {}, "has student and teacher write together"),
    ],
)
def test_what_servers_cannot_write_is_told_before_anything_is_loaded(
    tmp_path: Path, folder: Path, method: str, settings: dict, message: str
) -> None:
    run = recipe(folder, tmp_path, method, StudentReference(folder / "other"), method=settings)
    with pytest.raises(InputError, match=message):
        train(run, **SILENT)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("minillm", {"teacher_share": 0.0}),
        ("distillm", {}),
        ("on-policy-kd", {"reduction": "sequence"}),
        ("on-policy-kd", {"student_decoding": {"temperature": 0.7}}),
        ("gkd", {"student_decoding": {"strategy": "greedy"}}),
    ],
)
def test_only_some_methods_take_text_of_an_older_student(
    tmp_path: Path, folder: Path, method: str, settings: dict
) -> None:
    server = StudentReference(folder / "other")
    run = recipe(folder, tmp_path, method, server, changes={"max_staleness": 1}, method=settings)
    with pytest.raises(InputError, match="cannot weigh the text of an older student"):
        train(run, **SILENT)


def test_only_whole_decoder_only_models_are_handed_over(tmp_path: Path, folder: Path) -> None:
    adapter = {"student": {"adapter": {"rank": 2}}}
    with running(StudentReference(folder / "other")) as server, pytest.raises(InputError, match="has an adapter"):
        train(recipe(folder, tmp_path / "run", "on-policy-kd", server, **adapter), **SILENT)
