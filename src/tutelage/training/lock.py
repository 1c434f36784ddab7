"""One writer: a run's folder is locked while a process works in it."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from tutelage.errors import InputError

LOCK = ".lock"
HOLDER = ".lock.json"


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Make the folder, and hold it against other processes; the system lets go of it when this process ends.

    Args:
        folder: of a run.

    Raises:
        InputError: another process works in it, it is no folder, or it cannot be written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, blocking=False)
        lock.acquire()
    except Timeout:
        raise InputError(f"{folder}: {_holder(folder)}; wait for it, or name another output") from None
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"output: {_file_on_the_way(folder)} is a file; name a folder") from None
    except OSError as error:
        raise InputError(
            f"output: cannot write into {folder} ({error.strerror}); name a folder that you may write into"
        ) from None
    me = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"}
    try:
        (folder / HOLDER).write_text(json.dumps(me), encoding="utf-8")
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        who = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return f"run is active (pid {who['pid']} on host {who['host']} since {who['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just begun
        return "run is active (another process holds it)"


def _file_on_the_way(folder: Path) -> Path:
    return next(part for part in (folder, *folder.parents) if part.exists() and not part.is_dir())
