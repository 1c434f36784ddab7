"""Files to lines of text: unpacked, decoded, and numbered as an editor numbers them."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from tutelage.data.problems import Complaint, Problems

GZIP_MAGIC = b"\x1f\x8b"
UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


def read_lines(path: Path, problems: Problems) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of each line that is not blank, unpacked, without a byte order mark."""
    try:
        raw = path.open("rb")
    except OSError as error:
        problems.lose("", Complaint("cannot be read", f"cannot be read: {error.strerror}; check its permissions"))
        return
    with raw:
        packed = raw.read(2) == GZIP_MAGIC
        raw.seek(0)
        handle = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
        number = 0
        try:
            for number, line in enumerate(handle, 1):
                line = line.removeprefix(UTF8_BOM) if number == 1 else line
                if line.strip():
                    yield number, line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            text = f"the gzip data is damaged or ends early ({error}); copy the file again"
            problems.lose(f":{number + 1}", Complaint("damaged gzip", text))


def decode(data: bytes) -> str | Complaint:
    """Decode UTF-8, or say which byte is at fault and how to convert the file.

    >>> decode("é".encode("latin1")).text
    'not UTF-8 (byte 0xe9 at column 1); looks like Latin-1: iconv -f latin1 -t utf8'
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        start = error.start
    if data.startswith(UTF16_BOMS):
        return Complaint("not UTF-8", "not UTF-8; looks like UTF-16: iconv -f utf-16 -t utf8")
    column = start - data.rfind(b"\n", 0, start)
    place = f"byte 0x{data[start]:02x} at column {column}"
    return Complaint("not UTF-8", f"not UTF-8 ({place}); looks like Latin-1: iconv -f latin1 -t utf8")


def read_text(path: Path, problems: Problems) -> str | None:
    """Read the whole text of a file, line numbers kept; `None` with a complaint where it cannot be read."""
    lines: list[bytes] = []
    for number, line in read_lines(path, problems):
        lines.extend([b"\n"] * (number - 1 - len(lines)))
        text = decode(line)
        if isinstance(text, Complaint):
            problems.lose(f":{number}", text)
            return None
        lines.append(line)
    return None if problems.lines else b"".join(lines).decode("utf-8")
