"""Where rows come from: a file, a folder of files, or the Hugging Face hub."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

from tutelage.data.formats import SUFFIXES, file_format, read_records
from tutelage.data.problems import Problems, Record
from tutelage.errors import InputError

HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*(?:/[\w-][\w.-]*)?)(?:\[(?P<config>[\w.-]+)\])?(?::(?P<split>.+))?")
KNOWN = ", ".join(SUFFIXES)


def open_source(source: str) -> Iterator[tuple[Problems, Iterator[Record]]]:
    """Find what `source` names and open its files one after the other.

    Args:
        source: a file, a folder, or a hub id (`name`, `name:split` or `name[config]:split`).

    Yields:
        For each file (or hub split) the place for its problems, and its records.

    Raises:
        InputError: there is no such file, folder or hub id, or nothing in it that can be read.
    """
    path = Path(source).expanduser()
    if path.exists():
        for file in _files(path):
            problems = Problems(file.name)
            yield problems, read_records(file, problems)
    elif looks_like_path(source):
        raise InputError(f"no such file: {source}{_nearest(path)}")
    else:
        yield Problems(source), _hub(source)


def looks_like_path(source: str) -> bool:
    """Tell whether a source that does not exist was meant as a file rather than as a hub id.

    >>> looks_like_path("data/train.jsonl"), looks_like_path("./train"), looks_like_path("openai/gsm8k:test")
    (True, True, False)
    """
    if source.startswith(("/", ".", "~")) or HUB_ID.fullmatch(source) is None:
        return True
    parent = Path(source).parent
    return bool(re.search(r"\.[A-Za-z]\w{1,7}$", source)) or (parent != Path() and parent.is_dir())


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (and no folder {path.parent})"
    names = sorted(neighbour.name for neighbour in path.parent.iterdir())
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if file_format(path) is None:
            raise InputError(f"{path}: unknown format; expected one of {KNOWN} (or .gz of them)")
        return [path]
    if (path / "dataset_info.json").exists():
        raise InputError(f"{path} was written by datasets' save_to_disk; write it with to_parquet or to_json")
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    files = [file for file in files if file_format(file) is not None]
    if not files:
        raise InputError(f"{path}: no data files in this folder; expected {KNOWN} (or .gz of them)")
    return files


def _hub(source: str) -> Iterator[Record]:
    match = HUB_ID.fullmatch(source)
    assert match is not None, source
    name, split = match["name"], match["split"] or "train"
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(f"reading '{source}' from the hub needs datasets: pip install 'tutelage[data]'") from error
    try:
        table = load_dataset(name, match["config"], split=split)
    except Exception as error:  # the hub fails in many ways of its own; each ends here with its reason
        text = f"'{source}' is no local file, and split '{split}' of '{name}' does not load from the hub"
        raise InputError(f"{text}: {type(error).__name__}: {error}") from error
    for number, fields in enumerate(table, 1):
        yield Record(f" row {number}", dict(fields))
