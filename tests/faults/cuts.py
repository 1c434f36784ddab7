"""Killing a process at one chosen system call of a save."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import safetensors.torch

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
"""Python's own names for the calls that change files; `fsync` and the writing of tensors are counted besides."""


class Cut:
    """Counts the calls that change files while something goes on, and kills the process before the `at`-th of them.

    Args:
        at: which call, from 1; `None` only counts.
    """

    def __init__(self, at: int | None) -> None:
        self.calls = 0
        self._at, self._counting = at, False

    def around(self, owner: Any, name: str, when: Callable[..., bool] = lambda *_, **__: True) -> None:
        """Count while a function runs.

        Args:
            owner: the module or class that has it.
            name: of the function.
            when: takes its arguments; whether to count in this call.
        """
        original = getattr(owner, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            self._counting = when(*arguments, **options)
            result = original(*arguments, **options)
            if self._counting:
                self._counting = False
                os.write(1, f"calls: {self.calls}\n".encode())
            return result

        setattr(owner, name, counted)

    def plant(self) -> None:
        """Begin to listen; cannot be undone in this process."""
        sys.addaudithook(lambda event, _: self._count() if event in EVENTS else None)
        for owner, name in ((os, "fsync"), (safetensors.torch, "serialize_file")):
            setattr(owner, name, self._before(getattr(owner, name)))

    def _before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self._count()
            return function(*arguments, **options)

        return counted

    def _count(self) -> None:
        if self._counting:
            self.calls += 1
            if self.calls == self._at:
                os.kill(os.getpid(), signal.SIGKILL)
