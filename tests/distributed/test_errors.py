"""What goes wrong in one process ends all of them with its words, whatever kind of error it is."""

import subprocess

from tests.distributed.launch import HERE, environment, torchrun


def test_an_error_that_cannot_travel_is_told_in_words():
    command = [*torchrun(2), str(HERE / "failing.py")]
    done = subprocess.run(command, env=environment(), timeout=100, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "0 ValueError: plain",
        "0 RuntimeError: Odd: rate limit (429)",
        "0 RuntimeError: Locked: no key",
        "1 ValueError: plain with its cause",
        "1 RuntimeError: Odd: rate limit (429) with its cause",
        "1 RuntimeError: Locked: no key with its cause",
    ]
