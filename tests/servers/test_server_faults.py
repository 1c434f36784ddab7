"""Servers that fail in every way (F23 to F28): passing faults pass, lasting ones end in words, and nothing hangs."""

import math
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
import stamina
from tests import tiny
from tests.servers.conftest import spec
from tests.servers.reference import Fault, Reference, changed, cut, html, running, status, trickle

from tutelage.errors import InputError
from tutelage.models import serving
from tutelage.models.served_teacher import ServedTeacher
from tutelage.rollouts.rollout import Rollout
from tutelage.world import World

SIZE = len(tiny.WORDS)
TEXT = Rollout.of([[3, 4, 5], [6], [7, 8, 9]], [[9, 10, 1], [11, 12, 13, 14, 1], [16, 17, 3, 1]])


def values(teacher: ServedTeacher, text: Rollout = TEXT) -> list:
    return [column.tolist() for column in teacher.scores(text, SIZE)]


def every_entry(change) -> Fault:
    """Change each position but the first, which says nothing."""
    return changed(lambda listed: [entry and change(entry) for entry in listed])


def with_logprob(value) -> Fault:
    """Give the first token of every position another log-probability."""
    return every_entry(lambda entry: {key: {"logprob": value if i == 0 else -9.0} for i, key in enumerate(entry)})


MALFORMED: dict[str, tuple[Fault, str]] = {
    "html": (html, "answers otherwise than expected"),
    "a list": (lambda request, answer: serving_json("[1, 2]"), "answers otherwise than expected"),
    "cut json": (lambda request, answer: serving_json('{"choices": [{'), "answers otherwise than expected"),
    "no choices": (lambda request, answer: serving_json('{"choices": []}'), "it has no prompt_logprobs"),
    "no scores": (lambda request, answer: serving_json('{"choices": [{}]}'), "it has no prompt_logprobs"),
    "no number": (with_logprob(None), "logprob"),
    "nan": (with_logprob(math.nan), "finite number"),
    "minus infinity": (with_logprob(-math.inf), "finite number"),
    "above zero": (with_logprob(0.7), r"a log-probability of 0\.7"),
    "too much": (every_entry(lambda entry: {key: {"logprob": -0.1} for key in entry}), "add up to"),
    "too short": (changed(lambda listed: listed[:-1]), r"it has \d+ positions, the prompt \d+"),
    "too long": (changed(lambda listed: [*listed, listed[-1]]), r"it has \d+ positions, the prompt \d+"),
    "a hole": (changed(lambda listed: [*listed[:-1], None]), "it has 0 tokens at a position"),
    "fewer": (every_entry(lambda entry: dict(list(entry.items())[:3])), "it has 3 tokens at a position, and 8 were"),
    "no ids": (every_entry(lambda entry: {f"word {key}": one for key, one in entry.items()}), "valid integer"),
    "wrong ids": (every_entry(lambda entry: {str(int(k) + 5000): v for k, v in entry.items()}), "not among those at"),
    "beyond": (every_entry(lambda entry: {**entry, "70000": {"logprob": -9.0}}), "the id 70000, and the tokenizer 22"),
    "below": (every_entry(lambda entry: {**entry, "-4": {"logprob": -9.0}}), "the id -4, and the tokenizer 22"),
}


def serving_json(text: str):
    from starlette.responses import Response

    return Response(text, media_type="application/json")


class TestAtTheStart:
    """F23."""

    def test_nothing_listens(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        said: list[str] = []
        begun = time.monotonic()
        with pytest.raises(InputError, match=r"gave no answer within 2 s \(last: .*onnect.*start it, or look at"):
            ServedTeacher(spec(folder, url=url, patience=2.0), said.append)
        assert time.monotonic() - begun < 10
        assert len(said) == 1
        assert "waiting for the server at" in said[0]

    def test_other_processes_do_not_wait_that_long(
        self, folder: Path, server: Reference, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(serving, "world", lambda: World(0, 2))
        monkeypatch.setenv("TUTELAGE_TIMEOUT_MINUTES", "0.5")
        with pytest.raises(InputError, match=r"patience with a server \(url\) is 30 s, .* wait 30 s for one another"):
            ServedTeacher(spec(folder, server, patience=30.0))
        ServedTeacher(spec(folder, server, patience=29.0))

    def test_it_comes_up_later(self, folder: Path) -> None:
        server = Reference(folder / "llama-teacher")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            server.port = free.getsockname()[1]
        up = running(server)
        timer = threading.Timer(0.5, up.__enter__)
        timer.start()
        teacher = ServedTeacher(spec(folder, server), lambda text: None)
        assert teacher.fingerprint.max_length == 64
        timer.join()
        up.__exit__(None, None, None)


class TestPassingFaults:
    """F24 and F25."""

    @pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
    def test_a_burst_passes(self, folder: Path, server: Reference, code: int) -> None:
        teacher = ServedTeacher(spec(folder, server, top_k=8))
        expected = values(teacher)
        server.faults = [status(code)] * 5
        with stamina.set_testing(True, attempts=30):
            assert values(teacher) == expected

    def test_retry_after_is_honoured(self, folder: Path, server: Reference) -> None:
        teacher = ServedTeacher(spec(folder, server, top_k=8))
        server.faults, begun = [status(429, Retry_After="1")], time.monotonic()
        values(teacher, TEXT.select([0]))
        assert 1 <= time.monotonic() - begun < 10

    def test_it_gives_up_in_time_and_says_why(self, folder: Path, server: Reference) -> None:
        teacher = ServedTeacher(spec(folder, server, patience=3.0))
        server.always, begun = status(503), time.monotonic()
        with pytest.raises(ConnectionError, match=r"gave no answer within 3 s \(last: HTTP 503: status 503 on purpose"):
            values(teacher)
        assert time.monotonic() - begun < 10

    @pytest.mark.parametrize("fault", [trickle, cut])
    def test_answers_that_do_not_end_are_left(self, folder: Path, server: Reference, fault: Fault) -> None:
        teacher = ServedTeacher(spec(folder, server, top_k=8, timeout=0.5))
        expected = values(teacher)
        server.faults, begun = [fault, None, fault], time.monotonic()
        with stamina.set_testing(True, attempts=30):
            assert values(teacher) == expected
        assert time.monotonic() - begun < 15

    def test_waiting_can_be_left_at_once(self, folder: Path, server: Reference) -> None:
        """What a signal raises ends the requests too."""
        teacher = ServedTeacher(spec(folder, server, patience=60.0, timeout=60.0))
        server.always = trickle

        class Left(BaseException):
            pass

        def leave(*_: object) -> None:
            raise Left

        before, begun = signal.signal(signal.SIGALRM, leave), time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            with pytest.raises(Left):
                values(teacher)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert time.monotonic() - begun < 10
        server.always, begun = None, time.monotonic()
        values(teacher)  # nothing of before stands in the way
        assert time.monotonic() - begun < 10


class TestMalformed:
    """F26 and F28."""

    @pytest.mark.parametrize("name", MALFORMED)
    def test_nothing_of_it_is_used(self, folder: Path, server: Reference, name: str) -> None:
        fault, message = MALFORMED[name]
        teacher = ServedTeacher(spec(folder, server, top_k=8))
        server.always = fault
        with pytest.raises(InputError, match=message):
            values(teacher)

    @pytest.mark.parametrize("code", [400, 401, 404, 422])
    def test_a_refusal_is_told_and_not_tried_again(self, folder: Path, server: Reference, code: int) -> None:
        teacher = ServedTeacher(spec(folder, server))
        server.always = status(code)
        server.requests.clear()
        with pytest.raises(InputError, match=rf"refuses a request \(HTTP {code}: status {code} on purpose"):
            values(teacher, TEXT.select([0]))
        assert len(server.requests) == 1

    def test_a_redirection_is_no_answer(self, folder: Path, server: Reference) -> None:
        teacher = ServedTeacher(spec(folder, server))
        server.always = status(302, Location="http://127.0.0.1:9/")
        with pytest.raises(InputError, match="HTTP 302"):
            values(teacher)

    def test_secrets_are_not_repeated(self, folder: Path, server: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "very-secret-value")
        teacher = ServedTeacher(spec(folder, server))

        def telling(request, answer):
            from tests.servers.reference import refusal

            return refusal(401, f"wrong: {request.headers['authorization']}")

        server.always = telling
        with pytest.raises(InputError) as error:
            values(teacher)
        assert "very-secret-value" not in str(error.value)


class TestAnotherModel:
    """F27."""

    def test_after_a_failure(self, folder: Path, server: Reference) -> None:
        teacher = ServedTeacher(spec(folder, server))
        values(teacher)
        server.serve(folder / "other")
        server.faults = [status(503)]
        with pytest.raises(InputError, match="gives other log-probabilities than the teacher that this run began with"):
            values(teacher, TEXT.select([0]))

    def test_unnoticed_for_a_minute_at_most(
        self, folder: Path, server: Reference, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        teacher = ServedTeacher(spec(folder, server))
        server.serve(folder / "other")
        values(teacher)
        monkeypatch.setattr(serving, "CHECKED", 0.0)
        with pytest.raises(InputError, match="gives other log-probabilities"):
            values(teacher)


class TestReplicas:
    """Several servers of one model."""

    def test_all_of_them_work(self, folder: Path, server: Reference) -> None:
        with running(Reference(folder / "llama-teacher")) as second:
            teacher = ServedTeacher(spec(folder, server, second))
            server.requests.clear()
            second.requests.clear()
            values(teacher, Rollout.of([[3, last] for last in range(2, 22)], [[5, 1]] * 20))
            assert min(len(server.requests), len(second.requests)) >= 5  # a busy machine may answer unevenly

    def test_one_that_dies_is_replaced_and_taken_again_when_it_is_back(
        self, folder: Path, server: Reference, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(serving, "REST", 0.2)
        second = Reference(folder / "llama-teacher")
        text = Rollout.of([[3, last] for last in range(2, 10)], [[5, 1]] * 8)
        with running(second):
            teacher = ServedTeacher(spec(folder, server, second, top_k=8))
            expected = values(teacher, text)
        begun = time.monotonic()
        assert values(teacher, text) == expected  # the second one is down
        assert time.monotonic() - begun < 10
        with running(second):
            time.sleep(0.3)
            second.requests.clear()
            assert values(teacher, text) == expected
            assert second.requests

    def test_one_that_comes_back_as_another_model_is_refused(
        self, folder: Path, server: Reference, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(serving, "REST", 1.5)
        with running(Reference(folder / "llama-teacher")) as second:
            teacher = ServedTeacher(spec(folder, server, second))
            second.faults = [status(500)]
            values(teacher)
            second.serve(folder / "other")
            time.sleep(1.6)
            with pytest.raises(InputError, match="gives other log-probabilities"):
                values(teacher)
