"""vLLM servers that write with the student's weights: they are given new ones, and proven to compute with them.

A version of the weights is a folder that the servers read (`/collective_rpc` with `reload_weights`), and a label
(`/update_weight_version`) that a server loses when it starts anew. A server that is found without the label, at
whatever request, is given the weights again before it is asked for text.

Of several processes the first one alone talks to the servers, so that nobody gives one new weights while it writes for
another; the others take part in what needs all of them, which is a student that is cut.
"""

import re
import secrets
import shutil
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter
from transformers import PreTrainedTokenizerBase
from typing_extensions import TypedDict  # pydantic does not take that of typing before Python 3.12

from tutelage.config import Decoding
from tutelage.config_sampler import Sampling
from tutelage.errors import InputError
from tutelage.models.gathering import write_model
from tutelage.models.language_model import LanguageModel
from tutelage.models.pairing import fewest
from tutelage.models.prompt_logprobs import COMPLETION, read_scores
from tutelage.models.prompt_logprobs import request as scores_request
from tutelage.models.server_probes import LONGEST, MODELS, TEXT
from tutelage.models.serving import Passing, Refused, Server, Servers
from tutelage.rollouts.decoding import evaluating
from tutelage.rollouts.rollout import Ids, Rollout
from tutelage.rollouts.sampling import logp_of
from tutelage.rollouts.served_text import WRITTEN, Written, request
from tutelage.world import world

STARTUP = 60.0
"""Most seconds to wait for the servers before a run begins."""
START = "start it as docs/served-rollouts.md says: VLLM_SERVER_DEV_MODE=1 and --logprobs-mode processed_logprobs"
BIAS = 100
"""What is added to a logit to make a token certain."""
CERTAIN = -0.01
"""Such a token has at least this log-probability, nats, where the distribution that is drawn from is told."""


Value = TypeVar("Value")


class Label(TypedDict):
    """The label of the weights that a server has."""

    weight_version: str


class Reset(TypedDict):
    """Whether a server has forgotten what it had read with older weights."""

    success: bool


_LABELS = re.compile(r"[0-9a-f]{8}-\d+")
_LABEL, _RESET, _ANYTHING = TypeAdapter(Label), TypeAdapter(Reset), TypeAdapter(Any)


@dataclass(frozen=True)
class Version:
    """The student's weights at one time."""

    label: str
    folder: Path
    """Where the servers read them."""
    logps: tuple[float, ...]
    """The student's own log-probabilities of the probe, nats."""
    tolerance: float
    """How far a server's may lie from them, as a mean over the tokens, nats."""


class StudentServers:
    """Servers of the student, which belong to one run.

    Making one asks every server whether it knows the model, can be given weights, and tells the log-probabilities
    that it draws from.

    Args:
        spec: the recipe's section.
        folder: where weights are handed over, in a folder `student` of its own; that is made, emptied at the start
            and taken away in the end.
        tokenizer: the student's.
        report: told in one line each what is waited for.

    Raises:
        InputError: a server cannot be reached, or is not what is needed; the message says what to do.
    """

    def __init__(
        self,
        spec: Sampling,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        report: Callable[[str], None] = print,
    ) -> None:
        assert spec.model is not None
        self.name, self.spec, self._folder = spec.model, spec, folder.absolute() / "student"
        self._probe: Ids = tuple(tokenizer.encode(TEXT, add_special_tokens=False)[:LONGEST])
        self._servers = Servers(spec, report)
        try:
            self._run, self.max_length = world().main_does(self._first_look)
        except ConnectionError as error:
            raise InputError(f"{error}; start it, or look at sampler.url") from None
        """Most tokens that a server reads and writes together, `None` where none says."""
        self._version: Version | None = None
        self._left_behind: Callable[[], object] | None = None
        self._number = self._vocabulary = self._given = 0
        self._handed_over_at = 0
        self.behind = 0
        """Optimiser steps that the student had made, when text was written last, since its weights were handed over."""

    def update(self, student: LanguageModel, step: int) -> None:
        """Have every server write with the student's weights as they are now; all processes of the run take part.

        With `max_staleness` above 0, the servers keep their weights for so many steps.

        The first time, the servers are given weights with an output head twice as large before that: one that keeps
        old weights could not be told apart later, while the student has hardly changed.

        Args:
            student: as it is now.
            step: the optimiser steps, or for methods with collections the collections, that are done.

        Raises:
            InputError: a server will not take them, or computes something else with them.
            ConnectionError: a server has not taken them within `patience` seconds.
        """
        self.behind = step - self._handed_over_at
        if self._version is not None and 0 < self.behind <= self.spec.max_staleness:
            world().main_does(self._bring_all_up_to_date)  # one may have started anew meanwhile
            return
        logps = self._own_logps(student)
        if self._version is None:
            with _doubled_head(student):
                doubled = self._own_logps(student)
                self._publish(student, doubled, tolerance=_distance(doubled, logps) / 2)
        self._publish(student, logps, tolerance=self.spec.tolerance)
        self._handed_over_at, self.behind = step, 0

    def write(self, bodies: Sequence[Mapping[str, Any]]) -> list[Written]:
        """Send requests for text; return the answers in their order. The first process alone may do so.

        Where a server has started anew meanwhile, everything is written again: it may have written with other weights
        before that was noticed.

        Raises:
            InputError: a server refuses one, or has other weights afterwards than it was given.
            ConnectionError: one was not answered within `patience` seconds.
        """
        while True:
            given = self._given
            written = self._servers.run(self._servers.ask("/completions", bodies, WRITTEN))
            self._on_each(self._see_to_weights)
            if self._given == given:
                return written

    def close(self) -> None:
        """Take away the weights that were handed over last."""
        if self._left_behind is not None:
            self._left_behind()

    def _publish(self, student: LanguageModel, logps: tuple[float, ...], tolerance: float) -> None:
        """Write the weights down, and have every server read them."""
        model, everyone, before = student.model, world(), self._version
        if before is None:
            everyone.main_does(self._empty_folder)
        self._number += 1
        label = f"{self._run}-{self._number}"
        folder = self._folder / label  # unlike those of any other run that was given the same folder
        write_model(model, folder)
        self._version, self._vocabulary = Version(label, folder, logps, tolerance), student.head.vocabulary
        everyone.main_does(self._bring_all_up_to_date)
        if before is not None:
            everyone.main_does(lambda: shutil.rmtree(before.folder, ignore_errors=True))

    def _empty_folder(self) -> None:
        """Take away what a run that was killed has left there, and later what this one leaves."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._left_behind = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def _bring_all_up_to_date(self) -> None:
        self._on_each(self._bring_up_to_date)
        self._servers.trust(self._bring_up_to_date)

    def _on_each(self, action: Callable[[Server], Awaitable[Value]]) -> list[Value]:
        return self._servers.run(self._servers.each(action, self.spec.patience))

    async def _bring_up_to_date(self, server: Server) -> None:
        """Give a server the weights, unless it has them, and see that it computes what the student does."""
        assert self._version is not None
        if await self._label(server) != self._version.label:
            await self._reload(server, self._version)
        body = scores_request(self.name, self._probe, 1)
        places, sizes = range(1, len(self._probe)), {"known": self._vocabulary, "vocabulary": self._vocabulary}
        completion = await server.ask("/completions", body, COMPLETION)
        found = read_scores(completion, self._probe, places, top_k=1, **sizes)[2].tolist()
        gap = _distance(found, self._version.logps)
        if not gap <= self._version.tolerance:
            raise InputError(
                f"the server at {server.url} was given the student's weights and computes something else: its "
                f"log-probabilities of a fixed text are {gap:.3g} nats a token from the student's, and "
                f"{self._version.tolerance:.3g} are allowed (sampler.tolerance; in the first test, half of what a "
                "doubled output head changes). vLLM on a CPU keeps the old head of a model that shares it with its "
                "embedding; quantised weights compute something else too"
            )

    async def _reload(self, server: Server, version: Version) -> None:
        self._given += 1
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(version.folder)}}
        try:
            await server.ask("/../collective_rpc", body, _ANYTHING)
        except Passing as error:
            if error.status != 500:
                raise
            raise InputError(
                f"the server at {server.url} could not take the weights in {version.folder} ({error}); it has to serve "
                "the student's architecture, and to see this folder under the same path (sampler.weights_folder). It "
                "may have ended over this: start it again"
            ) from None
        # What it remembers of prompts was computed with the old weights, and would be used without a word.
        if not (await server.ask("/../reset_prefix_cache", {}, _RESET))["success"]:
            raise Passing("it still holds what it read with older weights")
        await server.ask("/../update_weight_version", {"new_version": version.label}, _ANYTHING)

    async def _see_to_weights(self, server: Server) -> None:
        """Give a server that has started anew, and so lost the weights that it was given, these again."""
        assert self._version is not None
        label = await self._label(server)
        if label != self._version.label and not server.failed:
            raise InputError(
                f"the server at {server.url} has other weights ('{label}') than this run gave it "
                f"('{self._version.label}'); a server of sampler.url belongs to one run. Nothing that it wrote was used"
            )
        if label != self._version.label:
            await self._bring_up_to_date(server)

    async def _label(self, server: Server) -> str:
        return (await server.ask("/../weight_info", None, _LABEL))["weight_version"]

    def _first_look(self) -> tuple[str, int | None]:
        """A name for this run, and the smallest length that the servers tell."""
        _check_emptiable(self._folder)
        patience = min(STARTUP, self.spec.patience)
        return secrets.token_hex(4), fewest(*self._servers.run(self._servers.each(self._look_at, patience)))

    async def _look_at(self, server: Server) -> int | None:
        """Look at a server for the first time; return the length that it tells."""
        served = {one["id"]: one.get("max_model_len") for one in (await server.ask("/models", None, MODELS))["data"]}
        if self.name not in served:
            raise InputError(
                f"the server at {server.url} does not serve '{self.name}', but {', '.join(served) or 'nothing'}; give "
                "the name that it serves the student under as sampler.model"
            )
        try:
            await self._label(server)
        except Refused as error:
            raise InputError(f"{error}; it cannot be given the student's weights: {START}") from None
        await self._check_what_it_tells(server)
        return served[self.name]

    async def _check_what_it_tells(self, server: Server) -> None:
        """Whether the log-probabilities of text are those of the distribution that it was drawn from."""
        certain = self._probe[0]
        body = request(self.name, self._probe, Decoding(max_new_tokens=1), stop_ids=(), seed=0)
        answer = await server.ask("/completions", {**body, "logit_bias": {str(certain): BIAS}}, WRITTEN)
        choices = [(one.get("token_ids"), one.get("logprobs")) for one in answer["choices"]]
        told = [scores["token_logprobs"] for ids, scores in choices if ids == [certain] and scores is not None]
        if not told or told[0][0] < CERTAIN:
            raise InputError(
                f"the server at {server.url} does not tell the log-probabilities that it draws text from (of a token "
                f"that was made certain it says {choices}); {START}"
            )

    def _own_logps(self, student: LanguageModel) -> tuple[float, ...]:
        """The student's log-probabilities of the probe, all ids counted."""
        text = Rollout.of([self._probe[:1]], [self._probe[1:]])
        with evaluating(student):
            logits = student.head.gathered().logits(student.hidden(text))
            return tuple(logp_of(logits, student.targets(text)).tolist())


def _check_emptiable(folder: Path) -> None:
    """Refuse a folder with anything that no run has handed over: it would be lost."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = next((name for name in names if not _LABELS.fullmatch(name)), None)
    if foreign is not None:
        raise InputError(
            f"{folder} would be emptied to hand weights over in it, and it holds {foreign}, which no run has handed "
            "over; name another sampler.weights_folder, or move it away"
        )


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The mean difference, nats a token."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


@contextmanager
def _doubled_head(student: LanguageModel) -> Iterator[None]:
    """With logits twice as large, for a while; a power of two changes no digit of the weights."""
    weight = student.head.weight
    with torch.no_grad():
        weight.mul_(2)
    try:
        yield
    finally:
        with torch.no_grad():
            weight.mul_(0.5)
