"""Two machines with one copied identity: both say so, the later one stops, and clients get answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from scripts.lab.processes.child import ProcessFailedError
from scripts.lab.processes.fork_server import ForkServer
from scripts.lab.wan_lab.network import WanLab, why_not_here
from tests.swarms.harness import ASK, LOCAL, TINY, Cli, Start, freeze, machines
from tests.swarms.short_times import with_times

pytestmark = pytest.mark.swarm

COPY_WATCH = "node.presence.copied_identity"
SOON = {
    f"{COPY_WATCH}:TICK_S": 0.2,
    f"{COPY_WATCH}:FIRST_LOOK_S": 1.0,
    f"{COPY_WATCH}:LOOK_S": 2.0,
    f"{COPY_WATCH}:ANSWER_S": 5.0,
    "dht.namesakes:LATER_S": 1.0,
}
"""All have one clock here."""


@pytest.fixture
def start(fork_server: ForkServer) -> Iterator[Start]:
    with machines(with_times(fork_server.launch, SOON)) as start:
        yield start


def test_the_later_of_two_stops_and_the_first_one_serves(
    start: Start, tiny: Path, cli: Cli, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    entry = start(tmp_path / "entry", "bootstrap", *LOCAL)
    peers = ("--initial-peers", entry.wait_for("listening")["maddrs"][0])
    serve = ("serve", *LOCAL, *TINY, "--model", str(tiny), "--blocks", "0-3", *peers)
    first = start(one, *serve)
    peer_id = first.wait_for("online")["peer_id"]
    shutil.copytree(one, two)
    silent = psutil.Process(first.pid)
    freeze(silent)  # so that the other one is online before it finds out, however long that takes
    second = start(two, *serve)
    assert second.wait_for("online")["peer_id"] == peer_id
    silent.resume()

    told = first.wait_for("copied", timeout=90)
    key = one / "serve-1.key"
    assert f"mv {key} {key}.copied and start again" in told["message"]
    error = second.wait_for("error", timeout=90)
    assert "another machine runs with this node's identity since" in error["message"]
    assert f"mv {two / 'serve-1.key'} " in error["hint"]
    assert second.process.wait(30) == 8

    answer = cli("generate", "--model", str(tiny), *peers, *ASK)
    assert answer.returncode == 0, answer.stderr
    (model,) = json.loads(cli("status", "--json", *peers).stdout)["models"]
    (node,) = model["nodes"]
    assert set(node["maddrs"]) == set(told["maddrs"]), "the directory tells of the first one"
    assert (model["silent"], model["missing"]) == ([], []), "asked there, wherever the copy was met"

    (two / "serve-1.key").rename(two / "serve-1.key.copied")
    third = start(two, *serve)
    assert third.wait_for("online")["peer_id"] != peer_id, "as the hint says"


@pytest.mark.skipif(bool(why_not_here()), reason=f"no laboratory here: {why_not_here()}")
def test_two_machines_alone_on_a_lan_find_out_too(
    tiny: Path, fork_server: ForkServer, tmp_path: Path
) -> None:
    """They do not meet in a directory: nobody dials himself."""
    serve = ("serve", "--json", *TINY, "--model", str(tiny))
    with WanLab(multicast=True) as lab, machines(with_times(fork_server.launch, SOON)) as start:
        lab.add("one")
        with lab.inside("one"):
            first = start(tmp_path / "one", *serve)
        peer_id = first.wait_for("online")["peer_id"]
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        lab.add("two")
        with lab.inside("two"):
            second = start(tmp_path / "two", *serve)
        error = second.wait_for("error", timeout=120)
        assert "another machine runs with this node's identity" in error["message"]
        assert second.process.wait(30) == 8
        assert first.wait_for("copied", timeout=60)["peer_id"] == peer_id
        assert first.is_running


def test_a_node_that_is_killed_and_starts_again_is_no_copy(start: Start, tiny: Path, tmp_path: Path) -> None:
    entry = start(tmp_path / "entry", "bootstrap", *LOCAL)
    peers = ("--initial-peers", entry.wait_for("listening")["maddrs"][0])
    identity = ("--identity", str(tmp_path / "serve.key"))
    serve = ("serve", *LOCAL, *TINY, "--model", str(tiny), "--blocks", "0-3", *identity, *peers)
    before = start(tmp_path, *serve, overrides={"announce_seconds": 1.0})
    peer_id = before.wait_for("online")["peer_id"]
    before.kill()
    after = start(tmp_path, *serve, overrides={"announce_seconds": 1.0})
    assert after.wait_for("online")["peer_id"] == peer_id
    with pytest.raises(ProcessFailedError, match="no 'error' within"):
        after.wait_for("error", timeout=6)  # two looks, five announcements
    assert after.is_running
    assert all(event["event"] != "copied" for event in after.events)
