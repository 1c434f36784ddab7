"""The processes of one run, as torchrun starts them: each computes its share, and all of them know all text.

A run of several processes is the same program in each of them. What is large (activations, gradients) each process has
for its share of the sequences; what is small (rows, text, numbers, decisions) every process has in full, so all of them
take the same way and end in the same weights, whatever their number. Files are written by the first one alone.
"""

import faulthandler
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from tutelage.errors import InputError, Stopped

Value = TypeVar("Value")
Part = TypeVar("Part")

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others before it takes them for lost; `TUTELAGE_TIMEOUT_MINUTES` changes it."""


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    >>> world().size, world().is_main, world().share(3), world().gather("a")
    (1, True, [0, 1, 2], ['a'])
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def share(self, count: int) -> list[int]:
        """The numbers below `count` that are this process's: every `size`-th, so that what is sorted is spread."""
        return list(range(self.rank, count, self.size))

    def gather(self, value: Value) -> list[Value]:
        """What each process gives, in the order of their ranks."""
        if self.size == 1:
            return [value]
        from torch import distributed

        found: list[Any] = [None] * self.size
        with _talking():
            distributed.all_gather_object(found, value)
        return found

    def collect(self, mine: Sequence[Value], count: int) -> list[Value]:
        """Put together what the processes found for their shares of `count` things, in the things' order."""
        shares = self.gather(list(mine))
        return [shares[at % self.size][at // self.size] for at in range(count)]

    def shared(self, work: Callable[[Part], Value], parts: Sequence[Part]) -> list[Value]:
        """Do some work on each part, every process on its share, and have all the results in all of them.

        A process with one part less does the first one again, because a model that is cut over the processes makes
        its passes in all of them at once.

        >>> world().shared(len, ["a", "bcd"])
        [1, 3]
        """
        mine, most = self.share(len(parts)), math.ceil(len(parts) / self.size)
        places = [*mine, *[0] * (most - len(mine))]
        found = self.agreed(lambda: [work(parts[place]) for place in places])
        return self.collect(found[: len(mine)], len(parts))

    def any(self, flag: bool) -> bool:
        """Whether any process says yes."""
        return any(self.gather(flag))

    def agreed(self, action: Callable[[], Value]) -> Value:
        """Do something that may fail in one process alone, without talking to the others meanwhile.

        Raises:
            Exception: that of the first process in which it failed, in all of them; a `RuntimeError` with its words
                where the others could not read it.
        """
        if self.size == 1:
            return action()
        value, error = _outcome(action)
        errors = [error for error in self.gather(_readable(error)) if error is not None]
        if errors:
            raise errors[0] from error
        return value  # type: ignore[return-value]

    def main_does(self, action: Callable[[], Value]) -> Value:
        """Have the first process do something while the others wait; all get what it returns, or raises."""
        if self.size == 1:
            return action()
        value, error = _outcome(action) if self.is_main else (None, None)
        told = self.gather(_readable(error))[0]
        if told is not None:
            raise told from error
        from torch import distributed

        found = [value]
        with _talking():
            distributed.broadcast_object_list(found, src=0)
        return found[0]  # type: ignore[return-value]

    def add(self, tensors: Iterable[Any]) -> None:
        """Put in the place of each tensor its sum over the processes."""
        if self.size == 1:
            return
        from torch import distributed

        with _talking():
            for work in [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
                assert work is not None
                work.wait()


def _outcome(action: Callable[[], Value]) -> tuple[Value | None, Exception | None]:
    try:
        return action(), None
    except Exception as error:
        return None, error


def _readable(error: Exception | None) -> Exception | None:
    """An error as the other processes can read it: its words alone where its class is not Python's, torch's or ours."""
    if error is None or type(error).__module__.partition(".")[0] in ("builtins", "torch", "tutelage"):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


_STDERR = 2
_ALONE = World()
_world = _ALONE


def world() -> World:
    """The processes of this run; one alone unless torchrun started several and `joined` was entered."""
    return _world


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that torchrun started, for as long as this lasts. Within itself, or alone, it does nothing.

    Raises:
        InputError: `TUTELAGE_TIMEOUT_MINUTES` is no time.
        Stopped: another process died or gave no answer in time, or the way to it is cut.
    """
    global _world
    if _world is not _ALONE or _started() == 1:
        yield _world
        return
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _lost_ones_named(limit()):
        distributed.init_process_group(backend, timeout=limit())
        _world = World(distributed.get_rank(), distributed.get_world_size())
        try:
            yield _world
            distributed.barrier()  # a process that leaves while another still talks to it can bring that one down
        finally:
            _world = _ALONE
            faulthandler.cancel_dump_traceback_later()
            distributed.destroy_process_group()


def _started() -> int:
    """How many processes torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leave(status: int) -> NoReturn:
    """End this process, at once where it is one of several.

    Torch keeps the group of cut models for good. A thread of it that still lets go of a tensor while the interpreter
    comes down ends the process with SIGABRT, and a finished run with it.
    """
    if _started() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def limit() -> timedelta:
    """How long a process waits for the others.

    Raises:
        InputError: `TUTELAGE_TIMEOUT_MINUTES` is no time.
    """
    given = os.environ.get("TUTELAGE_TIMEOUT_MINUTES")
    try:
        minutes = TIMEOUT / timedelta(minutes=1) if given is None else float(given)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise InputError(f"TUTELAGE_TIMEOUT_MINUTES is '{given}'; give minutes, a number above 0, or leave it out")
    return timedelta(minutes=minutes)


@contextmanager
def _talking() -> Iterator[None]:
    """Around what waits for the others. A process that does not come back to it in time says where it stands."""
    faulthandler.cancel_dump_traceback_later()
    yield
    faulthandler.dump_traceback_later(limit().total_seconds(), file=_STDERR)


@contextmanager
def _lost_ones_named(waited: timedelta) -> Iterator[None]:
    """Say what it means that torch cannot reach the other processes, in place of its error."""
    from torch.distributed import DistError

    try:
        yield
    except RuntimeError as error:
        of_gloo = "gloo" in str(error) and "enforce fail" not in str(error)  # which is a mistake of ours
        if not (of_gloo or isinstance(error, DistError)):
            raise
        cause = str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0]
        raise Stopped(
            f"the other processes of the run cannot be reached ({cause}): one has ended or hangs, or the network is "
            "down; what they print says more. The same command goes on from the last checkpoint. A process waits "
            f"{waited / timedelta(minutes=1):g} minutes for the others (TUTELAGE_TIMEOUT_MINUTES)"
        ) from error
