"""Where metrics go: always to metrics.jsonl, and to trackers that the recipe names."""

import json
import math
import os
import secrets
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from netrc import netrc
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from tutelage.errors import InputError
from tutelage.safe_yaml import parse_yaml, read_yaml
from tutelage.training.aside import Aside
from tutelage.world import world


class Tracker(Protocol):
    """A place that metrics go to."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take the numbers of one step."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class JsonLines:
    """A file with one JSON object a line, each with its step; a resumed run first cuts what it will write again.

    Args:
        path: the file.
        kept: bytes of an existing file that stay; a line that they cut goes too.
    """

    def __init__(self, path: Path, kept: int) -> None:
        if path.exists():
            with path.open("rb") as file:
                whole_lines = file.read(kept).rfind(b"\n") + 1
            os.truncate(path, whole_lines)
        self._file = path.open("ab", buffering=0)

    def bytes(self) -> int:
        """Wait until the lines so far are on the disk; return their size."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append a line; it is handed to the system at once.

        Raises:
            OSError: it could not be written, as on a full disk; nothing of it is in the file.
        """
        line = json.dumps(valid_json({"step": step, **metrics}), ensure_ascii=False) + "\n"
        before, rest = os.fstat(self._file.fileno()).st_size, memoryview(line.encode("utf-8", "replace"))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            os.ftruncate(self._file.fileno(), before)
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Unwritten:
    """In place of a file, in the processes of a run that write none."""

    def bytes(self) -> int:
        """None."""
        return 0

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """The first process writes it."""

    def close(self) -> None:
        """Nothing is open."""


def json_lines(path: Path, kept: int) -> JsonLines | Unwritten:
    """Return the file to write lines to: there is one for all processes of a run."""
    return JsonLines(path, kept) if world().is_main else Unwritten()


def valid_json(value: Any) -> Any:
    """Return a value with the texts `NaN`, `Infinity` and `-Infinity` for the numbers that JSON does not have.

    They stay visible that way, and `float` reads them back.

    >>> valid_json({"loss": math.nan, "norms": [1.0, -math.inf]})
    {'loss': 'NaN', 'norms': [1.0, '-Infinity']}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return {key: valid_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [valid_json(part) for part in value]
    return value


class TensorBoard:
    """Event files for TensorBoard, in the run's folder `tensorboard`."""

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write each number as a scalar."""
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, in the project that `WANDB_PROJECT` names, or else `tutelage`.

    It goes on with the same run after an interruption. Where this machine has not logged in (`wandb login` or
    `WANDB_API_KEY`) or `WANDB_MODE` is `offline`, it stays in the run's folder `wandb`, and `wandb sync` sends it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._run = folder, None

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Send the numbers; the service is asked for at the first ones, which takes seconds."""
        if self._run is None:
            self._run = self._begin()
        self._run.log(_numbers(metrics), step=step)

    def _begin(self) -> Any:
        import wandb

        host = urlsplit(wandb.setup().settings.base_url).hostname or ""
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=self._folder.name,
            id=_identity(self._folder),
            resume="allow",
            dir=str(self._folder),
            config=_config(self._folder),
            # Without a login it would ask at the terminal, which stops a job in the background.
            mode=None if "WANDB_MODE" in os.environ or _has_login(host) else "offline",
            settings=wandb.Settings(console="off", silent=True, finish_timeout=8),
        )

    def close(self) -> None:
        """Send what is left, and end the run."""
        if self._run is not None:
            self._run.finish()


class Trackio:
    """A run of Trackio, which keeps runs on this machine, or where its own variables say (`TRACKIO_SPACE_ID`).

    The project is `tutelage`, or what `TRACKIO_PROJECT` names; `trackio show` opens it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._run = folder, None

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Keep the numbers."""
        if self._run is None:
            import trackio  # pyright: ignore[reportMissingImports]  (an extra)

            self._run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", _PROJECT),
                name=f"{self._folder.name}-{_identity(self._folder)}",  # by which it knows a run that goes on
                resume="allow",
                config=_config(self._folder),
                embed=False,
            )
        self._run.log(_numbers(metrics), step=step)

    def close(self) -> None:
        """Write what is left."""
        if self._run is not None:
            self._run.finish()


_PROJECT = "tutelage"


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def _identity(folder: Path) -> str:
    """A name that a run keeps when it is resumed, and no other run has."""
    path = folder / "tracker_id"
    if not path.exists():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _config(folder: Path) -> dict[str, Any]:
    """The resolved recipe, from which secrets were taken out when it was written."""
    path = folder / "config.yaml"
    return parse_yaml(read_yaml(path), str(path)) if path.exists() else {}


def _has_login(host: str) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return path.is_file() and netrc(path).authenticators(host) is not None


def check_installed(names: tuple[str, ...]) -> None:
    """Refuse trackers that are not installed, before anything is loaded.

    Raises:
        InputError: one of them is not.
    """
    for name in names:
        if find_spec(name) is None:
            raise InputError(f"train.trackers names {name}, which is not installed: pip install 'tutelage[{name}]'")


def trackers(folder: Path, names: tuple[str, ...], done: int, warn: Callable[[str], None]) -> list[Tracker]:
    """Return the trackers that a recipe names; none of them can stop or hang the run."""
    kinds: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(folder, done),
        "wandb": lambda: WeightsAndBiases(folder),
        "trackio": lambda: Trackio(folder),
    }
    return [Aside(kinds[name](), name, warn) for name in names]
