"""Collections: text sampled at once, prepared once, and used for some steps before the next one is sampled."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tutelage.data import Example
from tutelage.methods.objective import Context, Modules, Objective
from tutelage.randomness import generator
from tutelage.rollouts.rollout import Rollout, joined, rollout_of
from tutelage.rollouts.samplers import Sampler
from tutelage.training.out_of_memory import Sizes, mode_kept, padded_size
from tutelage.training.setup import Setup


class Collections:
    """Hands out the batch of each step.

    A collection of C prompts gives ⌈C / batch size⌉ steps an inner epoch. Which prompts are in a collection, and
    in which order they come in each inner epoch, follows from the seed and the step alone; only the text itself
    has to be remembered when a run stops in the middle of a collection.

    What may have to be saved, the sampler's memory and the current collection, changes in one assignment, so that a
    run which is told to stop while it samples saves what was before, or what is after, and never half of it.

    Args:
        setup: rows, models and recipe.
        own: the method's own modules.
        sizes: how much is sampled and scored at once.
    """

    def __init__(self, setup: Setup, own: Modules, sizes: Sizes) -> None:
        self._setup, self._own, self._sizes = setup, own, sizes
        self._batch_size = sizes.sampling.value
        self._objective: Objective = setup.recipe.method
        self._batch = setup.recipe.train.batch_size
        self._prompts = self._objective.plan.collection or self._batch
        self._steps_per_epoch = math.ceil(self._prompts / self._batch)
        self._steps = self._steps_per_epoch * self._objective.plan.inner_epochs
        self._sampler = self._objective.sampler(setup.sources())
        self._held: tuple[Sampler, int, Rollout | None] = (copy.copy(self._sampler), -1, None)

    def batch(self, step: int) -> Rollout:
        """Return the text of a step; sample and prepare a new collection where one begins."""
        number, position = divmod(step, self._steps)
        _, held, rollout = self._held
        if rollout is None or held != number:
            rollout = self._collect(number)
            self._held = (copy.copy(self._sampler), number, rollout)
        if self._steps > 1:
            rollout = rollout.select(self._rows(step, position, len(rollout) // self._prompts))
        text_rows = self._objective.plan.text_rows
        return joined([rollout, self._setup.text_batch(step, text_rows)]) if text_rows else rollout

    def age(self, step: int) -> int:
        """Return how many optimiser steps the student has made since the text of a step was sampled."""
        return step % self._steps

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Hand the values of an evaluation to the sampler."""
        self._sampler.observe(metrics)
        self._held = (copy.copy(self._sampler), *self._held[1:])

    def state(self, done: int) -> dict[str, Any]:
        """Return what the step after `done` steps goes on with, for JSON: the sampler's memory, and its collection."""
        sampler, number, rollout = self._held
        needed = rollout is not None and number == done // self._steps
        collection = {"number": number, "rollout": asdict(rollout)} if rollout is not None and needed else None
        return {"sampler": sampler.state(), "collection": collection}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._sampler.restore(state["sampler"])
        number, rollout = -1, None
        if state["collection"] is not None:
            number, rollout = state["collection"]["number"], rollout_of(state["collection"]["rollout"])
        self._held = (copy.copy(self._sampler), number, rollout)

    def _collect(self, number: int) -> Rollout:
        """Sample a collection and prepare it, in parts that fit into the memory."""
        examples = [self._setup.texts.train[row] for row in self._setup.order.batch(number, self._prompts)]
        rollout = self._sizes.sampling.fitting(
            lambda size: self._sample(examples, number, size), largest=len(examples), least=1
        )
        if not rollout.positions:
            return rollout  # nothing to prepare: the steps with it will be refused
        return self._sizes.micro_batch.fitting(
            lambda tokens: self._prepare(rollout, number, tokens),
            largest=padded_size(rollout),
            least=max(rollout.lengths),
        )

    def _sample(self, examples: Sequence[Example], number: int, batch_size: int) -> Rollout:
        if batch_size != self._batch_size:
            smaller = self._objective.sampler(self._setup.sources(batch_size))
            smaller.restore(self._held[0].state())
            self._sampler, self._batch_size = smaller, batch_size
        with mode_kept(self._setup.student.network):
            return self._sampler.sample(examples, number)

    def _prepare(self, rollout: Rollout, number: int, tokens: int) -> Rollout:
        context = Context(
            student=self._setup.student,
            teacher=self._setup.teacher,
            vocabulary=self._setup.vocabulary,
            modules=self._own,
            tokenizer=self._setup.tokenizer,
            examples=[self._setup.texts.train[item] for item in rollout.items],
            micro_batch_tokens=tokens,
            progress=number * self._steps / self._setup.steps,
        )
        with mode_kept(self._setup.student.network):
            return self._objective.prepare(rollout, context)

    def _rows(self, step: int, position: int, samples: int) -> list[int]:
        """The sequences of one step: all samples of its share of the prompts, shuffled anew each inner epoch."""
        share = position % self._steps_per_epoch
        order = generator(self._setup.recipe.seed, "inner", step - share).permutation(self._prompts)
        prompts = order[share * self._batch : (share + 1) * self._batch]
        return [int(prompt) * samples + sample for prompt in prompts for sample in range(samples)]
