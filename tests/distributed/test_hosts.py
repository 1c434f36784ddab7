"""Two hosts, each with its own torchrun: network namespaces of this machine, joined by a cable that can be cut."""

import json
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from tests.distributed.command import MESSAGE
from tests.distributed.comparing import QUIET, assert_close
from tests.distributed.launch import HERE, Started, started, torchrun
from tests.tiny import mapping

from tutelage.recipe import recipe_of
from tutelage.training.run import train

pytestmark = pytest.mark.fault_soak
ADDRESSES = ("10.77.0.1", "10.77.0.2")


class Hosts:
    """Two network namespaces and the pair of interfaces between them.

    Args:
        names: of the namespaces; their interfaces are called the same.
    """

    def __init__(self, names: tuple[str, str]) -> None:
        self.names = names

    def connect(self) -> None:
        """Put the cable in."""
        first, second = self.names
        _ip("link", "add", first, "netns", first, "type", "veth", "peer", "name", second, "netns", second)
        for name, address in zip(self.names, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", name)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", name, "up")

    def cut(self) -> None:
        """Cut it."""
        _ip("-n", self.names[0], "link", "set", self.names[0], "down")

    def mend(self) -> None:
        """Mend it."""
        _ip("-n", self.names[0], "link", "set", self.names[0], "up")

    def start(self, running: ExitStack, folder: Path, recipe: Path, **variables: str) -> list[Started]:
        """Start a torchrun on each, with one process."""
        found = []
        for place, name in enumerate(self.names):
            command = torchrun(
                1,
                *("--nnodes", "2", "--node-rank", str(place), "--master-addr", ADDRESSES[0], "--master-port", "29500"),
            )
            words = ["ip", "netns", "exec", name, *command, str(HERE / "command.py"), "train", str(recipe)]
            log = folder / f"log-{place}"
            found.append(running.enter_context(started(log, words, GLOO_SOCKET_IFNAME=name, **variables)))
        return found


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    mark = uuid.uuid4().hex[:6]
    names = (f"tu{mark}a", f"tu{mark}b")
    try:
        for name in names:
            _ip("netns", "add", name)
        made = Hosts(names)
        made.connect()
    except (OSError, subprocess.CalledProcessError) as error:
        _remove(names)
        pytest.skip(f"network namespaces need root and the command ip ({error})")
    yield made
    _remove(names)


def _remove(names: tuple[str, str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def written(folder: Path) -> tuple[dict, Path]:
    recipe = mapping(folder, "gkd", train={"save_every": 2}, output=str(folder / "hosts"))
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return recipe, path


def test_two_hosts_make_the_run_of_one_process_and_go_on_after_the_cable_was_cut(tmp_path, hosts):
    recipe, path = written(tmp_path)
    with ExitStack() as running:
        fault = json.dumps({"rank": 1, "at": "step", "do": "wait"})
        both = hosts.start(running, tmp_path, path, FAULT=fault, TUTELAGE_TIMEOUT_MINUTES="0.1")
        both[0].until((tmp_path / "hung").exists)
        hosts.cut()
        (tmp_path / "go").touch()
        for host in both:
            host.until(lambda host=host: MESSAGE in host.said, 6 + 10)
            assert "Traceback" not in host.said.partition(MESSAGE)[0]
        assert [host.agent.wait(60) for host in both] == [1, 1]
    assert [each.name for each in (tmp_path / "hosts" / "checkpoints").glob("step-*")] == ["step-00000002"]
    hosts.mend()
    with ExitStack() as running:
        both = hosts.start(running, tmp_path, path)
        assert [host.agent.wait(120) for host in both] == [0, 0], both[0].said + both[1].said
        assert "resuming from step 2" in both[0].said
    train(recipe_of({**recipe, "output": str(tmp_path / "whole")}), **QUIET)
    assert_close(tmp_path / "whole", tmp_path / "hosts")


def test_two_hosts_make_the_run_of_one_process(tmp_path, hosts):
    recipe, path = written(tmp_path)
    with ExitStack() as running:
        both = hosts.start(running, tmp_path, path)
        assert [host.agent.wait(120) for host in both] == [0, 0], both[0].said + both[1].said
    train(recipe_of({**recipe, "output": str(tmp_path / "whole")}), **QUIET)
    assert_close(tmp_path / "whole", tmp_path / "hosts")
