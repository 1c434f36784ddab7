"""`tutelage` with a fault planted: `FAULT='{"rank": 1, "at": "step", "do": "SIGSTOP"}' … command.py train RECIPE`.

The process of that rank stops, or sleeps in its own code, after its third step or in the middle of its second save;
or it only waits until the test has made the file `go` in the recipe's folder. It leaves its number in the file `hung`
there first.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tutelage.cli import main
from tutelage.models import gathering as gathering_module
from tutelage.training import loop as loop_module
from tutelage.world import leave

MESSAGE = "the other processes of the run cannot be reached"


def fall_silent(how: str) -> None:
    """Do nothing any more, or not yet."""
    folder = Path(sys.argv[2]).parent
    (folder / "hung").write_text(str(os.getpid()))
    if how == "sleep":
        time.sleep(600)
    elif how == "wait":
        while not (folder / "go").exists():
            time.sleep(0.05)
    else:
        os.kill(os.getpid(), getattr(signal, how))


def silent_at_call(number: int, function: Callable[..., Any], how: str) -> Callable[..., Any]:
    """A function that does what it did, and falls silent after that many calls."""
    calls = 0

    def counted(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        result = function(*arguments, **keywords)
        if calls == number:
            fall_silent(how)
        return result

    return counted


if __name__ == "__main__":
    torch.set_num_threads(1)
    fault = json.loads(os.environ.get("FAULT", "{}"))
    if fault and fault["rank"] == int(os.environ["RANK"]):
        if fault["at"] == "step":
            loop_module.Loop.step = silent_at_call(3, loop_module.Loop.step, fault["do"])
        else:
            gathering_module.save_file = silent_at_call(3, gathering_module.save_file, fault["do"])
    leave(main())
