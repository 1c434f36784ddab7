"""Servers and several processes: each text is asked about once, what fails in one process ends all, and all go on."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from tests.distributed.comparing import QUIET, assert_close, lines
from tests.distributed.launch import launched
from tests.servers.reference import NAME, Reference, running, status
from tests.servers.student_reference import StudentReference
from tests.tiny import mapping, write_model

from tutelage.recipe import recipe_of
from tutelage.training.run import train

UNKNOWN = 0
"""The id of words that no row has; the texts that servers are known by are full of them."""
GREEDY = {"student_decoding": {"max_new_tokens": 5, "strategy": "greedy"}}
IN_TIME = {"timeout": 10.0, "patience": 20.0}
SOON = {"timeout": 10.0, "patience": 6.0}
CUT = {"shard": "student"}


class Failing(Reference):
    """From some request on, one text gets no answer, until another run looks at the server.

    That is the text of the first such request. Of several processes, one alone asks about it.
    """

    looks, after, code = 0, 10**9, 503
    seen = 0
    doomed: tuple[int, ...] | None = None

    def fail(self, after: int, code: int = 503) -> "Failing":
        self.after, self.code, self.always = after, code, self._fault
        return self

    @property
    def texts(self) -> list[tuple[int, ...]]:
        """What it was asked about, or for, besides what it is known by."""
        return [tuple(body["prompt"]) for body in self.requests if UNKNOWN not in body["prompt"]]

    async def _models(self, request: Request) -> Response:
        self.looks += 1
        return await super()._models(request)

    def _fault(self, request: Request, answer: dict[str, Any]) -> Response | None:
        prompt = tuple(request._json["prompt"])
        if UNKNOWN in prompt or self.looks > 1:
            return None
        self.seen += 1
        if self.seen > self.after:
            self.doomed = self.doomed or prompt
        return status(self.code)(request, answer) if prompt == self.doomed else None


class FailingStudent(Failing, StudentReference):
    """The same of a server that writes; it may also start anew, once."""

    def start_anew(self, after: int) -> "FailingStudent":
        def fault(request: Request, answer: dict[str, Any]) -> Response | None:
            if len(self.texts) != after:
                return None
            self.always = None
            self.restart()
            return status(503)(request, answer)

        self.always = fault
        return self


def job(folder: Path, name: str, method: str, server: Reference | None = None, **sections: Any) -> dict[str, Any]:
    """A recipe, its teacher served where there is a server for it."""
    if server is not None:
        given = {"url": server.url, "model": NAME, "tokenizer": str(folder / "llama-teacher")}
        sections["teacher"] = {**IN_TIME, **given, **sections.get("teacher", {})}
    sampler, settings = sections.pop("sampler", {}), sections.pop("settings", {})
    recipe = mapping(folder, method, evaluation={"metrics": ["loss"]}, output=str(folder / name), **sections)
    return {**recipe, "sampler": sampler, "method": {**recipe["method"], **settings}}


def sampler(*servers: Reference, **more: Any) -> dict[str, Any]:
    return {"backend": "vllm-http", "url": [server.url for server in servers], "model": NAME, **IN_TIME, **more}


def one(recipe: dict[str, Any], **sections: Any) -> Path:
    """The same in this process, uncut, with other servers or none."""
    changed = {**recipe, **sections, "train": {**recipe["train"], "shard": "none"}, "output": recipe["output"] + "-one"}
    return train(recipe_of(changed), **QUIET).folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("served")
    mapping(made, "gkd")
    write_model(made / "other", seed=9)
    return made


@pytest.fixture
def well(folder: Path) -> Iterator[Failing]:
    with running(Failing(folder / "llama-teacher")) as server:  # pyright: ignore
        yield server


def test_a_served_teacher(folder: Path, well: Failing) -> None:
    """Cut or not, with a fault that one process alone sees, and with a process that has no row."""
    with (
        running(Failing(folder / "llama-teacher").fail(13)) as first,
        running(Failing(folder / "llama-teacher").fail(13)) as second,
        running(Failing(folder / "llama-teacher").fail(13, 400)) as third,
        running(Failing(folder / "llama-teacher")) as sound,
    ):
        whole = job(folder, "whole", "gkd", first, teacher=SOON, settings={"student_fraction": 0.5})
        cut = job(folder, "cut", "supervised-kd", second, teacher=SOON, train=CUT)
        refused = job(folder, "refused", "supervised-kd", third, train=CUT)
        uneven = job(folder, "uneven", "on-policy-kd", sound, train={"shard": "both", "batch_size": 3, "steps": 3})
        lonely = job(folder, "lonely", "supervised-kd", well, train={**CUT, "batch_size": 1, "steps": 3})
        recipes = [whole, whole, cut, cut, refused, refused, uneven, lonely]
        outcomes = launched(folder, [{"recipe": recipe} for recipe in recipes])
    assert all(told[0] == told[1] for told in outcomes)
    said = [told[0] for told in outcomes]
    assert said[1] == said[3] == said[5] == said[6] == said[7] == "finished"
    for place, server in ((0, first), (2, second)):
        assert f"the server at {server.url} gave no answer within 6 s (last: HTTP 503" in said[place]
        assert "saved at step 2 of 6; the same command goes on from here" in said[place]
    assert "refuses a request (HTTP 400" in said[4]
    assert [server.looks for server in (first, second, third, sound)] == [2, 2, 2, 1]
    for recipe in (whole, cut, refused):
        assert_close(one(recipe, teacher={**recipe["teacher"], "url": well.url}), Path(recipe["output"]))
    for recipe, asked in ((uneven, sound), (lonely, well)):
        before = Counter(asked.texts)
        with running(Failing(folder / "llama-teacher")) as alone:
            assert_close(one(recipe, teacher={**recipe["teacher"], "url": alone.url}), Path(recipe["output"]))
        if recipe is uneven:
            assert before == Counter(alone.texts)


def test_servers_that_write(folder: Path, well: Failing) -> None:
    """One process asks for the text, and hands over the weights, which may be cut; whatever happens meanwhile."""
    with (
        running(FailingStudent(folder / "other").start_anew(15)) as first,
        running(FailingStudent(folder / "other").fail(13)) as second,
        running(FailingStudent(folder / "other")) as third,
    ):
        restarted = job(folder, "restarted", "on-policy-kd", sampler=sampler(first), settings=GREEDY)
        gone = job(folder, "gone", "on-policy-kd", sampler=sampler(second, **SOON), settings=GREEDY, train=CUT)
        stale = job(folder, "stale", "on-policy-kd", well, sampler=sampler(third, max_staleness=1), train=CUT)
        outcomes = launched(folder, [{"recipe": recipe} for recipe in (restarted, gone, gone, stale)])
        assert outcomes[0] == outcomes[2] == outcomes[3] == ["finished", "finished"]
        assert outcomes[1][0] == outcomes[1][1]
        assert f"the server at {second.url} gave no answer within 6 s (last: HTTP 503" in outcomes[1][0]
        assert "saved at step 2 of 6" in outcomes[1][0]
        assert not list(folder.glob("*/weights/**/*.safetensors"))
        assert (first.looks, second.looks, third.looks) == (1, 2, 1)
        assert len(first.reloads) == 1 + 6 + 1
        assert len(third.reloads) == 1 + 3
        asked = third.texts
        for recipe in (restarted, gone):
            assert_close(one(recipe, sampler={}), Path(recipe["output"]))
        with running(FailingStudent(folder / "other")) as alone:
            assert_close(one(stale, sampler=sampler(alone, max_staleness=1)), Path(stale["output"]))
    assert sorted(asked) == sorted(alone.texts)  # several requests are on their way at once
    found = [[line for line in lines(path) if "loss" in line] for path in (folder / "stale", folder / "stale-one")]
    assert [line["rollout_staleness"] for line in found[0]] == [0, 1] * 3
    for two, wanted in zip(*found, strict=True):
        assert two["importance_weight"] == pytest.approx(wanted["importance_weight"], rel=1e-4)
    assert abs(found[0][1]["importance_weight"] - 1) > 1e-4
