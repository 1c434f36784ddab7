"""Being told to stop: the first signal is remembered, the second one ends the process at once."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import NoReturn

from tutelage.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """While it is entered, SIGTERM, SIGINT and SIGUSR1 set `requested` instead of killing the process.

    >>> with StopRequest() as stop:
    ...     stop.requested
    False
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may handle signals
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def leave(self, message: str) -> NoReturn:
        """Leave what is going on, with the exit status that says it can be resumed."""
        raise Stopped(message)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os._exit(128 + number)
        self.requested = True
