"""Tasks: small YAML files that say what a model is measured on, how it is asked and decoded, and by which metrics."""

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Count, Decoding, GreedyDecoding, Share
from tutelage.errors import InputError
from tutelage.evaluation.metrics import METRICS, AnyMetric
from tutelage.recipe import checked, overridden
from tutelage.recipe_keys import keys_of
from tutelage.safe_yaml import parse_yaml, read_yaml


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FewShot:
    """Worked examples that stand before each prompt: rendered as the items are, each with its reference."""

    source: str
    """Where the examples come from, as `data.source`."""
    rows: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """Which rows of it, from 0."""
    reference: str | None = None
    """Template of the examples' answers, where it differs from the items'."""
    separator: str = "\n\n"
    """What stands behind each example."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskData:
    """The items of a task."""

    source: str
    """File, folder or hub id, as `data.train` of a recipe; a path is looked for in `--data-folder` too."""
    records: str | None = None
    """Column that holds a list of the actual items, for files such as BBH's (`examples`)."""
    prompt: str = "{prompt}"
    """The prompt, with columns in braces."""
    reference: str | None = "{completion}"
    """The right response, with columns in braces. A template of one column alone may name a list of references, any
    of which is right. `null`: there is none."""
    choices: tuple[str, ...] | str | None = None
    """The texts to choose from, for metrics of `choices`: a list for all items, or the column that holds each one's."""
    answer: str | None = None
    """Column with the right choice: its text, its index from 0, or its letter."""
    preamble: str = ""
    """Text before everything else."""
    few_shot: FewShot | None = None
    """Worked examples before each prompt."""
    template: str = "plain"
    """`plain`, `chat` (the tokenizer's chat template around the prompt) or a text with `{prompt}` in it."""
    limit: Count | None = None
    """Only so many items, from the start."""
    max_prompt_tokens: Count = 1024
    """Items with longer prompts are dropped and counted."""
    max_dropped: Share = 0.1
    """Largest share of the items that may be dropped."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Task:
    """One thing to measure models by. Everything in it is the protocol: numbers of different protocols are not
    compared."""

    name: str
    """Short name, for files and tables."""
    description: str
    """One sentence: what it is, and whose protocol it follows."""
    data: TaskData
    """The items."""
    decoding: GreedyDecoding = Field(default_factory=lambda: Decoding(strategy="greedy"))
    """How the student answers. Greedy by default."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    """Each seed writes one response to each item; a number is the mean over seeds. Greedy and beam need one."""
    stop: tuple[str, ...] = ()
    """Responses end before the first of these texts, for models that go on with a next question."""
    metrics: tuple[AnyMetric, ...]
    """Names, or mappings of a `name` and settings."""

    @model_validator(mode="after")
    def _something_is_measured(self) -> "Task":
        if not self.metrics:
            raise ValueError("metrics is empty: name at least one")
        return self


_PACKAGED = resources.files("tutelage.evaluation") / "tasks"


def task_names() -> list[str]:
    """The tasks that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _PACKAGED.iterdir() if entry.name.endswith(".yaml"))


def load_task(name: str, overrides: Sequence[str] = ()) -> Task:
    """Read a task.

    Args:
        name: of a task that comes with the package, or the path of a YAML file.
        overrides: as on the command line: `--data.limit 50`.

    Raises:
        InputError: there is no such task, or something in it is wrong.

    >>> load_task("dolly").seeds
    (10, 20, 30, 40, 50)
    """
    if name in task_names():
        text, source = (_PACKAGED / f"{name}.yaml").read_text(encoding="utf-8"), f"task {name}"
    elif Path(name).is_file():
        text, source = read_yaml(Path(name)), name
    else:
        near = difflib.get_close_matches(name, task_names(), 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(task_names())}; or the path of a YAML file"
        raise InputError(f"no task '{name}'; {hint}")
    return task_of(parse_yaml(text, source), overrides, source=source)


def task_of(mapping: Mapping[str, Any], overrides: Sequence[str] = (), *, source: str = "task") -> Task:
    """Check a mapping with overrides written into it, and return the task.

    Raises:
        InputError: a key is unknown or its value wrong.
    """
    whole = overridden(mapping, overrides)
    metrics = whole.get("metrics")
    if isinstance(metrics, list):
        whole["metrics"] = metrics = [{"name": m} if isinstance(m, str) else m for m in metrics]
    return checked(Task, whole, source, _keys_of_metrics(metrics))


def _keys_of_metrics(metrics: object) -> list[str]:
    """The keys that the metrics of a task have, as messages name them."""
    named = enumerate(metrics) if isinstance(metrics, list) else ()
    kinds = [(at, METRICS[m["name"]]) for at, m in named if isinstance(m, Mapping) and str(m.get("name")) in METRICS]
    return [f"metrics.{at}.{kind.name}.{key.path}" for at, kind in kinds for key in keys_of(kind)]
