"""What goes wrong in one process ends all of them with its words, whatever kind of error it is."""

import subprocess

from tests.distributed.launch import HERE, environment, launched, torchrun
from tests.tiny import mapping


def test_an_error_that_cannot_travel_is_told_in_words():
    command = [*torchrun(2), str(HERE / "failing.py")]
    done = subprocess.run(command, env=environment(), timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "0 ValueError: plain",
        "0 RuntimeError: Odd: rate limit (429)",
        "0 RuntimeError: Locked: no key",
        "1 ValueError: plain with its cause",
        "1 RuntimeError: Odd: rate limit (429) with its cause",
        "1 RuntimeError: Locked: no key with its cause",
    ]


def test_a_folder_that_is_another_one_on_each_host_is_refused_before_the_first_step(tmp_path):
    """Found when the run begins, and when it is to go on with what only one of the hosts has."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    job = {"recipe": mapping(tmp_path, "sft", output="run"), "folders": list(map(str, folders))}
    begun, gone_on = launched(tmp_path, [job, job])
    for said, name in ((begun, "environment.json"), (gone_on, "config.yaml")):
        assert said[0] == said[1]
        assert said[0].startswith(f"only 1 of the run's 2 processes see run/{name}; ")
    assert not list(tmp_path.glob("*/run/metrics.jsonl"))
