"""People say names, or nothing: models are found, fetched, and loaded by who is idle."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.lab.local_swarm import NodeProcess
from scripts.lab.processes.fork_server import ForkServer
from scripts.lab.tiny_model import write_tiny_model
from tests.swarms.harness import ASK, LOCAL, TINY, Cli, Start, machines

pytestmark = pytest.mark.swarm

SERVE = ("serve", *LOCAL, *TINY, "--share-weights")


@dataclass
class Place:
    """Two machines: one serves ``tiny-a``, the other has ``tiny-b`` and is idle."""

    a: Path
    holder: NodeProcess
    idle: NodeProcess
    peers: tuple[str, ...]
    start: Start


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Iterator[Place]:
    homes = [tmp_path_factory.mktemp(name) for name in ("holder", "idle")]
    models = [home / "models" / name for home, name in zip(homes, ("tiny-a", "tiny-b"), strict=True)]
    for seed, model in enumerate(models):
        model.mkdir(parents=True)
        write_tiny_model(model, seed=seed)
    with machines(fork_server.launch) as start:
        holder = start(homes[0], *SERVE, "--model", "TINY-A")
        peers = ("--initial-peers", holder.wait_for("listening")["maddrs"][0])
        idle = start(homes[1], *SERVE, "--models", "any", *peers)
        holder.wait_for("online")
        yield Place(models[0], holder, idle, peers, start)


def test_the_only_model_of_the_swarm_needs_no_name(place: Place, cli: Cli) -> None:
    if all(event["event"] != "sharing" for event in place.holder.events):  # it may have come before "online"
        place.holder.wait_for("sharing")
    by_path = cli("generate", "--model", str(place.a), *place.peers, *ASK)
    assert by_path.returncode == 0, by_path.stderr
    unnamed = cli("generate", *place.peers, *ASK)
    assert (unnamed.returncode, unnamed.stdout) == (0, by_path.stdout), unnamed.stderr
    near = cli("generate", "--model", "tinny-a", *place.peers, *ASK)
    assert (near.returncode, near.stdout) == (3, "")
    assert near.stderr.splitlines()[-1].strip().startswith("Did you mean 'tiny-a'?")


def test_a_second_model_of_a_name_takes_nobody_by_surprise(
    place: Place, cli: Cli, fork_server: ForkServer, tmp_path: Path
) -> None:
    """One stranger announces another model under the name. Who has used the first one keeps it; a newcomer
    is asked, since both are served from one place. What was said once is remembered, or pinned."""
    first = json.loads(cli("generate", "--json", "--model", "tiny-a", *place.peers, *ASK[1:]).stdout)
    assert "model_choice" not in first
    other = tmp_path / "stranger" / "models" / "tiny-a"
    other.mkdir(parents=True)
    write_tiny_model(other, seed=7)
    stranger = place.start(tmp_path / "stranger", *SERVE, "--model", str(other), *place.peers)
    try:
        stranger.wait_for("online")
        shutil.rmtree(tmp_path / "home" / "weights")  # what is on this machine needs no choice
        again = json.loads(cli("generate", "--json", "--model", "tiny-a", *place.peers, *ASK[1:]).stdout)
        assert again["model"] == first["model"]
        assert again["text"] == first["text"]
        assert (again["model_choice"]["reason"], again["model_choice"]["is_change"]) == ("used", False)

        def anew(*words: str) -> subprocess.CompletedProcess[str]:
            return fork_server.run(
                ["-m", "swarm_node.node.cli", *words],
                environment={"SWARM_NODE_HOME": str(tmp_path / "newcomer"), "COLUMNS": "200"},
                stdin="",
                timeout=90,
            )

        refused = anew("generate", "--model", "tiny-a", *place.peers, *ASK)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "2 different models are called tiny-a" in refused.stderr
        assert f"{first['model']} (1 node answers from 1 network)" in refused.stderr
        pinned = anew("models", "pin", first["model"], *place.peers)
        assert pinned.returncode == 0, pinned.stderr
        chosen = anew("generate", "--json", "--model", "tiny-a", *place.peers, *ASK[1:])
        assert json.loads(chosen.stdout)["model_choice"]["reason"] == "pinned"
        assert json.loads(chosen.stdout)["text"] == first["text"]
        assert anew("models", "unpin", "tiny-a").returncode == 0
        shutil.rmtree(tmp_path / "newcomer" / "weights")
        remembered = json.loads(
            anew("generate", "--json", "--model", "tiny-a", *place.peers, *ASK[1:]).stdout
        )
        assert remembered["model_choice"]["reason"] == "used"
    finally:
        stranger.stop()


def test_an_idle_node_loads_what_is_asked_for(place: Place, cli: Cli) -> None:
    place.idle.wait_for("standing_by")
    named = cli("generate", "--model", "tiny-b", "--wait", "60", *place.peers, *ASK)
    assert named.returncode == 0, named.stderr
    assert named.stdout.strip()
    assert place.idle.wait_for("wanted")["wanted"] == "tiny-b"
    listed = json.loads(cli("models", "--json", *place.peers).stdout)
    assert [(model["name"], model["missing"]) for model in listed["swarm"]] == [
        ("tiny-a", []),
        ("tiny-b", []),
    ]
    unnamed = cli("generate", *place.peers, *ASK)
    assert (unnamed.returncode, unnamed.stdout) == (2, "")
    assert "'tiny-a' or 'tiny-b'" in unnamed.stderr


def test_what_nobody_has_is_shown_as_wanted(place: Place, cli: Cli) -> None:
    assert cli("generate", "--model", "elsewhere", *place.peers, *ASK).returncode == 3
    wanted = json.loads(cli("status", "--json", *place.peers).stdout)["wanted"]
    assert ("elsewhere", 1, False) in [(each["name"], each["peers"], each["served"]) for each in wanted]
