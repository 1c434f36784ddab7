"""When memory runs out: do the same work in smaller parts, for the rest of the run."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from tutelage.config import Decoding
from tutelage.errors import DoesNotFitError, InputError
from tutelage.models.skeleton import load_skeleton
from tutelage.rollouts.rollout import Rollout
from tutelage.training.memory import estimate
from tutelage.training.served import is_served
from tutelage.training.setup import Setup

Result = TypeVar("Result")

_MESSAGES = ("you tried to allocate", "CUBLAS_STATUS_ALLOC_FAILED")
"""Of errors that have no type of their own: the allocator of the CPU, and libraries on the GPU."""


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, on a GPU or on the CPU.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


_KNOBS = "train.gradient_checkpointing, train.precision bfloat16, data.max_tokens, an adapter, a smaller student"


class Size:
    """How much is done at once, halved whenever that does not fit.

    What is computed must not depend on the size, so that halving it changes nothing but the time.

    Args:
        key: what a user sets to begin with a smaller size.
        asked: the size to begin with.
        note: told in one line about every halving.
        need: what the run needs, for the message of giving up.
    """

    def __init__(self, key: str, asked: int, note: Callable[[str], None], need: Callable[[], str]) -> None:
        self.value = asked
        """The size as it is now."""
        self._key, self._asked, self._note, self._need = key, asked, note, need

    def fitting(self, work: Callable[[int], Result], *, largest: int, least: int) -> Result:
        """Do some work, from its start again with half the size whenever memory runs out.

        Args:
            work: takes the size; leaves nothing behind when it fails.
            largest: the size at which everything is done at once; more makes no difference.
            least: the size at which everything is done one by one; less makes none either.

        Returns:
            What the work returns.

        Raises:
            DoesNotFitError: memory ran out at the least size.
        """
        while True:
            try:
                return work(self.value)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self._halve(min(self.value, largest), least)  # here, where the error no longer holds on to the tensors

    @contextmanager
    def indivisible(self) -> Iterator[None]:
        """Around work that cannot be cut: say what the run needs if it does not fit.

        Raises:
            InputError: memory ran out. The work may be half done: what it works on is not to be kept.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(f"out of memory. What the run needs, and what lowers it:\n{self._need()}") from None

    def _halve(self, used: int, least: int) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if used <= least:
            raise DoesNotFitError(
                f"out of memory, and what is left cannot be cut: {self._key} is down to {used}, which is one sequence "
                f"at a time. What the run needs, and what lowers it:\n{self._need()}"
            )
        self.value = max(least, used // 2)
        self._note(
            f"out of memory: going on with {self._key} {self.value} instead of {used}, which gives the same result; "
            f"set --{self._key} {self.value} to begin with it"
        )

    def state(self) -> dict[str, int]:
        """Return what was asked for and what fits, for JSON."""
        return {"asked": self._asked, "fits": self.value}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on with the size that fitted, unless the recipe asks for another one now."""
        if state["asked"] == self._asked:
            self.value = state["fits"]


class Sizes:
    """The sizes of a run.

    Args:
        setup: models, rows and recipe.
        note: told in one line about every halving.
    """

    def __init__(self, setup: Setup, note: Callable[[str], None]) -> None:
        def need() -> str:
            return memory_table(setup)

        recipe = setup.recipe
        written = {name: value for name, value in vars(recipe.method).items() if isinstance(value, Decoding)}
        largest = max(written, key=lambda name: written[name].batch_size, default=None)
        self.micro_batch = Size("train.micro_batch_tokens", recipe.train.micro_batch_tokens, note, need)
        """Tokens in one forward pass."""
        self.sampling = Size(f"method.{largest}.batch_size", written[largest].batch_size if largest else 1, note, need)
        """Sequences written at the same time."""
        self.evaluation = Size("evaluation.decoding.batch_size", recipe.evaluation.decoding.batch_size, note, need)
        """The same in an evaluation, whose forward passes shrink with it."""

    def state(self) -> dict[str, Any]:
        """Return all sizes, for JSON."""
        return {name: size.state() for name, size in vars(self).items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the sizes that fitted."""
        for name, size in vars(self).items():
            size.restore(state[name])


def padded_size(rollout: Rollout) -> int:
    """Return the tokens of all sequences of a rollout together, padded to the longest."""
    return len(rollout) * max(rollout.lengths)


@contextmanager
def mode_kept(model: nn.Module) -> Iterator[None]:
    """Leave a model in training or evaluation mode as it was, also where what is done in between fails."""
    was_training = model.training
    try:
        yield
    finally:
        model.train(was_training)


def memory_table(setup: Setup) -> str:
    """Return what the run needs of memory, a part a line, with what lowers each."""
    recipe = setup.recipe
    wanted = recipe.teacher if setup.teacher is not None and not is_served(recipe) else None
    try:  # the table is a help only, made where memory is short
        teacher = None if wanted is None else load_skeleton(wanted, "teacher")
        student = load_skeleton(recipe.student, "student", tokenizer=setup.tokenizer, teacher=teacher)
        parts = estimate(recipe, student, teacher, setup.texts.train)
    except (RuntimeError, MemoryError):
        return f"  {_KNOBS}"
    return "\n".join(f"  {part.name}: {part.gibibytes:.2f} GiB; {part.knob}" for part in parts)
