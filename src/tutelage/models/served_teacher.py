"""A teacher behind an OpenAI-compatible server, asked for its most probable tokens while the run goes on."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

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
from tutelage.models.prompt_logprobs import COMPLETION, Columns, read_scores, request
from tutelage.models.server_probes import Fingerprint, Probes
from tutelage.models.serving import Servers
from tutelage.models.teachers import Teacher
from tutelage.rollouts.rollout import Rollout

STARTUP = 60.0
"""Most seconds to wait for the servers before a run begins."""


class ServedTeacher(Teacher):
    """A teacher that is served: it can be compared with on any text, and nothing more.

    Making one asks every server whether it is the right one: that it knows the model, gives prompt log-probabilities
    of token ids, as many as are wanted, and cuts text as the tokenizer here does.

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
        probes = Probes(spec.model, self.tokenizer, self.top_k, self.vocabulary)
        try:
            found = self._servers.run(self._servers.each(probes.look_at, min(STARTUP, spec.patience)))
        except ConnectionError as error:
            raise InputError(f"{error}; start it, or look at teacher.url") from None
        self.fingerprint: Fingerprint = probes.agreed(found)
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

        Every sequence is a request; all of them are sent at once.

        Raises:
            InputError: a server refuses a request, or answers with what cannot be right, or serves another model now.
            ConnectionError: the servers have not answered for `patience` seconds; the run may go on another time.
        """
        start = time.perf_counter()
        vocabulary = options.get("vocabulary") or min(student_head.vocabulary, self.vocabulary)
        ids, logp, target = (column.to(student_hidden.device) for column in self.scores(rollout, vocabulary))
        self.seconds += time.perf_counter() - start
        options["vocabulary"] = vocabulary
        scores = top_k_divergence(student_hidden, student_head, ids, logp, divergence, **options)
        return scores if options.get("targets") is None else replace(scores, teacher_logp=target)

    def scores(self, rollout: Rollout, vocabulary: int) -> Columns:
        """Return the most probable tokens at each masked position, as `read_scores` does."""
        rows = [_asked(rollout, row) for row, positions in enumerate(rollout.positions_of) if positions]
        bodies = [request(self._name, prompt, self.top_k) for prompt, _ in rows]
        answers = self._servers.run(self._servers.ask("/completions", bodies, COMPLETION))
        empty = (torch.zeros(0, self.top_k, dtype=torch.long), torch.zeros(0, self.top_k), torch.zeros(0))
        sizes = {"top_k": self.top_k, "known": self.vocabulary, "vocabulary": vocabulary}
        parts = [
            read_scores(answer, prompt, places, **sizes) for answer, (prompt, places) in zip(answers, rows, strict=True)
        ]
        ids, logp, target = (torch.cat(columns) for columns in zip(empty, *parts, strict=True))
        return ids, logp, target


def same_teacher(now: str | Mapping[str, Any], before: str | Mapping[str, Any]) -> bool:
    """Whether what is known of two teachers, for JSON, is that of one: a name of weights, or a fingerprint.

    >>> same_teacher("a1b2", "a1b2"), same_teacher("a1b2", {"max_length": 9, "logps": [-1.0]})
    (True, False)
    """
    if isinstance(now, Mapping) and isinstance(before, Mapping):
        return now["max_length"] == before["max_length"] and Fingerprint(**now).is_near(Fingerprint(**before))
    return now == before


def _asked(rollout: Rollout, row: int) -> tuple[tuple[int, ...], list[int]]:
    """The ids to send of a sequence, up to the last token in the loss; and the places of those."""
    prompt = rollout.prompts[row]
    places = [len(prompt) + at for at, seen in enumerate(rollout.masks[row]) if seen]
    return (prompt + rollout.responses[row])[: places[-1] + 1], places


def _no_states() -> InputError:
    return InputError(
        "the teacher is served (teacher.url), so neither its weights nor its hidden states are here; leave teacher.url "
        "out for what needs them"
    )
