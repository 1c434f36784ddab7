"""Recipes: reading a YAML file and command-line overrides into one checked `Recipe`.

There is one path for both: overrides are written into the mapping that the file gives, and the whole is
checked once, so that the same mistake gives the same message wherever it was made.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Data, Evaluation, Model, Teacher, TeacherCache, Train
from tutelage.config_sampler import Sampling
from tutelage.errors import InputError
from tutelage.methods import METHODS, SFT, Method
from tutelage.methods.token_matching import TokenMatching
from tutelage.recipe_keys import keys_of, recipe_keys
from tutelage.redaction import redacted
from tutelage.safe_yaml import parse_yaml, read_yaml


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """Everything a run depends on: who learns what from whom, on which text, by which method."""

    method: Method = Field(default_factory=SFT)
    """The method and its hyper-parameters, chosen by `name`."""
    student: Model
    """The model that learns."""
    teacher: Teacher | None = None
    """The model that knows. Needed by every method but sft."""
    data: Data
    """The prompts, and the responses where there are some."""
    train: Train
    """Optimiser, schedule, batch."""
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """What is measured on held-out rows."""
    teacher_cache: TeacherCache = Field(default_factory=TeacherCache)
    """What is kept of the teacher's scores, for text that does not change."""
    sampler: Sampling = Field(default_factory=Sampling)
    """Where the student's text is written while it learns."""
    output: str
    """Folder of the run. It is made; a run that is already there is resumed."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Everything random follows from it."""

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        problems = []
        if self.method.needs_teacher and self.teacher is None:
            problems.append(f"method '{self.method.name}' needs a teacher: add teacher.model")
        if self.student.from_teacher is not None and self.teacher is None:
            problems.append("student.from_teacher needs a teacher: add teacher.model")
        if self.teacher is not None and self.teacher.adapter is not None:
            problems.append("teacher.adapter: a teacher does not learn; give the adapter's folder as teacher.model")
        if self.teacher is not None and self.teacher.model is None:
            problems.append("the teacher needs weights: give teacher.model")
        compared = [metric for metric in ("agreement", "distances") if metric in self.evaluation.metrics]
        if compared and self.teacher is None:
            problems.append(f"evaluation.metrics has '{compared[0]}', which needs a teacher: add teacher.model")
        if self.evaluation.every is not None and self.data.validation is None:
            problems.append("evaluation.every is set, but there is nothing to evaluate on: add data.validation")
        if self.method.plan.text_rows and self.data.text is None:
            problems.append(f"method '{self.method.name}' has a term on plain text: add data.text")
        measured = "loss" in self.evaluation.metrics and self.evaluation.every is not None
        if self.method.plan.follows_loss and not (measured and self.data.validation is not None):
            problems.append(
                f"method '{self.method.name}' goes by the validation loss: add data.validation, evaluation.every, "
                "and 'loss' to evaluation.metrics"
            )
        if self.train.shard != "none" and self.method.plan.asks_of_fixed_text == "layers":
            problems.append(
                f"method '{self.method.name}' looks into the models' layers, which cannot be cut: leave train.shard out"
            )
        problems += self._problems_of_cache()
        problems += self._problems_of_server()
        problems += self._problems_of_keeping()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems_of_keeping(self) -> list[str]:
        rule, metrics = self.train.keep_best, self.evaluation.metrics
        if rule is None:
            return []
        problems, every, save_every = [], self.evaluation.every, self.train.save_every
        if not (every and save_every and save_every % every == 0):
            problems.append(
                "train.keep_best compares evaluated checkpoints: add evaluation.every, and train.save_every as a "
                "multiple of it"
            )
        if rule.split()[1] not in metrics and not {"agreement", "distances"} & set(metrics):  # these give several each
            problems.append(f"train.keep_best is '{rule}', but the evaluation has {', '.join(metrics)}")
        return problems

    def _problems_of_cache(self) -> list[str]:
        kind, asked = self.teacher_cache.kind, self.method.plan.asks_of_fixed_text
        given = f"teacher_cache.kind is '{kind}', but method '{self.method.name}' as set up here"
        if kind is None:
            return []
        if self.teacher is None or not self.method.needs_teacher or asked == "nothing":
            return [f"{given} asks no teacher about text that was written beforehand: leave teacher_cache out"]
        if asked == "layers":
            return [f"{given} looks into the teacher's layers, which no cache keeps: leave teacher_cache out"]
        if kind == "top-k" and asked != "distribution":
            return [f"{given} needs the teacher's whole distribution: use teacher_cache.kind: hidden"]
        return []

    def _problems_of_server(self) -> list[str]:
        """What cannot be had of a teacher that is served, which tells its most probable tokens and no more."""
        if self.teacher is None or self.teacher.url is None:
            return []
        served = "the teacher is served (teacher.url)"
        problems = []
        if self.method.needs_teacher and self.method.plan.asks_of_fixed_text != "distribution":
            problems.append(
                f"{served}, but method '{self.method.name}' as set up here needs more of it than its most probable "
                "tokens: use supervised-kd, on-policy-kd, imitkd or gkd, or leave teacher.url out"
            )
        if isinstance(self.method, TokenMatching) and self.method.temperature != 1:
            problems.append(f"{served}, and servers tell log-probabilities at temperature 1: set method.temperature: 1")
        if self.student.from_teacher is not None:
            problems.append(f"{served}, so there are no layers to copy: leave out student.from_teacher")
        if self.teacher_cache.kind is not None:
            problems.append(f"{served}, and no cache is kept of it: leave teacher_cache out")
        whole = [metric for metric in ("agreement", "distances") if metric in self.evaluation.metrics]
        if whole:
            problems.append(f"{served}, but evaluation.metrics has '{whole[0]}', which needs its whole distribution")
        return problems


_RECIPE = TypeAdapter(Recipe)
Section = TypeVar("Section")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a YAML file.

    Args:
        path: the file.
        overrides: as on the command line: `--train.steps 10`, `--method.student-fraction=0.5`.

    Raises:
        InputError: the file cannot be read, or something in it or in the overrides is wrong; the message
            names the keys, and the nearest known one for a misspelt key.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no recipe at {path}; expected a YAML file (see the folder recipes/)")
    mapping = parse_yaml(read_yaml(path), str(path))
    _refuse_trust(mapping, overrides, str(path))
    return recipe_of(mapping, overrides, source=str(path))


def recipe_of(mapping: Mapping[str, Any], overrides: Sequence[str] = (), *, source: str = "recipe") -> Recipe:
    """Check a mapping with overrides written into it, and return the recipe.

    >>> recipe = recipe_of({
    ...     "student": {"model": "gpt2"}, "data": {"train": "rows.jsonl"}, "train": {"steps": 10}, "output": "runs/a"
    ... }, ["--train.steps", "20"])
    >>> recipe.method.name, recipe.train.steps
    ('sft', 20)
    """
    whole = overridden(mapping, overrides)
    try:
        recipe = _RECIPE.validate_python(whole)
    except ValidationError as error:
        method = whole.get("method")
        name = method.get("name", "sft") if isinstance(method, Mapping) else "sft"
        known = recipe_keys(name if isinstance(name, str) and name in METHODS else "sft")
        raise InputError(_explain(error, source, list(known))) from None
    _refuse_truths(whole, recipe, f"{source}: ")
    return recipe


def overridden(mapping: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of a file's mapping with command-line overrides written into it."""
    whole = _copy(mapping)
    for key, value in split_overrides(overrides):
        _write(whole, key.split("."), value)
    return whole


def checked(kind: type[Section], mapping: Mapping[str, Any], source: str, known: Sequence[str] = ()) -> Section:
    """Check a whole file of another kind than a recipe, such as a task or a study.

    Args:
        kind: the dataclass that it is read into.
        mapping: what the file gives.
        source: its name, for messages.
        known: keys within lists, which the dataclass does not tell.

    Raises:
        InputError: a key is unknown or its value wrong; the nearest known key is named.
    """
    try:
        found = TypeAdapter(kind).validate_python(dict(mapping))
    except ValidationError as error:
        raise InputError(_explain(error, source, [*(key.path for key in keys_of(kind)), *known])) from None
    _refuse_truths(mapping, found, f"{source}: ")
    return found


def check_section(kind: type[Section], mapping: Mapping[str, Any], name: str) -> Section:
    """Check the keys of one section on its own, such as `Decoding`.

    Raises:
        InputError: a key is unknown or its value wrong.
    """
    try:
        section = TypeAdapter(kind).validate_python(dict(mapping))
    except ValidationError as error:
        known = [f"{name}.{field}" for field in TypeAdapter(kind).json_schema()["properties"]]
        problems = error.errors(include_url=False)
        places = [".".join([name, *map(str, problem["loc"])]) for problem in problems]
        raise InputError(
            "\n".join(_message(problem, place, known) for problem, place in zip(problems, places, strict=True))
        ) from None
    _refuse_truths(mapping, section, f"{name}.")
    return section


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML, every default written out and secrets taken out; it loads again as it is."""
    return yaml.safe_dump(redacted(_RECIPE.dump_python(recipe, mode="json")), sort_keys=False, allow_unicode=True)


def with_changes(recipe: Recipe, **sections: Mapping[str, Any]) -> Recipe:
    """Return the recipe with some keys of its sections changed: `with_changes(recipe, train={"steps": 5})`."""
    changed = {}
    for name, keys in sections.items():
        section = getattr(recipe, name)
        changed[name] = type(section)(**asdict(section) | dict(keys))
    return replace(recipe, **changed)


def split_overrides(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    """Split `--a.b-c value`, `--a.b=value` and a bare `--flag` into keys and values read as YAML.

    >>> split_overrides(["--train.learning-rate", "1e-5", "--train.dropout", "--seed=3"])
    [('train.learning_rate', 1e-05), ('train.dropout', True), ('seed', 3)]
    """
    pairs: list[tuple[str, Any]] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        if not re.match(r"--[A-Za-z]", argument):
            raise InputError(f"unexpected argument '{argument}'; overrides look like --train.steps 100")
        key, equals, value = argument[2:].partition("=")
        position += 1
        if not equals:
            follows = position < len(arguments) and not re.match(r"--[A-Za-z]", arguments[position])
            value = arguments[position] if follows else "true"
            position += int(follows)
        pairs.append((key.replace("-", "_"), parse_yaml(value, f"--{key}", mapping=False)))
    return pairs


def _refuse_trust(mapping: Mapping[str, Any], overrides: Sequence[str], source: str) -> None:
    """A file cannot have code run: that is for the command line to say, by whoever types it.

    Raises:
        InputError: the file tries to.
    """
    typed = {key for key, _ in split_overrides(overrides)}
    for role in ("student", "teacher"):
        section = mapping.get(role)
        asked = isinstance(section, Mapping) and section.get("trust_remote_code") not in (None, False)
        if asked and f"{role}.trust_remote_code" not in typed:
            raise InputError(
                f"{source}: {role}.trust_remote_code is not taken from a file; once you have read the model's code, "
                f"give it on the command line: --{role}.trust-remote-code"
            )


def _copy(value: Any) -> Any:
    return {str(k): _copy(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _write(mapping: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        if not isinstance(mapping.get(name), dict):
            mapping[name] = {}
        mapping = mapping[name]
    mapping[path[-1]] = value


def _refuse_truths(given: Any, found: Any, prefix: str) -> None:
    """Refuse true and false where a number belongs: pydantic takes them for 1 and 0.

    Raises:
        InputError: there is one, as where an option on the command line has lost its value.
    """
    lines = [f"{prefix}{key} must be a number (got {str(value).lower()})" for key, value in _truths(given, found)]
    if lines:
        raise InputError("\n".join(lines) + "; an option without a value is true")


def _truths(given: Any, found: Any, place: str = "") -> Iterator[tuple[str, bool]]:
    if isinstance(given, bool) and isinstance(found, int | float) and not isinstance(found, bool):
        yield place, given
    elif isinstance(given, Mapping):
        for key, value in given.items():
            inside = found.get(key) if isinstance(found, Mapping) else getattr(found, str(key), None)
            yield from _truths(value, inside, f"{place}.{key}" if place else str(key))
    elif isinstance(given, list) and isinstance(found, list | tuple):
        for number, (value, inside) in enumerate(zip(given, found, strict=False)):
            yield from _truths(value, inside, f"{place}.{number}")


def _explain(error: ValidationError, source: str, known: Sequence[str]) -> str:
    """Turn pydantic's report into lines that name keys as the user wrote them."""
    lines = []
    for problem in error.errors(include_url=False):
        place = [str(part) for part in problem["loc"]]
        if place[:1] == ["method"] and len(place) > 1:
            del place[1]  # pydantic names the chosen alternative there
        lines.append(f"{source}: {_message(problem, '.'.join(place), known)}")
    return "\n".join(lines)


def _message(problem: Any, key: str, known: Sequence[str]) -> str:
    kind, given = problem["type"], problem["input"]
    if kind == "unexpected_keyword_argument":
        return f"unknown key '{key}'{_nearest(key, known)}"
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"'{key}' is missing"
    if kind == "union_tag_invalid" and key != "method":
        told = problem["ctx"]
        names = told["expected_tags"].replace("'", "").split(", ")
        close = difflib.get_close_matches(str(told["tag"]), names, 1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        what = told["discriminator"].strip("'")
        return f"{key}: unknown {what} '{told['tag']}'{hint} (known: {', '.join(names)})"
    if kind == "union_tag_not_found" and key != "method":
        return f"{key}: '{problem['ctx']['discriminator'].strip(chr(39))}' is missing"
    if kind == "union_tag_invalid":
        tag = given.get("name") if isinstance(given, Mapping) else given
        close = difflib.get_close_matches(str(tag), METHODS, 1, 0.4)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        return f"unknown method '{tag}'{hint} (known: {', '.join(METHODS)})"
    if kind == "union_tag_not_found":
        return f"method has no name; give method.name, one of {', '.join(METHODS)}"
    text = problem["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{key}: {text}" if key else text
    text = text.removeprefix("Input should be ")
    return f"{key} must be {text} (got {_cut(repr(given))})"


def _cut(text: str, longest: int = 200) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _nearest(key: str, known: Sequence[str]) -> str:
    """Say which known key was probably meant: one beside it, or one of the same name elsewhere."""
    parent, _, last = key.rpartition(".")
    depth = key.count(".")
    parts = [k.split(".") for k in known]
    siblings = list(dict.fromkeys(p[depth] for p in parts if ".".join(p[:depth]) == parent and len(p) > depth))
    close = difflib.get_close_matches(last, siblings, 1, 0.5)
    if close:
        return f"; did you mean '{'.'.join(filter(None, [parent, close[0]]))}'?"
    elsewhere = [k for k in known if k.rpartition(".")[2] == last]
    if elsewhere:
        return f"; did you mean '{elsewhere[0]}'?"
    return f"; known here: {', '.join(siblings)}" if siblings else ""
