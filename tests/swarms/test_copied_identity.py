"""Two machines with one copied identity: both say so, the later one stops, and clients get answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.lab.local_swarm import NodeProcess, ProcessFailedError
from scripts.lab.processes.event_process import stop_all
from scripts.lab.processes.fork_server import ForkServer
from scripts.lab.wan_lab.network import WanLab, why_not_here
from tests.swarms.harness import EXACT, Cli
from tests.swarms.short_times import with_times

pytestmark = pytest.mark.swarm

NODE = ("--json", "--host", "127.0.0.1", "--port", "0", "--no-mdns")
SMALL = ("--threads", "1", "--kv-cache-tokens", "2048", "--kernels", "torch", *EXACT)
ASK = ("--quiet", "--max-new-tokens", "4", "--wire-codec", "none", *EXACT, "hello")
COPY_WATCH = "node.presence.copied_identity"
SOON = {
    f"{COPY_WATCH}:TICK_S": 0.2,
    f"{COPY_WATCH}:FIRST_LOOK_S": 6.0,
    f"{COPY_WATCH}:LOOK_S": 3.0,
    "dht.namesakes:LATER_S": 3.0,
}
"""All have one clock here; and a node shall be online before it stops."""


class Machines:
    """Processes that have homes of their own."""

    def __init__(self, folder: Path, fork_server: ForkServer) -> None:
        self.folder = folder
        self._fork_server = fork_server
        self.started: list[NodeProcess] = []

    def start(self, home: str, *words: str, overrides: dict[str, float] | None = None) -> NodeProcess:
        environment = {"SWARM_NODE_HOME": str(self.folder / home)}
        launch = with_times(self._fork_server.launch, SOON)
        node = NodeProcess([*words], environment=environment, overrides=overrides, launch=launch)
        self.started.append(node)
        return node


@pytest.fixture
def machines(tmp_path: Path, fork_server: ForkServer) -> Iterator[Machines]:
    machines = Machines(tmp_path, fork_server)
    try:
        yield machines
    finally:
        for node in machines.started:
            node.stop()


def test_the_later_of_two_stops_and_the_first_one_serves(machines: Machines, tiny: Path, cli: Cli) -> None:
    entry = machines.start("entry", "bootstrap", *NODE)
    peers = ("--initial-peers", entry.wait_for("listening")["maddrs"][0])
    serve = ("serve", *NODE, *SMALL, "--model", str(tiny), *peers)
    first = machines.start("one", *serve)
    peer_id = first.wait_for("online")["peer_id"]
    shutil.copytree(machines.folder / "one", machines.folder / "two")
    second = machines.start("two", *serve)
    assert second.wait_for("online")["peer_id"] == peer_id

    told = first.wait_for("copied", timeout=90)
    key = machines.folder / "one" / "serve-1.key"
    assert f"mv {key} {key}.copied and start again" in told["message"]
    error = second.wait_for("error", timeout=90)
    assert "another machine runs with this node's identity since" in error["message"]
    assert f"mv {machines.folder / 'two' / 'serve-1.key'} " in error["hint"]
    assert second.process.wait(30) == 8

    answer = cli("generate", "--model", str(tiny), *peers, *ASK)
    assert answer.returncode == 0, answer.stderr
    (model,) = json.loads(cli("status", "--json", *peers).stdout)["models"]
    (node,) = model["nodes"]
    assert set(node["maddrs"]) == set(told["maddrs"]), "the directory tells of the first one"
    assert (model["silent"], model["missing"]) == ([], []), "asked there, wherever the copy was met"

    (machines.folder / "two" / "serve-1.key").rename(machines.folder / "two" / "serve-1.key.copied")
    third = machines.start("two", *serve)
    assert third.wait_for("online")["peer_id"] != peer_id, "as the hint says"


@pytest.mark.skipif(bool(why_not_here()), reason=f"no laboratory here: {why_not_here()}")
def test_two_machines_alone_on_a_lan_find_out_too(
    tiny: Path, fork_server: ForkServer, tmp_path: Path
) -> None:
    """They do not meet in a directory: nobody dials himself."""
    machines = Machines(tmp_path, fork_server)
    serve = ("serve", "--json", *SMALL, "--model", str(tiny))
    with WanLab(multicast=True) as lab:
        try:
            lab.add("one")
            with lab.inside("one"):
                first = machines.start("one", *serve)
            peer_id = first.wait_for("online")["peer_id"]
            shutil.copytree(tmp_path / "one", tmp_path / "two")
            lab.add("two")
            with lab.inside("two"):
                second = machines.start("two", *serve)
            error = second.wait_for("error", timeout=120)
            assert "another machine runs with this node's identity" in error["message"]
            assert second.process.wait(30) == 8
            assert first.wait_for("copied", timeout=60)["peer_id"] == peer_id
            assert first.is_running
        finally:
            stop_all(machines.started)


def test_a_node_that_is_killed_and_starts_again_is_no_copy(machines: Machines, tiny: Path) -> None:
    entry = machines.start("entry", "bootstrap", *NODE)
    peers = ("--initial-peers", entry.wait_for("listening")["maddrs"][0])
    identity = ("--identity", str(machines.folder / "serve.key"))
    serve = ("serve", *NODE, *SMALL, "--model", str(tiny), *identity, *peers)
    before = machines.start("one", *serve, overrides={"announce_seconds": 2.0})
    peer_id = before.wait_for("online")["peer_id"]
    before.kill()
    after = machines.start("one", *serve, overrides={"announce_seconds": 2.0})
    assert after.wait_for("online")["peer_id"] == peer_id
    with pytest.raises(ProcessFailedError, match="no 'error' within"):
        after.wait_for("error", timeout=11)  # two looks, five announcements
    assert after.is_running
    assert all(event["event"] != "copied" for event in after.events)
