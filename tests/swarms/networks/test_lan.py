"""Machines on one switch that are told nothing but a model: they find each other, and nobody else's swarm.

In network namespaces of their own, where multicast reaches every machine.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from scripts.lab.local_swarm import NodeProcess
from scripts.lab.processes.event_process import stop_all
from scripts.lab.processes.fork_server import ForkServer
from scripts.lab.wan_lab.network import WanLab, why_not_here

pytestmark = [
    pytest.mark.swarm,
    pytest.mark.skipif(bool(why_not_here()), reason=f"no laboratory here: {why_not_here()}"),
]

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SERVE = ("--threads", "1", "--kv-cache-tokens", "4096")


@dataclass
class Lan:
    """``nodes`` by machine: a and b serve half of the model each, in the unnamed swarm; c serves all of it in
    a swarm with a key. ``online``: what each said then. ``run`` runs ``swarm-node`` in a machine that serves
    nothing."""

    model: str
    key: Path
    run: Run
    nodes: dict[str, NodeProcess] = field(default_factory=dict)
    online: dict[str, dict[str, Any]] = field(default_factory=dict)

    def peer_ids(self, *names: str) -> set[str]:
        return {self.online[name]["peer_id"] for name in names}

    def seen(self, *words: str) -> set[str]:
        """Who serves, as ``swarm-node status`` shows it."""
        shown = self.run("status", "--json", *words)
        assert shown.returncode == 0, shown.stderr
        return {node["peer_id"] for model in json.loads(shown.stdout)["models"] for node in model["nodes"]}


@pytest.fixture(scope="module")
def lan(tiny: Path, fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lan]:
    folder = tmp_path_factory.mktemp("lan")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {"SWARM_NODE_HOME": str(folder / "laptop"), "COLUMNS": "200"}
        with lab.inside("laptop"):
            return fork_server.run(
                ["-m", "swarm_node.node.cli", *words], environment=environment, stdin="", timeout=90
            )

    with WanLab(multicast=True) as lab:
        made = Lan(str(tiny), folder / "home.key", run)
        lab.add("laptop")
        made_key = run("invite", "--swarm", "home", "--swarm-key", str(made.key), "--no-mdns")
        assert made_key.returncode == 0, made_key.stderr
        machines = {
            "a": ("--blocks", "0-1"),
            "b": ("--blocks", "2-3"),
            "c": ("--blocks", "all", "--swarm", "home", "--swarm-key", str(made.key)),
        }
        try:
            for name, words in machines.items():  # all at once
                lab.add(name)
                with lab.inside(name):
                    made.nodes[name] = NodeProcess(
                        ["serve", "--json", "--model", made.model, *SERVE, *words],
                        environment={"SWARM_NODE_HOME": str(folder / name)},
                        launch=fork_server.launch,
                    )
            for name, node in made.nodes.items():
                made.online[name] = node.wait_for("online")
            yield made
        finally:
            stop_all(list(made.nodes.values()))


def test_a_laptop_gets_an_answer_by_the_models_name_alone(lan: Lan) -> None:
    answer = lan.run("generate", "--json", "--model", lan.model, "--raw", "hello", "--max-new-tokens", "3")
    assert answer.returncode == 0, answer.stderr
    route = [hop["peer_id"] for hop in json.loads(answer.stdout)["route"]]
    assert set(route) == lan.peer_ids("a", "b")


def test_nodes_found_each_other_and_said_so(lan: Lan) -> None:
    found = {
        name: {event["found"] for event in node.events if event["event"] == "peer_found"}
        for name, node in lan.nodes.items()
    }
    assert found == {"a": lan.peer_ids("b"), "b": lan.peer_ids("a"), "c": set()}


def test_an_invite_lets_into_the_swarm_with_the_key(lan: Lan) -> None:
    made = lan.run("invite", "--json", "--swarm", "home", "--swarm-key", str(lan.key), "--lasts", "2h")
    assert made.returncode == 0, made.stderr
    invite = json.loads(made.stdout)
    assert {peer.split("/p2p/")[1] for peer in invite["peers"]} == lan.peer_ids("c")
    # By its addresses, without any other help.
    assert lan.seen("--join", invite["invite"], "--no-mdns") == lan.peer_ids("c")


def test_without_the_key_the_door_stays_shut_and_says_why(lan: Lan) -> None:
    address = lan.online["c"]["maddrs"][0]
    refused = lan.run("status", "--json", "--swarm", "home", "--initial-peers", address)
    assert refused.returncode == 6
    assert "admit" in json.loads(refused.stdout)["message"] or "not in this swarm" in refused.stderr
    assert "--join" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 2
