"""Numbers that are not finite: refused before they reach the weights, and traced to where they come from."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from tutelage.errors import DivergedError
from tutelage.losses.chunks import DEFAULT_MEMORY, chunk_size, slices
from tutelage.models.bridge import BridgedTeacher
from tutelage.models.cached_teacher import TopKTeacher
from tutelage.models.language_model import LanguageModel
from tutelage.models.served_teacher import ServedTeacher
from tutelage.models.sharding import number
from tutelage.models.teachers import Teacher
from tutelage.rollouts.rollout import Rollout
from tutelage.training.setup import Setup


@dataclass(frozen=True)
class Suspect:
    """Where a number that is not finite was seen first."""

    what: str
    """In words, such as "the teacher's hidden states are not finite"."""
    sequence: int | None = None
    """Which one of the batch, from 0."""
    position: int | None = None
    """Token of its response, from 0."""
    id: int | None = None
    """Token of the vocabulary whose logit it was."""


@dataclass(eq=False)
class StepRefused(DivergedError):
    """A step was not applied, no part of it: something in it was not finite, or there was nothing in it."""

    quantity: str
    """What, in words, such as "the loss is nan"."""
    training: Sequence[str] = ()
    """The modules that the pass was to update."""
    losses: Sequence[float] = ()
    """Of the micro-batches up to the one in question."""
    sequence_losses: Sequence[float] = ()
    """Of all sequences, each computed by itself on looking again; they add up to the loss of the step."""
    suspect: Suspect | None = None
    """Where it comes from, if looking again showed it."""
    sums: Mapping[str, float] = field(default_factory=lambda: {"loss": math.nan})
    """What the step's metrics are made of."""

    def __str__(self) -> str:
        """What was not finite."""
        return self.quantity


def suspect_in_text(rollout: Rollout) -> Suspect | None:
    """Find a number that is not finite among those that text carries: log-probabilities, rewards, advantages, …

    >>> suspect_in_text(Rollout.of([[1]], [[2, 3]], logps=[[-1.0, float("nan")]]))
    Suspect(what="the writer's log-probabilities are not finite", sequence=0, position=1, id=None)
    """
    columns = {f"the values '{name}' are not finite": column for name, column in rollout.values.items()}
    if rollout.logps is not None:
        columns = {"the writer's log-probabilities are not finite": rollout.logps, **columns}
    for what, column in columns.items():
        for sequence, row in enumerate(column):
            if not all(map(math.isfinite, row)):
                return Suspect(what, sequence, [math.isfinite(value) for value in row].index(False))
    return None


def refusal(
    quantity: str,
    rollout: Rollout,
    setup: Setup,
    modules: Mapping[str, nn.Module],
    loss_of: Callable[[Rollout], Tensor | None],
    suspect: Suspect | None = None,
) -> StepRefused:
    """Trace a number that is not finite to where it comes from, by computing everything again bit by bit.

    Args:
        quantity: what was not finite.
        rollout: the batch.
        setup: both models.
        modules: what is trained, by name; gradients are left on them.
        loss_of: the share of some of the sequences in the loss, as the update computes it.
        suspect: where it was seen, if no model turns out to be behind it.
    """
    models: list[tuple[str, Teacher | LanguageModel]] = [("the student", setup.student)]
    reads_ids = not isinstance(setup.teacher, TopKTeacher | ServedTeacher | BridgedTeacher)
    if setup.teacher is not None and reads_ids:
        models.insert(0, ("the teacher", setup.teacher))
    suspects = chain(
        _in_weights(setup, modules),
        *(_in_scores(name, model, rollout, setup.vocabulary) for name, model in models),
        *(_impossible(name, model, rollout, setup.vocabulary) for name, model in models),
        [] if suspect is None else [suspect],
        _alone(rollout, modules, loss_of),
    )
    first = next(suspects, None)
    with torch.no_grad():
        losses = [loss_of(rollout.select([sequence])) for sequence in range(len(rollout))]
    found = [0.0 if loss is None else loss.item() for loss in losses]
    return StepRefused(quantity, sequence_losses=found, suspect=first)


def _in_weights(setup: Setup, modules: Mapping[str, nn.Module]) -> Iterator[Suspect]:
    teacher = None if setup.teacher is None else setup.teacher.model
    named = {**modules} if teacher is None else {"teacher": teacher.model, **modules}
    for name, module in named.items():
        for key, parameter in module.named_parameters():
            if not _is_finite(parameter):
                yield Suspect(f"the weights of the {name} are not finite ({key})")


def _in_scores(
    name: str, model: Teacher | LanguageModel, rollout: Rollout, vocabulary: int | None
) -> Iterator[Suspect]:
    """Hidden states and log-probabilities."""
    for sequence, places, hidden in _sequences(model, rollout):
        for place, row in zip(places, torch.isfinite(hidden).all(-1).tolist(), strict=True):
            if not row:
                yield Suspect(f"{name}'s hidden states are not finite", sequence, place)
        for first, logits in _logits(model, hidden, vocabulary):
            for row in (~torch.isfinite(logits.logsumexp(-1))).nonzero().flatten().tolist():
                token = int(torch.isfinite(logits[row]).int().argmin())
                yield Suspect(f"{name}'s log-probabilities are not finite", sequence, places[first + row], token)


def _impossible(
    name: str, model: Teacher | LanguageModel, rollout: Rollout, vocabulary: int | None
) -> Iterator[Suspect]:
    """Tokens of probability 0: right in themselves, but some divergences are infinite there."""
    for sequence, places, hidden in _sequences(model, rollout):
        for first, logits in _logits(model, hidden, vocabulary):
            for row, token in torch.isneginf(logits).nonzero().tolist():
                yield Suspect(f"a token has probability 0 under {name}", sequence, places[first + row], token)


def _alone(
    rollout: Rollout, modules: Mapping[str, nn.Module], loss_of: Callable[[Rollout], Tensor | None]
) -> Iterator[Suspect]:
    """Sequences whose loss or gradient is not finite by itself."""
    for sequence in range(len(rollout)):
        loss = loss_of(rollout.select([sequence]))
        if loss is None:
            continue
        if not torch.isfinite(loss):
            yield Suspect("its loss is not finite", sequence)
        loss.backward()
        for name, module in modules.items():
            for key, parameter in module.named_parameters():
                if parameter.grad is not None and not _is_finite(parameter.grad):
                    yield Suspect(f"its gradient of the {name} is not finite ({key})", sequence)


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; of a tensor that is cut over the processes, in all of its parts."""
    return number((~torch.isfinite(tensor)).sum()) == 0


def _sequences(model: Teacher | LanguageModel, rollout: Rollout) -> Iterator[tuple[int, list[int], Tensor]]:
    """Each sequence with something in the loss: its number, the places of those tokens, their hidden states."""
    for sequence in range(len(rollout)):
        part = rollout.select([sequence])
        if part.positions:
            with torch.no_grad():
                hidden = model.hidden(part)
            yield sequence, [place for place, seen in enumerate(part.masks[0]) if seen], hidden


def _logits(model: Teacher | LanguageModel, hidden: Tensor, vocabulary: int | None) -> Iterator[tuple[int, Tensor]]:
    """The logits, some positions at a time, each time with the number of the first one."""
    head = model.head.detached().gathered().narrow(vocabulary or model.head.vocabulary)
    for rows in slices(len(hidden), chunk_size(head.vocabulary, DEFAULT_MEMORY)):
        yield rows.start, head.logits(hidden[rows])
