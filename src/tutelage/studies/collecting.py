"""What a study ends in, as its YAML file says: tables, heat maps, lines, scatter plots and curves."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Count

MetricName = Annotated[str, Field(pattern=r"^[\w-]+\.\w+$", description="`task.metric`, as in the records.")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Collected:
    """What all kinds of output have."""

    name: Annotated[str, Field(pattern=r"^[\w-]+$")]
    """Of its files."""
    title: str
    """Above the table or figure."""
    only: dict[str, tuple[str | float, ...]] = Field(default_factory=dict)
    """Take the runs with these values of an axis alone: `{divergence: [jsd, forward_kl]}`. The axis of `runs` and
    `starts` is `run`."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TableOf(Collected):
    """Runs as rows, metrics as columns: mean over seeds, smallest and largest in brackets."""

    kind: Literal["table"]
    metrics: Annotated[tuple[MetricName, ...], Field(min_length=1)]
    """The columns."""
    baseline: str | None = None
    """Row below which others are marked with †."""
    starts: bool = True
    """Show `starts` and `models` too."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HeatmapOf(Collected):
    """One axis of the grid across, another down, a metric as colour: mean over seeds."""

    kind: Literal["heatmap"]
    x: str
    """Axis across."""
    y: str
    """Axis down."""
    metric: MetricName
    """Shown in each field."""
    relative_to: str | None = None
    """Show the gain over this run (or start) of the same seed."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LineOf(Collected):
    """A metric over an axis of numbers."""

    kind: Literal["line"]
    x: str
    """Axis across, its values numbers; or `parameters` or `teacher_parameters`, those of the models."""
    x_title: str | None = None
    metric: MetricName
    """Upwards."""
    series: str | None = None
    """Axis with a line for each value."""
    log_x: bool = False
    log_y: bool = False
    relative_to: str | None = None
    """As for heat maps."""
    fit: Literal["power-law"] | None = None
    """Fit L(x) = (x_c / x)^α + L_0 to the means of each line; the metric is one that falls."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ScatterOf(Collected):
    """One metric against another, a point for each value of `along`, joined in its order."""

    kind: Literal["scatter"]
    x: str
    """`task.metric`, or `metric` where `tasks` is given."""
    y: str
    """The same."""
    series: str | None = "run"
    """Axis with a line for each value."""
    along: str | None = None
    """Axis whose values are the points of a line."""
    tasks: tuple[str, ...] = ()
    """Tasks that are the points of a line, such as one for each temperature, in place of `along`."""

    @model_validator(mode="after")
    def _one_way(self) -> "ScatterOf":
        if self.tasks and self.along:
            raise ValueError("points lie along an axis or along tasks: give either along or tasks")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CurveOf(Collected):
    """A curve of the records, or of what runs logged, for each value of an axis: mean over seeds."""

    kind: Literal["curve"]
    task: str | None = None
    """Whose records hold `curve`."""
    curve: str | None = None
    """Its name there."""
    logged: str | None = None
    """In its place a column of metrics.jsonl, over steps; or `evaluation.NAME`."""
    window: Count = 1
    """Steps of `logged` that are averaged for a point."""
    edges: tuple[float, ...] = ()
    """Points between two of these are averaged into one: for curves whose x is not the same for every seed, such as
    the mean confidence in a bin."""
    series: str = "run"
    """Axis with a line for each value."""
    relative_to: str | None = None
    """Subtract the curve of this run (or start)."""
    log_x: bool = False
    starts: bool = True
    """Draw `starts` and `models` too."""

    @model_validator(mode="after")
    def _one_source(self) -> "CurveOf":
        if (self.logged is None) == (self.task is None or self.curve is None):
            raise ValueError("a curve is of a record (task and curve) or of what was logged (logged): give one of them")
        return self


Output = Annotated[TableOf | HeatmapOf | LineOf | ScatterOf | CurveOf, Field(discriminator="kind")]
"""Any of them, told apart by its `kind`."""
