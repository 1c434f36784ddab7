"""Letting a model write: sampled and greedy text by our own loop, beam search by transformers' `generate`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from tutelage.config import Decoding
from tutelage.losses.product import product
from tutelage.models.captured import CapturedSteps, captured_steps
from tutelage.models.language_model import LanguageModel
from tutelage.models.sharding import whole
from tutelage.models.stepping import stepper
from tutelage.rollouts.generated import generate
from tutelage.rollouts.rollout import Ids, Rollout, Writer
from tutelage.rollouts.writing import Place, Written, write
from tutelage.world import world


class OneModel:
    """A model on its own as a policy.

    Args:
        model: who writes.
        temperature: divides the logits.
        vocabulary: ids from this one on are never written.
        captured: its captured steps, where it has some.
    """

    def __init__(
        self,
        model: LanguageModel,
        temperature: float = 1.0,
        vocabulary: int | None = None,
        captured: CapturedSteps | None = None,
    ) -> None:
        self._stepper = stepper(model) if captured is None else captured.slots
        self._captured = captured
        self._head = model.head.gathered().narrow(vocabulary or model.head.vocabulary)
        self._temperature = temperature

    @property
    def joins(self) -> bool:
        """Whether new prompts may join sequences that are under way."""
        return self._stepper.joins

    def read(self, prompts: Sequence[Ids]) -> Tensor:
        """Read prompts; return the logits of their first tokens."""
        return self._logits(self._stepper.read(prompts))

    def step(self, tokens: Tensor) -> Tensor:
        """Read one token of each sequence; return the logits of the next."""
        if self._captured is not None:
            return self._captured.step(tokens, self._logits, (self._temperature, self._head.vocabulary))
        return self._logits(self._stepper.step(tokens))

    def keep(self, rows: Tensor) -> None:
        """Go on with these sequences only, in this order."""
        self._stepper.keep(rows)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self._head.logits_of(product(hidden, self._head.weight))
        return logits if self._temperature == 1.0 else logits.div_(self._temperature)


@contextmanager
def evaluating(*models: LanguageModel) -> Iterator[None]:
    """Without dropout and gradients, with weights that are whole in every process.

    The models are as they were afterwards, whatever happens in between.
    """
    were_training = [model.network.training for model in models]
    for model in models:
        model.network.eval()
    try:
        with torch.no_grad(), whole(*(model.network for model in models)):
            yield
    finally:
        for model, was_training in zip(models, were_training, strict=True):
            model.network.train(was_training)


def decode(
    model: LanguageModel,
    prompts: Sequence[Ids],
    decoding: Decoding,
    *,
    seed: int,
    places: Sequence[Place] | None = None,
    items: Sequence[int] | None = None,
    writer: Writer = "student",
    vocabulary: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Rollout:
    """Write one response to each prompt.

    A sequence that ends leaves the batch, and a waiting prompt takes its place. Equal prompts that are read at the
    same time are read once. What is sampled for a prompt depends on the seed and the prompt's place only, not on
    its neighbours or on the batch size (but for `backend: generate`).

    Args:
        model: who writes; its `stop_ids` end a response and are part of it.
        prompts: ids, none of them empty.
        decoding: strategy, temperature, truncation, length, batch size, backend, CUDA graphs.
        seed: the run's seed.
        places: what distinguishes the draws of one prompt from another's, such as (step, row).
        items: which row of the data each prompt is, for the rollout.
        writer: who writes, for the rollout.
        vocabulary: ids from this one on are never written (padding rows that the teacher does not have).
        on_progress: told how many more sequences are done, whenever some are.

    Returns:
        A rollout in the order of the prompts, with the log-probability of every token under the distribution
        it was drawn from (none for beam search).

    Raises:
        ValueError: the model has no stop ids.
    """
    prompts, places = [tuple(prompt) for prompt in prompts], places_of(prompts, places, model)
    vocabulary = vocabulary or model.head.vocabulary

    def written(prompts: list[Ids], places: list[Place]) -> Written:
        if decoding.strategy == "beam" or decoding.backend == "generate":
            return generate(model, prompts, places, decoding, seed=seed, vocabulary=vocabulary, on_progress=on_progress)
        temperature = decoding.temperature if decoding.strategy == "sample" else 1.0
        with captured_steps(model) if decoding.cuda_graphs else nullcontext() as captured:
            return write(
                OneModel(model, temperature, vocabulary, captured),
                prompts,
                places,
                decoding,
                stop_ids=model.stop_ids,
                seed=seed,
                device=model.device,
                on_progress=on_progress,
                histories=[()] * len(prompts) if model.is_encoder_decoder else prompts,
            )

    with evaluating(model):
        responses, logps = shared_out(written, prompts, places)
    return Rollout.of(prompts, responses, writer=writer, items=items, logps=logps)


def shared_out(
    written: Callable[[list[Ids], list[Place]], Written], prompts: Sequence[Ids], places: Sequence[Place]
) -> Written:
    """Have each process of the run write its share of the responses, long prompts and short ones alike; all get all."""
    everyone = world()
    order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), row))
    mine = [order[at] for at in everyone.share(len(order))]
    responses, logps = everyone.agreed(lambda: written([prompts[row] for row in mine], [places[row] for row in mine]))
    pairs = everyone.collect(list(zip(responses, logps or [()] * len(mine), strict=True)), len(order))
    back = sorted(range(len(order)), key=order.__getitem__)
    found = [pairs[at] for at in back]
    return [response for response, _ in found], None if logps is None else [logp for _, logp in found]


def places_of(prompts: Sequence[Ids], places: Sequence[Place] | None, model: LanguageModel) -> Sequence[Place]:
    """Return the places, one for each prompt, after checking that the model's responses can end.

    Raises:
        ValueError: the model has no stop ids.
    """
    if not model.stop_ids:
        raise ValueError("this model has no stop_ids, so its responses would never end; pass them to LanguageModel")
    return [(row,) for row in range(len(prompts))] if places is None else places
