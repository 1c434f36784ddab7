"""Starting several processes as torchrun does, in a folder of a test."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def launched(folder: Path, jobs: list[dict[str, Any]], processes: int = 2, seconds: float = 600) -> list[list[str]]:
    """Run jobs in so many processes; return what became of each, a word for each process."""
    done = launch(folder, jobs, processes, seconds)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]


def launch(folder: Path, jobs: list[dict[str, Any]], processes: int, seconds: float) -> subprocess.CompletedProcess:
    """The same, whatever comes of it."""
    return subprocess.run(
        [*torchrun(processes), str(HERE / "worker.py"), str(written_jobs(folder, jobs))],
        env=environment(), timeout=seconds, capture_output=True, text=True, check=False,
    )  # fmt: skip


def written_jobs(folder: Path, jobs: list[dict[str, Any]]) -> Path:
    """The file that `worker.py` reads."""
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    return path


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def torchrun(processes: int, *options: str) -> list[str]:
    """The words that start so many processes on this host, of one host unless options say otherwise."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)),
        *(options or ("--standalone",)),
    ]


def environment(**more: str) -> dict[str, str]:
    """What the processes find in their environment."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "TUTELAGE_TIMEOUT_MINUTES": "1", "PYTHONPATH": paths, **more}


@dataclass(frozen=True)
class Started:
    """A torchrun that works beside the test."""

    agent: subprocess.Popen
    log: Path

    @property
    def said(self) -> str:
        """What its processes have printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def until(self, happened: Callable[[], bool], seconds: float = 120) -> float:
        """Wait for something, and return how many seconds that took; the test fails where it takes longer."""
        start = time.monotonic()
        while not happened():
            assert time.monotonic() - start < seconds, f"after {seconds} s it said:\n{self.said}"
            time.sleep(0.05)
        return time.monotonic() - start


@contextmanager
def started(log: Path, command: list[str], **variables: str) -> Iterator[Started]:
    """Start a torchrun; it and its processes are gone when this ends."""
    with log.open("wb") as out:
        agent = subprocess.Popen(command, env=environment(**variables), stdout=out, stderr=out, start_new_session=True)
    try:
        yield Started(agent, log)
    finally:
        for process in reversed([agent.pid, *children(agent.pid)]):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        agent.wait(60)


def children(pid: int) -> list[int]:
    """The processes that a process has started, and those that these have."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    direct = [int(word) for word in found.stdout.split()]
    return [process for child in direct for process in (child, *children(child))]
