"""Starting several processes as torchrun does, in a folder of a test."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def launched(folder: Path, jobs: list[dict[str, Any]], processes: int = 2, seconds: float = 300) -> list[list[str]]:
    """Run jobs in so many processes; return what became of each, a word for each process."""
    done = launch(folder, jobs, processes, seconds)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]


def launch(folder: Path, jobs: list[dict[str, Any]], processes: int, seconds: float) -> subprocess.CompletedProcess:
    """The same, whatever comes of it."""
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TUTELAGE_TIMEOUT_MINUTES": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*command, str(HERE / "worker.py"), str(path)],
        env=environment, timeout=seconds, capture_output=True, text=True, check=False,
    )  # fmt: skip
