"""Files to records: JSON, JSON lines, CSV, TSV and Parquet, with the place of every record.

What the format itself forbids (broken JSON, wrong encoding, a ragged table) is noted in the file's
`Problems`, and the record is left out. Whether the fields make a row is not decided here.
"""

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutelage.data.json_files import read_json
from tutelage.data.lines import read_text
from tutelage.data.problems import Complaint, Problems, Record
from tutelage.errors import InputError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
COMPRESSIBLE = tuple(suffix for suffix in SUFFIXES if suffix != ".parquet")


def file_format(path: Path) -> str | None:
    """Return the suffix that decides how a file is read, `None` where it is not one of ours.

    >>> file_format(Path("train.jsonl.gz"))
    '.jsonl'
    >>> file_format(Path("notes.txt")) is None
    True
    """
    name = path.name.lower()
    if name.endswith(".gz"):
        return next((suffix for suffix in COMPRESSIBLE if name.endswith(suffix + ".gz")), None)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def read_records(path: Path, problems: Problems) -> Iterator[Record]:
    """Read one file record by record.

    Args:
        path: a file for which `file_format` knows a format.
        problems: takes what is wrong with single lines, or with the whole file.

    Yields:
        The records that could be read, in order.
    """
    match file_format(path):
        case ".parquet":
            yield from _parquet(path, problems)
        case ".csv":
            yield from _table(path, ",", problems)
        case ".tsv":
            yield from _table(path, "\t", problems)
        case _:
            yield from read_json(path, problems)


def _table(path: Path, delimiter: str, problems: Problems) -> Iterator[Record]:
    text = read_text(path, problems)
    if text is None:
        return
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # documents are longer than the default of 128 KiB
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        twice = [name for name, count in Counter(header).items() if count > 1]
        if twice:
            problems.lose(":1", Complaint("key twice", f"column '{twice[0]}' appears twice"))
            return
        yield from _cells(reader, header, problems)
    except csv.Error as error:
        text = f"not valid {path.suffix.lstrip('.').upper()}: {error}; is a quote left open?"
        problems.lose(f":{reader.line_num}", Complaint("not valid CSV", text))


def _cells(reader: Any, header: list[str], problems: Problems) -> Iterator[Record]:
    start = reader.line_num + 1
    for cells in reader:
        if len(cells) == len(header):
            yield Record(f":{start}", dict(zip(header, cells, strict=True)))
        elif cells:
            text = f"has {len(cells)} cells, the header has {len(header)}; quote cells that hold the separator"
            problems.add(f":{start}", Complaint("ragged table", text))
        start = reader.line_num + 1


def _parquet(path: Path, problems: Problems) -> Iterator[Record]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"reading {path.name} needs pyarrow: pip install 'tutelage[data]'") from None

    count = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches():
                for number, fields in enumerate(batch.to_pylist(), count + 1):
                    yield Record(f" row {number}", fields)
                count += batch.num_rows
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # the last two: values of no type
        reason = " ".join(str(error).split())
        problems.lose("", Complaint("not Parquet", f"is not a Parquet file, or a damaged one: {reason}"))
