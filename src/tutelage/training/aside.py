"""Side services: what they do happens beside the run, and their failing cannot stop or hang it."""

import queue
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.training.tracking import Tracker


class Aside:
    """A tracker that works in a thread of its own; its first error is said once, and is its last.

    Args:
        tracker: the tracker.
        name: of it, for the warning.
        warn: told in one line that it failed.
        patience: seconds to wait for it at the end.
    """

    def __init__(self, tracker: "Tracker", name: str, warn: Callable[[str], None], patience: float = 10.0) -> None:
        self._tracker, self._name, self._warn, self._patience = tracker, name, warn, patience
        self._waiting: queue.SimpleQueue[tuple[int, Mapping[str, Any]] | None] = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._worker.start()

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Hand the numbers on, without waiting."""
        self._waiting.put((step, metrics))

    def close(self) -> None:
        """Wait a little for what was handed on."""
        self._waiting.put(None)
        self._worker.join(self._patience)
        if self._worker.is_alive():
            self._warn(f"tracker {self._name} did not finish in {self._patience:g} s; metrics.jsonl has everything")

    def _work(self) -> None:
        try:
            while (item := self._waiting.get()) is not None:
                self._tracker.log(*item)
            self._tracker.close()
        except Exception as error:  # whatever another project's code raises
            self._warn(f"tracker {self._name} failed ({error}) and is told no more; metrics.jsonl has everything")
