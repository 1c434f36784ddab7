"""Being told to stop: what may be abandoned is left at once, what must be finished is finished first.

A run computes for long and changes what lasts for moments only. Around what may be thrown away (reading, loading,
sampling, scoring, the gradients of a step, evaluation) the first signal raises `Abandoned`, wherever the code
stands. Around what must stay whole (the optimisers' step, a save) it is remembered, and honoured right after. A
second signal always ends the process at once.

In a run of several processes nothing is left wherever the code stands, because the others would wait for this process
there: a signal to one of them is honoured by all where the next section begins.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from tutelage.errors import Stopped
from tutelage.world import world

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Abandoned(BaseException):
    """A signal ended what was going on. No `Exception`, so that nobody's handling of errors swallows it."""


class StopRequest:
    """Whether the process was told to stop, and whether what it does just now may be abandoned for that.

    >>> stop = StopRequest()
    >>> with stop.abandonable():
    ...     stop.requested
    False
    """

    def __init__(self) -> None:
        self.requested = False
        self._abandonable = False

    @contextmanager
    def abandonable(self) -> Iterator[None]:
        """What is done in here changes nothing that lasts: a signal ends it at once.

        Raises:
            Abandoned: a signal came, now or before.
        """
        with self._section(True):
            self.honour()
            yield

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """What is done in here is finished, whatever comes."""
        with self._section(False):
            yield

    def commit(self) -> None:
        """From here to the end of the section nothing is abandoned any more.

        Raises:
            Abandoned: a signal came before.
        """
        self._abandonable = False
        self.honour()

    def honour(self) -> None:
        """Raise `Abandoned` if a signal came, to this process or to another one of the run."""
        if world().any(self.requested):
            self.requested = True
            raise Abandoned

    def leave(self, message: str) -> NoReturn:
        """Leave the run, with the exit status that says it can be resumed."""
        raise Stopped(message)

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Take a signal; the next one of any kind will do what the system does by default, and end the process."""
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        self.requested = True
        name = signal.Signals(number).name
        os.write(2, f"tutelage: {name}: stopping; a second signal ends the process at once\n".encode())
        if self._abandonable and world().size == 1:  # of several, all have to leave at the same place
            self._abandonable = False  # raised once: what follows is the tidying up
            raise Abandoned

    @contextmanager
    def _section(self, abandonable: bool) -> Iterator[None]:
        before = self._abandonable
        self._abandonable = abandonable
        try:
            yield
        finally:
            self._abandonable = before and not self.requested


_active: StopRequest | None = None


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGINT and SIGUSR1 into a request to stop; shielded until a section says otherwise.

    Within itself it gives the same request, so a command and the run that it starts are told together. Outside the
    main thread, where Python takes no signals, it does nothing.
    """
    global _active
    if _active is not None:
        with _active.shielded():
            yield _active
        return
    stop, before = StopRequest(), dict[signal.Signals, Any]()
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, stop.receive) for number in SIGNALS}
    _active = stop
    try:
        yield stop
    finally:
        _active = None
        for number, handler in before.items():
            signal.signal(number, handler)
