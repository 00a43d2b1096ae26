"""What people get wrong, one by one: the exit code, one or two clear lines, and nobody else is hurt."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.lab.local_swarm import LocalSwarm
from scripts.lab.processes.fork_server import ForkServer
from tests.swarms.harness import ONE_THREAD, Cli

pytestmark = [pytest.mark.swarm, pytest.mark.model]

QUESTION = "What is the capital of France?"
UNREACHABLE = "/ip4/127.0.0.1/tcp/{port}/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


@pytest.fixture(scope="module")
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _refused(done: object, code: int, *patterns: str) -> None:
    """The process ended with ``code`` and said each pattern in at most two lines, without a traceback."""
    stderr: str = done.stderr  # type: ignore[attr-defined]
    assert done.returncode == code, stderr  # type: ignore[attr-defined]
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if line.startswith(("error:", "       "))]
    assert 1 <= len(errors) <= 2, stderr
    for pattern in patterns:
        assert re.search(pattern, "\n".join(errors), re.IGNORECASE), stderr


LOCAL = ("--host", "127.0.0.1", "--port", "0")


def test_a_missing_model_file(cli: Cli, tmp_path: Path) -> None:
    _refused(cli("serve", "--model", str(tmp_path / "none.gguf"), *LOCAL), 3, "none.gguf")


def test_a_damaged_model_file(cli: Cli, tmp_path: Path, smollm2_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with open(smollm2_path, "rb") as whole:
        cut.write_bytes(whole.read(40_000_000))
    _refused(cli("serve", "--model", str(cut), "--blocks", "20-29", *LOCAL), 3, "cut.gguf")
    cut.write_bytes(b"not a model at all")
    _refused(cli("serve", "--model", str(cut), *LOCAL), 3, "cut.gguf")


def test_a_span_outside_the_model(cli: Cli, smollm2_path: Path) -> None:
    done = cli("serve", "--model", str(smollm2_path), "--blocks", "20-30", *LOCAL)
    _refused(done, 2, "20-30", "0-29")


def test_a_port_in_use(cli: Cli, smollm2_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        options = ("--host", "127.0.0.1", "--port", port)
        _refused(cli("bootstrap", *options), 4, port, "in use")
        _refused(cli("serve", "--model", str(smollm2_path), "--blocks", "0-1", *options), 4, port, "in use")


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ('{"uniqueItems": true}', "'uniqueItems' at #"),
        ('{"type":', "not JSON"),
        (None, "cannot read the schema"),
    ],
)
def test_a_schema_that_cannot_be_kept_to(
    cli: Cli, tmp_path: Path, free_port: int, schema: str | None, pattern: str
) -> None:
    """Before anything is loaded or dialled."""
    path = tmp_path / "schema.json"
    if schema is not None:
        path.write_text(schema)
    options = ("--model", "none", "--initial-peers", UNREACHABLE.format(port=free_port))
    _refused(cli("generate", *options, "--json-schema", str(path), "hello"), 2, pattern)


def test_logprobs_without_json_show_nothing(cli: Cli, free_port: int) -> None:
    options = ("--model", "none", "--initial-peers", UNREACHABLE.format(port=free_port))
    _refused(cli("generate", *options, "--logprobs", "3", "hello"), 2, "--json")


@pytest.mark.parametrize("command", ["status", "generate", "serve"])
def test_an_unreachable_bootstrap(cli: Cli, smollm2_path: Path, command: str, free_port: int) -> None:
    address = UNREACHABLE.format(port=free_port)
    calls = {
        "status": ["status"],
        "generate": ["generate", "--model", str(smollm2_path), "hello"],
        "serve": ["serve", "--model", str(smollm2_path), "--blocks", "0-1", *LOCAL],
    }
    _refused(cli(*calls[command], "--initial-peers", address), 4, re.escape(f"/tcp/{free_port}"))


@pytest.mark.parametrize("address", ["nonsense", "/ip4/127.0.0.1/tcp/1", "/ip4/999.0.0.1/tcp/1/p2p/x"])
def test_a_wrong_bootstrap_address(cli: Cli, address: str) -> None:
    _refused(cli("status", "--initial-peers", address), 2, re.escape(address))


@pytest.fixture(scope="module")
def other_swarm(
    fork_server: ForkServer, smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalSwarm]:
    """It serves a model that differs in some weights and has the same name."""
    other = tmp_path_factory.mktemp("other") / smollm2_path.name
    shutil.copyfile(smollm2_path, other)
    with open(other, "r+b") as file:
        file.seek(-2000, 2)
        tail = bytearray(file.read())
        file.seek(-2000, 2)
        file.write(bytes(byte ^ 1 for byte in tail))
    with LocalSwarm(other, ["0-29"], serve_options=ONE_THREAD, launch=fork_server.launch) as swarm:
        yield swarm


def test_a_prompt_longer_than_the_context(cli: Cli, other_swarm: LocalSwarm) -> None:
    peers = ("--initial-peers", other_swarm.initial_peers[0])
    done = cli("generate", "--model", other_swarm.model, *peers, "-", stdin="word " * 9000)
    _refused(done, 2, "8192")


def test_an_empty_prompt(cli: Cli, other_swarm: LocalSwarm) -> None:
    peers = ("--initial-peers", other_swarm.initial_peers[0])
    _refused(cli("generate", "--model", other_swarm.model, *peers, ""), 2, "empty")


def test_another_model_under_the_same_name(cli: Cli, other_swarm: LocalSwarm, smollm2_path: Path) -> None:
    """Both sides can tell."""
    peers = ("--initial-peers", other_swarm.initial_peers[0])
    done = cli("generate", "--model", str(smollm2_path), *peers, QUESTION)
    _refused(done, 3, "differ|another|digest")
