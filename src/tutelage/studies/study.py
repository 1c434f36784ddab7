"""Study files: which runs, from which starts, with which seeds, measured on what, and which table or figure of it."""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Count, Positive
from tutelage.errors import InputError
from tutelage.evaluation.task import Task, load_task, task_of
from tutelage.recipe import checked
from tutelage.safe_yaml import parse_yaml, read_yaml
from tutelage.studies.collecting import Output

FunctionName = Annotated[str, Field(pattern=r"^[\w.]+:\w+$", description="`module:function`.")]
Label = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Variant:
    """A named change of the base recipe."""

    label: str | int | float
    """What it is called in tables; a number where it is drawn over."""
    set: dict[str, Any] = field(default_factory=dict)
    """Recipe keys with their values: `{method.name: sft, train.steps: 100}`."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Start:
    """A run that others start from: made first, for each seed."""

    name: Label
    """Its folder is `root`/name, and others name its model there."""
    recipe: str | dict[str, Any]
    """File (looked for beside the study), or the recipe itself."""
    set: dict[str, Any] = field(default_factory=dict)
    """Recipe keys with other values."""
    measured: bool = True
    """Whether it is measured on the tasks."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Given:
    """A model that is measured as it is, such as the teacher."""

    name: Label
    model: str
    """Folder or hub id."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Study:
    """A grid of runs, and the tables and figures that it ends in."""

    name: Annotated[str, Field(pattern=r"^[\w-]+$")]
    """Of its folder."""
    title: str
    """In a few words."""
    paper: str
    """Which table or plot of which paper it is about, and what is claimed there."""
    minutes: Positive | None = None
    """How long one process takes, where that was measured."""
    paper_setting: Any = None
    """The paper's own models, data and steps, for those who have the machines; not read."""
    of: str | None = None
    """Another study (its file, beside this one) whose runs this one measures and shows: everything but tasks and
    collect is taken from there where it is not given here. What both measure is run once."""
    pick: tuple[str | int | float, ...] = ()
    """With `of`: which of its `runs` to take, by label; all by default."""
    folder: str | None = None
    """Name of the folder of the runs; with `of` that of the other study, else the study's own name."""
    root: str | None = None
    """Paths in recipes and models that lie in this folder are moved to the folder of each seed."""
    prepare: FunctionName | None = None
    """Called with the folder of a seed and the seed, once, before its runs: writes data and models there."""
    starts: tuple[Start, ...] = ()
    """Runs that others start from, in order."""
    models: tuple[Given, ...] = ()
    """Models that are measured besides."""
    base: str | dict[str, Any] | None = None
    """The recipe that every run changes: a file (looked for beside the study), or the recipe itself."""
    runs: tuple[Variant, ...] = ()
    """Changes of the base recipe, a run each: the values of the axis `run`."""
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = field(default_factory=dict)
    """Axes, whose product with `runs` gives the runs: recipe keys with their values, or any name with mappings of
    `label` and `set`."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    """Everything is made once for each of them."""
    tasks: tuple[str | dict[str, Any], ...] = ()
    """What every run is measured on: names of tasks, files (looked for beside the study), or tasks themselves."""
    threads: Count | None = None
    """Of PyTorch: for models of a few thousand weights more than one only wait for each other."""
    function: FunctionName | None = None
    """In place of runs: called with `settings`, returns tables and figures."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the function."""
    collect: tuple[Output, ...] = ()
    """Tables and figures."""

    @model_validator(mode="after")
    def _consistent(self) -> "Study":
        axes = {"run", *self.grid}
        for output in self.collect:
            named = {str(axis) for key in ("series", "along") if (axis := getattr(output, key, None))} | set(
                output.only
            )
            named |= {output.x, output.y} if output.kind == "heatmap" else set()
            unknown = sorted(named - axes)
            if unknown:
                raise ValueError(f"collect.{output.name}: no axis '{unknown[0]}'; known: {', '.join(sorted(axes))}")
        if (self.function is None) == (self.base is None):
            raise ValueError("a study has runs (base, runs or grid) or a function: give either base or function")
        return self


def load_study(path: str | Path) -> Study:
    """Read a study from a YAML file.

    Raises:
        InputError: it cannot be read, or something in it is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no study at {path}; expected a YAML file (see the folder studies/)")
    return checked(Study, _whole(parse_yaml(read_yaml(path), str(path)), path), str(path))


SHARED = ("root", "prepare", "starts", "models", "base", "runs", "grid", "seeds", "threads")


def _whole(mapping: dict[str, Any], path: Path) -> dict[str, Any]:
    """A study's mapping with what it takes from another one."""
    if mapping.get("of") is None:
        return mapping
    other = path.parent / str(mapping["of"])
    if not other.is_file():
        raise InputError(f"{path}: of: no study at {other}; it is looked for beside this one")
    taken = _whole(parse_yaml(read_yaml(other), str(other)), other)
    runs, wanted = taken.get("runs") or [], mapping.get("pick") or []
    known = [run.get("label") for run in runs if isinstance(run, Mapping)]
    unknown = next((label for label in wanted if label not in known), None)
    if unknown is not None:
        raise InputError(f"{path}: pick: {other.name} has no run '{unknown}'; it has {', '.join(map(str, known))}")
    if wanted:
        taken["runs"] = [run for run in runs if run.get("label") in wanted]
    shared = {key: taken[key] for key in SHARED if key in taken}
    return {"folder": taken.get("folder") or taken.get("name"), **shared, **mapping}


def tasks_of(study: Study, beside: Path) -> list[Task]:
    """The tasks of a study; files are looked for in the folder that the study is in.

    Raises:
        InputError: there is no such task, or something in it is wrong.
    """
    found = []
    for task in study.tasks:
        if isinstance(task, Mapping):
            found.append(task_of(task, source=f"{study.name}: tasks"))
        else:
            file = beside / task
            found.append(load_task(str(file) if file.is_file() else task))
    return found


def recipe_mapping(recipe: str | Mapping[str, Any], beside: Path) -> dict[str, Any]:
    """A recipe of a study as a mapping, read from its file where it is in one.

    Raises:
        InputError: the file cannot be read.
    """
    if isinstance(recipe, Mapping):
        return dict(recipe)
    file = beside / recipe
    if not file.is_file():
        raise InputError(f"no recipe at {file}; recipes of a study are looked for beside it")
    return parse_yaml(read_yaml(file), str(file))
