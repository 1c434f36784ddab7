"""What a run's folder says of the run, finished or going on, for its report."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tutelage.errors import InputError
from tutelage.evaluation.intervals import Measurement
from tutelage.evaluation.record import Record, load_records
from tutelage.reports.run_record import RunRecord, read_record
from tutelage.safe_yaml import parse_yaml, read_yaml

_MEASURED = TypeAdapter(dict[str, Measurement])


@dataclass(frozen=True)
class RunFiles:
    """A run as its folder has it."""

    name: str
    """For tables and legends: the folder's name, or another that was given."""
    folder: Path
    config: str
    """`config.yaml` as text."""
    recipe: Mapping[str, Any]
    """The same as a mapping; of an older version it may lack keys."""
    environment: Mapping[str, Any]
    steps: tuple[Mapping[str, Any], ...]
    """The lines of `metrics.jsonl` that are steps."""
    evaluations: tuple[Mapping[str, Any], ...]
    """Step and metrics of each evaluation, the untrained student's first."""
    samples: tuple[Mapping[str, Any], ...]
    """The lines of `samples.jsonl`."""
    record: RunRecord | None
    """What was kept when the run ended."""
    tasks: Mapping[str, Record]
    """What `tutelage evaluate` found, by task."""

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.folder / "evaluation.json").exists()

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.section("method").get("name", "sft"))

    @property
    def done(self) -> int:
        """Steps on record."""
        return int(self.steps[-1]["step"]) if self.steps else 0

    def section(self, name: str) -> Mapping[str, Any]:
        """A section of the recipe; empty where there is none."""
        found = self.recipe.get(name)
        return found if isinstance(found, Mapping) else {}

    def answers_at(self, step: int) -> dict[str, str]:
        """What the student answered at an evaluation, by prompt."""
        return {line["prompt"]: line["response"] for line in self.samples if line["step"] == step}


def read_run(folder: str | Path, name: str | None = None) -> RunFiles:
    """Read a run's folder.

    Args:
        folder: of the run; it may still be going on.
        name: for tables; the folder's own by default.

    Raises:
        InputError: it is no run's folder, or one of its files is damaged.
    """
    folder = Path(folder)
    path = folder / "config.yaml"
    if not path.is_file():
        raise InputError(f"{folder} holds no run (no config.yaml); name the folder that `tutelage train` wrote")
    config = read_yaml(path)
    lines = list(_lines(folder / "metrics.jsonl", _figures))
    return RunFiles(
        name or folder.resolve().name,
        folder,
        config,
        parse_yaml(config, str(path)),
        _environment(folder / "environment.json"),
        tuple(line for line in lines if "evaluation" not in line),
        tuple({"step": line["step"], "metrics": line["evaluation"]} for line in lines if "evaluation" in line),
        tuple(_lines(folder / "samples.jsonl", _sample)),
        read_record(folder),
        load_records(folder),
    )


def _lines(path: Path, read: Callable[[Any], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The lines of a file of JSON objects; one that is being written just now is left out."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            yield read(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            if number < len(lines):  # the last one has no end yet
                raise InputError(f"{path}:{number} is no line of a run's figures; mend it, or take it out") from None


def _figures(line: Any) -> dict[str, Any]:
    """A line of `metrics.jsonl`: its numbers, with the times of the phases and the alarms."""
    if "evaluation" in line:
        found = _MEASURED.validate_python(line["evaluation"])
        return {"step": int(line["step"]), "evaluation": {name: m.as_dict() for name, m in found.items()}}
    texts = ("NaN", "Infinity", "-Infinity")  # for the numbers that JSON does not have
    numbers = {name: float(v) for name, v in line.items() if isinstance(v, int | float) or v in texts}
    seconds = {str(phase): float(value) for phase, value in line.get("seconds", {}).items()}
    return {**numbers, "step": int(line["step"]), "seconds": seconds, "alarms": [*map(str, line.get("alarms", ()))]}


def _sample(line: Any) -> dict[str, Any]:
    """A line of `samples.jsonl`."""
    return {"step": int(line["step"]), **{name: str(line[name]) for name in ("prompt", "reference", "response")}}


def _environment(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, Mapping) else {}
