"""What a user watches: a live panel on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from tutelage.evaluation.intervals import Measurement
from tutelage.world import world

_PLAIN_SECONDS = 10.0
PERCENT = ("exact_answer", "same_top_token", "total_variation")


class Display(Protocol):
    """What the loop tells whoever watches."""

    def phase(self, name: str) -> None:
        """A phase of a step begins: sampling, update, evaluation."""
        ...

    def busy(self, what: str, done: int, total: int) -> None:
        """Something inside a phase goes on."""
        ...

    def step(self, done: int, metrics: Mapping[str, Any]) -> None:
        """A step is done."""
        ...

    def evaluation(self, done: int, metrics: Mapping[str, Measurement]) -> None:
        """An evaluation is done."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line happened."""
        ...


def display(title: str, steps: int, done: int, console: Console | None = None) -> "LiveDisplay | PlainDisplay":
    """Return the display that fits the console; use it as a context manager."""
    console = console or Console(highlight=False, quiet=not world().is_main)
    return (LiveDisplay if console.is_terminal else PlainDisplay)(title, steps, done, console)


class PlainDisplay:
    """Lines of text: evaluations and notes at once, steps every few seconds."""

    def __init__(self, title: str, steps: int, done: int, console: Console) -> None:
        self._title, self._steps, self._first, self._console = title, steps, done, console
        self._start = self._last = time.perf_counter()

    def __enter__(self) -> "PlainDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def phase(self, name: str) -> None:
        """Nothing: phases are too short for lines."""

    def busy(self, what: str, done: int, total: int) -> None:
        """A line now and then."""
        if time.perf_counter() - self._last > _PLAIN_SECONDS:
            self._last = time.perf_counter()
            self.note(f"{what} {done}/{total}")

    def step(self, done: int, metrics: Mapping[str, Any]) -> None:
        """A line every few seconds, and for the last step."""
        now = time.perf_counter()
        if done == self._steps or now - self._last > _PLAIN_SECONDS:
            self._last = now
            left = (now - self._start) / max(1, done - self._first) * (self._steps - done)
            figures = " · ".join(f"{name} {value}" for name, value in figures_of(metrics))
            self.note(f"step {done}/{self._steps} · {figures} · {_duration(left)} left")

    def evaluation(self, done: int, metrics: Mapping[str, Measurement]) -> None:
        """One line with all metrics."""
        self.note(f"evaluation at step {done}: {measured(metrics)}")

    def note(self, text: str) -> None:
        """One line."""
        self._console.print(Text(f"[{self._title}] {text}"), soft_wrap=True)


class LiveDisplay:
    """A bar with the time left, and below it the latest figures of the run."""

    def __init__(self, title: str, steps: int, done: int, console: Console) -> None:
        self._title, self._console = title, console
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("·"),
            TimeRemainingColumn(),
            TextColumn("left · [dim]{task.fields[phase]}"),
            console=console,
            expand=True,
        )
        self._task: TaskID = self._progress.add_task(title, total=steps, completed=done, phase="")
        self._live = Live(self._progress, console=console, refresh_per_second=8)

    def __enter__(self) -> "LiveDisplay":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.update(self._task, phase="")
        self._live.stop()

    def phase(self, name: str) -> None:
        """Shown beside the bar."""
        self._progress.update(self._task, phase=name)

    def busy(self, what: str, done: int, total: int) -> None:
        """Shown beside the bar."""
        self._progress.update(self._task, phase=f"{what} {done}/{total}" if total > 1 else what)

    def step(self, done: int, metrics: Mapping[str, Any]) -> None:
        """Move the bar and show the figures."""
        self._progress.update(self._task, completed=done)
        grid = Table.grid(padding=(0, 3))
        row = [Text.assemble((f"{name} ", "dim"), value) for name, value in figures_of(metrics)]
        for _ in row:
            grid.add_column()
        grid.add_row(*row)
        self._live.update(Group(self._progress, grid))

    def evaluation(self, done: int, metrics: Mapping[str, Measurement]) -> None:
        """One line above the bar."""
        self.note(f"evaluation at step {done}: {measured(metrics)}")

    def note(self, text: str) -> None:
        """One line above the bar."""
        self._console.print(Text.assemble((f"{self._title}  ", "bold"), text))


def figures_of(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the figures of a step that people watch, formatted.

    Rates are tokens a second of sampling, of the teacher, and of the student's update.
    """
    figures = [("loss", f"{metrics['loss']:.4f}")]
    if "divergence" in metrics:
        figures.append(("divergence", f"{metrics['divergence']:.4f}"))
    figures.append(("length", f"{metrics['response_length']:.0f}"))
    seconds, tokens = metrics["seconds"], metrics["tokens"]
    sampled = tokens * metrics["student_text"]
    rates = [("sampling", sampled), ("teacher", tokens), ("update", tokens)]
    shown = [(name, count / seconds[name]) for name, count in rates if count and seconds.get(name)]
    figures.append(("tokens/s", " · ".join(f"{name} {rate:,.0f}" for name, rate in shown)))
    return figures


def measured(metrics: Mapping[str, Measurement]) -> str:
    """Return measurements with their intervals, in one line."""
    return " · ".join(f"{name} {formatted(name, m)}" for name, m in metrics.items())


def formatted(name: str, m: Measurement) -> str:
    """Return one measurement with its 95 % interval."""
    if name in PERCENT:
        return f"{100 * m.value:.1f} % ({100 * m.low:.1f} to {100 * m.high:.1f})"
    return f"{m.value:.4g} ({m.low:.4g} to {m.high:.4g})"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
