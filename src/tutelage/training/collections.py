"""Collections: text sampled at once, prepared once, and used for some steps before the next one is sampled."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tutelage.methods.objective import Context, Modules, Objective
from tutelage.randomness import generator
from tutelage.rollouts.rollout import Rollout, joined, rollout_of
from tutelage.training.setup import Setup


class Collections:
    """Hands out the batch of each step.

    A collection of C prompts gives ⌈C / batch size⌉ steps an inner epoch. Which prompts are in a collection, and
    in which order they come in each inner epoch, follows from the seed and the step alone; only the text itself
    has to be remembered when a run stops in the middle of a collection.

    Args:
        setup: rows, models and recipe.
        own: the method's own modules.
    """

    def __init__(self, setup: Setup, own: Modules) -> None:
        self._setup, self._own = setup, own
        self._objective: Objective = setup.recipe.method
        self._batch = setup.recipe.train.batch_size
        self._prompts = self._objective.plan.collection or self._batch
        self._steps_per_epoch = math.ceil(self._prompts / self._batch)
        self._steps = self._steps_per_epoch * self._objective.plan.inner_epochs
        self._current: tuple[int, Rollout] | None = None
        self.sampler = self._objective.sampler(setup.sources())
        """Who writes."""

    def batch(self, step: int) -> Rollout:
        """Return the text of a step; sample and prepare a new collection where one begins."""
        number, position = divmod(step, self._steps)
        if self._current is None or self._current[0] != number:
            self._current = (number, self._collect(number))
        rollout = self._current[1]
        if self._steps > 1:
            rollout = rollout.select(self._rows(step, position, len(rollout) // self._prompts))
        text_rows = self._objective.plan.text_rows
        return joined([rollout, self._setup.text_batch(step, text_rows)]) if text_rows else rollout

    def state(self, done: int) -> dict[str, Any] | None:
        """Return the collection that the step after `done` steps goes on with, for JSON; `None` between two."""
        if self._current is None or done % self._steps == 0:
            return None
        return {"number": self._current[0], "rollout": asdict(self._current[1])}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on with a collection."""
        if state is not None:
            self._current = (state["number"], rollout_of(state["rollout"]))

    def _collect(self, number: int) -> Rollout:
        examples = [self._setup.texts.train[row] for row in self._setup.order.batch(number, self._prompts)]
        rollout = self.sampler.sample(examples, number)
        context = Context(
            student=self._setup.student,
            teacher=self._setup.teacher,
            vocabulary=self._setup.vocabulary,
            modules=self._own,
            tokenizer=self._setup.tokenizer,
            examples=[self._setup.texts.train[item] for item in rollout.items],
            micro_batch_tokens=self._setup.recipe.train.micro_batch_tokens,
            progress=number * self._steps / self._setup.steps,
        )
        return self._objective.prepare(rollout, context)

    def _rows(self, step: int, position: int, samples: int) -> list[int]:
        """The sequences of one step: all samples of its share of the prompts, shuffled anew each inner epoch."""
        share = position % self._steps_per_epoch
        order = generator(self._setup.recipe.seed, "inner", step - share).permutation(self._prompts)
        prompts = order[share * self._batch : (share + 1) * self._batch]
        return [int(prompt) * samples + sample for prompt in prompts for sample in range(samples)]
