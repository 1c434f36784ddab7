"""Tables and figures as plain data, before anything draws them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.reports.render import grid, number


@dataclass(frozen=True)
class Series:
    """Points that belong together."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    """Smallest and largest over seeds."""
    labels: Sequence[str] = ()
    """A word at each point."""
    fitted: bool = False
    """A fitted curve: drawn dashed, in the colour of the series before it."""
    joined: bool = True
    """Whether a line joins the points."""


@dataclass(frozen=True)
class Figure:
    """Lines or points over two axes."""

    name: str
    title: str
    x_title: str
    y_title: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    points: bool = False
    """Points joined by thin lines in place of lines."""
    notes: Sequence[str] = ()

    def markdown(self) -> list[str]:
        """The image, its notes, and its numbers where there are few."""
        lines = [f"![{self.title}]({self.name}.svg)"]
        lines += [line for note in self.notes for line in ("", note)]
        measured = [series for series in self.series if not series.fitted and series.joined]
        across = sorted({x for series in measured for x in series.x})
        if not self.points and 0 < len(across) <= 12:
            rows = [[series.name, *(_at(series, x) for x in across)] for series in measured]
            lines += ["", *grid([f"{self.y_title} by {self.x_title}", *(f"{x:.4g}" for x in across)], rows)]
        if self.points:
            rows = [
                [series.name, label, number(x), number(y)]
                for series in measured
                for x, y, label in zip(series.x, series.y, series.labels or [""] * len(series.x), strict=True)
            ]
            lines += ["", *grid(["", "", self.x_title, self.y_title], rows)]
        return lines


def _at(series: Series, x: float) -> str:
    if x not in series.x:
        return "–"
    at = list(series.x).index(x)
    ends = f" ({number(series.low[at])}–{number(series.high[at])})" if series.low and series.high else ""
    return f"{number(series.y[at])}{ends}"


@dataclass(frozen=True)
class Heatmap:
    """A number for each pair of two axes' values."""

    name: str
    title: str
    x_title: str
    y_title: str
    x: Sequence[str]
    y: Sequence[str]
    values: Sequence[Sequence[float | None]]
    """By row (y), then column (x)."""
    texts: Sequence[Sequence[str]]
    """What is written into each field."""
    notes: Sequence[str] = ()

    def markdown(self) -> list[str]:
        """The image, and its numbers as a table."""
        rows = [[y, *texts] for y, texts in zip(self.y, self.texts, strict=True)]
        body = grid([f"{self.y_title} ＼ {self.x_title}", *self.x], rows)
        return [f"![{self.title}]({self.name}.svg)", *(line for note in self.notes for line in ("", note)), "", *body]


@dataclass(frozen=True)
class TextTable:
    """A table whose cells are written out."""

    name: str
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    values: Mapping[str, Any] | None = None
    """The numbers behind it, for JSON."""

    def markdown(self) -> list[str]:
        """The table, with its notes below."""
        return [*grid(self.head, self.rows), *(line for note in self.notes for line in ("", note))]


Outcome = Figure | Heatmap | TextTable
