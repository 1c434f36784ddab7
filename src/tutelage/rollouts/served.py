"""The student's text, written by vLLM servers that get its weights before every batch, or every few."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.config import Decoding
from tutelage.data import Example
from tutelage.evaluation.sequences import token_logps
from tutelage.models.language_model import LanguageModel
from tutelage.randomness import generator
from tutelage.rollouts.decoding import evaluating, places_of
from tutelage.rollouts.rollout import LOG_WEIGHT, Ids, Rollout
from tutelage.rollouts.samplers import Stateless, several
from tutelage.rollouts.served_text import read_response, request
from tutelage.rollouts.state_weights import state_weights
from tutelage.rollouts.student_servers import StudentServers
from tutelage.rollouts.writing import Place, Written
from tutelage.world import world


@dataclass(frozen=True)
class ServedStudentSampler(Stateless):
    """Text written by the student as it is now, on its servers. No gradient goes through the writing.

    With `sampler.max_staleness` above 0 it is written by the student as it was some steps ago, and its positions carry
    the logarithms of `state_weights`, which objectives multiply them by.

    What is drawn for a prompt depends on the seed and the prompt's place, as in this process, but with the server's
    own random numbers; whether it depends on the other requests too is the server's affair. The log-probabilities are
    those that the server drew from.
    """

    student: LanguageModel
    servers: StudentServers
    decoding: Decoding
    seed: int
    vocabulary: int | None = None
    """Ids from this one on are never written."""
    samples: int = 1
    """Responses to each prompt."""
    micro_batch_tokens: int = 4096
    """Tokens that the student reads at a time, for importance weights."""

    def sample(self, examples: Sequence[Example], step: int) -> Rollout:
        """Hand the weights over, and write the responses to each prompt, those to the same one after the other.

        Of several processes the first one asks for the text, and all of them get it.

        Raises:
            InputError: a server refuses a request, or answers with what cannot be right.
            ConnectionError: the servers have not answered for `patience` seconds; the run may go on another time.
        """
        self.servers.update(self.student, step)
        asked = several(examples, step, self.samples)
        places = places_of(asked["prompts"], asked["places"], self.student)
        responses, logps = world().main_does(lambda: self._written(asked["prompts"], places))
        rollout = Rollout.of(asked["prompts"], responses, writer="student", items=asked["items"], logps=logps)
        return self._weighed(rollout) if self.servers.spec.max_staleness else rollout

    def _weighed(self, rollout: Rollout) -> Rollout:
        """Add the logarithm of each position's importance weight, under the student as it is now."""
        assert rollout.logps is not None
        with evaluating(self.student):
            found = token_logps(self.student, rollout, self.micro_batch_tokens, vocabulary=self.vocabulary)
        own = [row.tolist() for row in found]
        weights = state_weights(own, rollout.logps, cap=self.servers.spec.importance_cap)
        logs = [[math.log(max(weight, sys.float_info.min)) for weight in row] for row in weights]
        return rollout.with_values(**{LOG_WEIGHT: logs})

    def _written(self, prompts: Sequence[Ids], places: Sequence[Place]) -> Written:
        rows, stop_ids = self.student.head.vocabulary, self.student.stop_ids
        vocabulary = self.vocabulary or rows
        bodies = [
            request(
                self.servers.name,
                prompt,
                self.decoding,
                stop_ids=stop_ids,
                seed=int(generator(self.seed, "served", *place).integers(2**63)),
                barred=range(vocabulary, rows),
            )
            for prompt, place in zip(prompts, places, strict=True)
        ]
        sizes = {"longest": self.decoding.max_new_tokens, "vocabulary": vocabulary}
        pairs = [read_response(answer, stop_ids=stop_ids, **sizes) for answer in self.servers.write(bodies)]
        return [response for response, _ in pairs], [logps for _, logps in pairs]
