"""Which runs a study comes to: its grid, seed by seed, with folders and recipes."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from tutelage.config import Model
from tutelage.errors import InputError
from tutelage.evaluation.task import Task
from tutelage.recipe import Recipe, overridden, recipe_of
from tutelage.studies.study import Study, Variant, recipe_mapping, tasks_of

Label = str | int | float


@dataclass(frozen=True)
class Planned:
    """One run of a study."""

    name: str
    kind: Literal["run", "start", "model"]
    settings: Mapping[str, Label]
    """Its place on each axis."""
    seed: int
    folder: Path
    recipe: Recipe | None
    """`None` for a model that is only measured."""
    student: Model
    """What is measured in the end."""
    teacher: Model | None
    """What it is measured against."""
    tasks: tuple[Task, ...]
    """What it is measured on; none where it only serves others."""


def planned(
    study: Study, beside: Path, folder: Path, *, seeds: Sequence[int] = (), overrides: Sequence[str] = ()
) -> list[Planned]:
    """All runs of a study, seed by seed, each with its recipe checked.

    Args:
        study: from `load_study`.
        beside: folder that its recipe files are looked for in.
        folder: where the runs go.
        seeds: in place of the study's own.
        overrides: recipe keys for every run, as on the command line.

    Raises:
        InputError: a recipe is wrong, or two runs have one name.
    """
    if study.base is None:
        return []
    base, cells = recipe_mapping(study.base, beside), variants(study)
    names = [*(start.name for start in study.starts), *(given.name for given in study.models), *(c[0] for c in cells)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{study.name}: two runs are called '{twice}'; give them different names or labels")
    read = tasks_of(study, beside)
    folders = dict(zip(names, _folders(names), strict=True))
    found: list[Planned] = []
    for seed in seeds or study.seeds:
        here = folder / f"seed-{seed}"
        tasks = tuple(_task(task, study.root, here) for task in read)
        teacher = recipe_of(_moved(base, study.root, here), source=f"{study.name}: base").teacher
        for start in study.starts:
            mapping = overridden(recipe_mapping(start.recipe, beside), _words(start.set))
            recipe = _recipe(study, start.name, mapping, here, here / start.name, seed)
            asked = tasks if start.measured else ()
            found.append(_run(start.name, "start", {"run": start.name}, recipe, teacher, asked))
        for given in study.models:
            student = Model(model=_moved(given.model, study.root, here))
            place = here / f"measured-{folders[given.name]}"
            found.append(Planned(given.name, "model", {"run": given.name}, seed, place, None, student, teacher, tasks))
        for name, settings, changes in cells:
            mapping = overridden(base, _words(changes))
            recipe = _recipe(study, name, mapping, here, here / folders[name], seed, overrides)
            found.append(_run(name, "run", settings, recipe, recipe.teacher or teacher, tasks))
    return found


def variants(study: Study) -> list[tuple[str, dict[str, Label], dict[str, Any]]]:
    """The product of a study's axes: name, place on each axis, and changes of the base recipe."""
    axes: dict[str, list[Variant]] = {"run": list(study.runs)} if study.runs else {}
    axes |= {axis: [_variant(axis, value) for value in values] for axis, values in study.grid.items()}
    found = []
    for cell in product(*axes.values()):
        settings = {axis: variant.label for axis, variant in zip(axes, cell, strict=True)}
        changes = {key: value for variant in cell for key, value in variant.set.items()}
        parts = [
            str(label) if axis == "run" or isinstance(label, str) else f"{axis.rpartition('.')[2]} {label}"
            for axis, label in settings.items()
        ]
        found.append((", ".join(parts) or "base", settings, changes))
    return found


def _variant(axis: str, value: Any) -> Variant:
    if isinstance(value, Mapping) and "label" in value:
        return Variant(**{str(key): inner for key, inner in value.items()})
    label = value if isinstance(value, str | int | float) and not isinstance(value, bool) else str(value)
    return Variant(label=label, set={axis: value})


def _words(changes: Mapping[str, Any]) -> list[str]:
    """Changes of a recipe as words of a command line, which are written into it in one way."""
    return [word for key, value in changes.items() for word in (f"--{key}", json.dumps(value, ensure_ascii=False))]


def _folders(names: Sequence[str]) -> list[str]:
    """A safe folder name for each name, no two alike."""
    plain = [re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.") for name in names]
    return [
        short
        if short and plain.count(short) == 1
        else f"{short}-{hashlib.blake2b(name.encode(), digest_size=3).hexdigest()}"
        for name, short in zip(names, plain, strict=True)
    ]


def _recipe(
    study: Study,
    name: str,
    mapping: Mapping[str, Any],
    here: Path,
    output: Path,
    seed: int,
    overrides: Sequence[str] = (),
) -> Recipe:
    moved = {**_moved(mapping, study.root, here), "output": str(output), "seed": seed}
    return recipe_of(moved, overrides, source=f"{study.name}: {name}")


def _moved(value: Any, root: str | None, here: Path) -> Any:
    """A copy in which paths inside the root lie in another folder."""
    if isinstance(value, Mapping):
        return {key: _moved(inner, root, here) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_moved(inner, root, here) for inner in value]
    if root is not None and isinstance(value, str) and value.startswith(f"{root}/"):
        return str(here / value.removeprefix(f"{root}/"))
    return value


def _task(task: Task, root: str | None, here: Path) -> Task:
    """A task whose data lie in another folder."""
    return replace(task, data=replace(task.data, source=_moved(task.data.source, root, here)))


def _run(
    name: str,
    kind: Literal["run", "start"],
    settings: Mapping[str, Label],
    recipe: Recipe,
    teacher: Model | None,
    tasks: tuple[Task, ...],
) -> Planned:
    folder = Path(recipe.output)
    student = Model(model=str(folder / "model"), device=recipe.student.device)
    return Planned(name, kind, settings, recipe.seed, folder, recipe, student, teacher, tasks)
