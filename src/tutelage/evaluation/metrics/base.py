"""What every metric is: its settings and the way it measures, in one frozen dataclass."""

from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tutelage.errors import InputError
from tutelage.evaluation.score import Findings

if TYPE_CHECKING:
    from tutelage.evaluation.subject import Subject
    from tutelage.evaluation.task import Task

Use = Literal["text", "teacher", "choices", "references"]


class Metric(ABC):
    """One family of numbers. Its fields are its settings, and all of them are part of the protocol.

    A subclass is a frozen pydantic dataclass with a `name: Literal[…]`; it is listed in `METRICS`.
    """

    name: str
    uses: ClassVar[frozenset[Use]] = frozenset()
    """What it looks at: `text` that the student generates as the task says, the `teacher`, the items' `choices` or
    `references`."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Packages whose version changes the numbers; it becomes part of the protocol."""

    @abstractmethod
    def measure(self, subject: "Subject") -> Findings:
        """Measure a model.

        Args:
            subject: the model, the items and what it wrote.

        Returns:
            Scores by name, with the items' place in the data as keys of their rows; and curves.
        """

    def protocol(self) -> dict[str, Any]:
        """What of the metric its numbers depend on: all settings, unless a metric says otherwise."""
        return asdict(self)  # pyright: ignore[reportArgumentType]

    def check(self, task: "Task") -> None:
        """Refuse a task that it cannot measure, before anything is loaded and written.

        Raises:
            InputError: it compares with references, and the task has none.
        """
        if "references" in self.uses and task.data.reference is None:
            raise self._no_references()

    def check_references(self, subject: "Subject") -> None:
        """Refuse items without references, for metrics that compare with them.

        Raises:
            InputError: some item has none.
        """
        if not all(item.references for item in subject.items):
            raise self._no_references()

    def _no_references(self) -> InputError:
        return InputError(
            f"metric {self.name} compares with references, and the task has none; name them in data.reference"
        )
