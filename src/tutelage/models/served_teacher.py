"""A teacher behind an OpenAI-compatible server, asked for its most probable tokens while the run goes on."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage import config
from tutelage.divergences import Divergence
from tutelage.errors import InputError
from tutelage.losses.head import Head
from tutelage.losses.linear import PointwiseFunction, Scores
from tutelage.losses.top_k import top_k_divergence
from tutelage.models.loading import load_tokenizer
from tutelage.models.prompt_logprobs import Columns, read_scores
from tutelage.models.server_probes import Fingerprint, Probes, agreed_on
from tutelage.models.server_protocols import PROTOCOLS
from tutelage.models.serving import Servers
from tutelage.models.teachers import Teacher
from tutelage.rollouts.rollout import Ids, Rollout
from tutelage.world import world

STARTUP = 60.0
"""Most seconds to wait for the servers before a run begins."""


class ServedTeacher(Teacher):
    """A teacher that is served: it can be compared with on any text, and nothing more.

    Making one asks every server whether it is the right one: that it knows the model, gives prompt log-probabilities
    of token ids, as many as are wanted, and cuts text as the tokenizer here does. Of several processes the first one
    asks, and the others see that they reach the same model.

    Args:
        spec: where it is served, under which name, and what is asked of it.
        report: told in one line each what is waited for.

    Raises:
        InputError: a server cannot be reached, or is not what is needed; the message says what to do.
    """

    def __init__(self, spec: config.Teacher, report: Callable[[str], None] = print) -> None:
        assert spec.model is not None
        self._name, self.tokenizer = spec.model, load_tokenizer(spec, "teacher")
        self.vocabulary = max(self.tokenizer.get_vocab().values()) + 1
        """Ids that its tokenizer knows."""
        self.top_k = min(spec.top_k, self.vocabulary)
        """Tokens that it is asked for at a position."""
        self._servers = Servers(spec, report)
        self._protocol = PROTOCOLS[spec.protocol]
        self._told: dict[_Question, futures.Future[Columns]] = {}
        probes, patience = Probes(spec, self.tokenizer, self.top_k, self.vocabulary), min(STARTUP, spec.patience)
        run, each, everyone = self._servers.run, self._servers.each, world()
        try:
            probes.first = everyone.main_does(lambda: agreed_on(run(each(probes.look_at, patience))))
            everyone.agreed(lambda: everyone.is_main or run(each(probes.check, patience)))
        except ConnectionError as error:
            raise InputError(f"{error}; start it, or look at teacher.url") from None
        self.fingerprint: Fingerprint = probes.first
        """What tells it from other models."""
        self._servers.trust(probes.check)
        self.seconds = 0.0
        """Time spent waiting for it so far."""

    @property
    def model(self) -> None:
        """None: its weights are elsewhere."""
        return None

    @property
    def head(self) -> Head:
        """It has none here.

        Raises:
            InputError: always.
        """
        raise _no_states()

    def hidden(self, rollout: Rollout) -> Float[Tensor, "positions width"]:
        """It tells no hidden states.

        Raises:
            InputError: always.
        """
        raise _no_states()

    def compare(
        self,
        student_hidden: Float[Tensor, "positions student_width"],
        student_head: Head,
        rollout: Rollout,
        divergence: str | Divergence | PointwiseFunction,
        **options: Any,
    ) -> Scores:
        """Compare on the teacher's most probable tokens and one bucket for all others, as `top_k_divergence` does.

        What `ask_ahead` has asked about is not asked again. Every other sequence is a request, sent at once.

        Raises:
            InputError: a server refuses a request, or answers with what cannot be right, or serves another model now.
            ConnectionError: the servers have not answered for `patience` seconds; the run may go on another time.
        """
        vocabulary = options.get("vocabulary") or min(student_head.vocabulary, self.vocabulary)
        ids, logp, target = (column.to(student_hidden.device) for column in self.scores(rollout, vocabulary))
        options["vocabulary"] = vocabulary
        scores = top_k_divergence(student_hidden, student_head, ids, logp, divergence, **options)
        return scores if options.get("targets") is None else replace(scores, teacher_logp=target)

    def ask_ahead(self, rollout: Rollout, vocabulary: int, *, wait: bool = False) -> None:
        """Send the requests about a text now: until the next call, `compare` waits for what is not answered yet only.

        So the servers work while the student does. Models that are cut over the processes of a run make their passes in
        all of them at once, and none may fail in between: these wait here for all answers.

        Args:
            rollout: all that is compared next, in any parts.
            vocabulary: leading ids that are compared.
            wait: for all answers.

        Raises:
            InputError: with `wait`, as `compare` does.
            ConnectionError: likewise.
        """
        before, asked = self._told, _questions(rollout, vocabulary)
        self._told = {one: before.get(one) or self._servers.start(self._ask(one)) for one in asked}
        for question in before.keys() - self._told.keys():
            before[question].cancel()
        if wait:
            self._answers(asked)

    def scores(self, rollout: Rollout, vocabulary: int) -> Columns:
        """Return the most probable tokens at each masked position, as `read_scores` does."""
        empty = (torch.zeros(0, self.top_k, dtype=torch.long), torch.zeros(0, self.top_k), torch.zeros(0))
        parts = self._answers(_questions(rollout, vocabulary))
        ids, logp, target = (torch.cat(columns) for columns in zip(empty, *parts, strict=True))
        return ids, logp, target

    def _answers(self, asked: Sequence["_Question"]) -> list[Columns]:
        begun = time.perf_counter()
        told = {one: self._told.get(one) or self._servers.start(self._ask(one)) for one in asked}
        try:
            for done in futures.wait(told.values(), return_when=futures.FIRST_EXCEPTION).done:
                done.result()
        except BaseException:
            for future in (*told.values(), *self._told.values()):
                future.cancel()
            self._told = {}
            raise
        self.seconds += time.perf_counter() - begun
        return [told[one].result() for one in asked]

    async def _ask(self, question: "_Question") -> Columns:
        """Ask, and read the answer when it comes: as JSON it takes many times the room."""
        ids, places, vocabulary = question
        answer = await self._protocol.scores(self._servers.ask_one, self._name, ids, places[0], self.top_k)
        return read_scores(answer, ids, places, top_k=self.top_k, known=self.vocabulary, vocabulary=vocabulary)


def same_teacher(now: str | Mapping[str, Any], before: str | Mapping[str, Any]) -> bool:
    """Whether what is known of two teachers, for JSON, is that of one: a name of weights, or a fingerprint.

    >>> same_teacher("a1b2", "a1b2"), same_teacher("a1b2", {"max_length": 9, "logps": [-1.0]})
    (True, False)
    """
    if isinstance(now, Mapping) and isinstance(before, Mapping):
        return now["max_length"] == before["max_length"] and Fingerprint(**now).is_near(Fingerprint(**before))
    return now == before


class _Question(NamedTuple):
    """What is asked about a sequence."""

    ids: Ids
    """Up to the last token in the loss."""
    places: tuple[int, ...]
    """Those of the tokens in the loss."""
    vocabulary: int
    """Leading ids that are compared."""


def _questions(rollout: Rollout, vocabulary: int) -> list[_Question]:
    """About the sequences with something in the loss."""
    found = []
    for prompt, response, mask in zip(rollout.prompts, rollout.responses, rollout.masks, strict=True):
        places = tuple(len(prompt) + at for at, seen in enumerate(mask) if seen)
        if places:
            found.append(_Question((prompt + response)[: places[-1] + 1], places, vocabulary))
    return found


def _no_states() -> InputError:
    return InputError(
        "the teacher is served (teacher.url), so neither its weights nor its hidden states are here; leave teacher.url "
        "out for what needs them"
    )
