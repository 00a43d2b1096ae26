"""A node and a client whose fetched weights have become holes fetch them again, and answer as before."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.lab.processes.fork_server import ForkServer
from scripts.lab.tiny_model import write_tiny_model
from tests.swarms.harness import ASK, LOCAL, TINY, Cli, machines

pytestmark = pytest.mark.swarm


def zero(home: Path) -> int:
    """What a power cut may leave of a store: names, sizes and claims; how many files."""
    files = [path for path in home.glob("weights/*/files/*") if ".safetensors" in path.name]
    for path in files:
        path.write_bytes(bytes(path.stat().st_size))
    return len(files)


def test_holes_are_neither_served_nor_asked_with(
    tmp_path: Path, fork_server: ForkServer, cli: Cli, cli_environment: dict[str, str]
) -> None:
    model = tmp_path / "tiny"
    model.mkdir()
    write_tiny_model(model)
    serve = ("serve", *LOCAL, *TINY, "--share-weights")
    with machines(fork_server.launch) as start:
        origin = start(tmp_path / "origin", *serve, "--model", str(model), "--blocks", "0-0")
        peers = ("--initial-peers", origin.wait_for("listening")["maddrs"][0])
        origin.wait_for("sharing")
        words = (*serve, "--model", "tiny", "--blocks", "1-3", *peers)
        node = start(tmp_path / "node", *words)
        node.wait_for("online")
        first = cli("generate", "--model", "tiny", *peers, *ASK)
        assert first.returncode == 0, first.stderr
        node.kill()
        assert zero(tmp_path / "node") == zero(Path(cli_environment["SWARM_NODE_HOME"])) == 1
        node = start(tmp_path / "node", *words)
        node.wait_for("online")
        told = [event["event"] for event in node.events]
        assert "weights_damaged" in told[: told.index("online")]
        again = cli("generate", "--model", "tiny", *peers, *ASK)
        assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
