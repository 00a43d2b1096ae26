"""What is wrong with the words alone is said before anything heavy is imported."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.lab.processes.fork_server import ForkServer
from tests.node.cli import light_command

Run = Callable[..., "subprocess.CompletedProcess[str]"]
COMMAND = light_command.__name__


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with ForkServer(modules=[COMMAND]) as fork_server:
        yield lambda *words: fork_server.run(["-m", COMMAND, *words], environment={}, stdin="", timeout=60)


@pytest.mark.parametrize(
    "command", [["generate", "hi"], ["chat"], ["gateway"], ["status"], ["serve"], ["run", "m"], ["pull", "m"]]
)
def test_addresses_invites_and_keys(run: Run, command: list[str], tmp_path: Path) -> None:
    for words, message in (
        (["--initial-peers", "192.0.2.1"], "is not a multiaddress"),
        (["--join", "swn1nothing"], "invite"),
        (["--join", str(tmp_path / "no-invite")], "is neither an invite nor a file with one"),
        (["--swarm-key", str(tmp_path / "no.key")], "there is no swarm key"),
    ):
        done = run(*command, *words)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 2), done.stderr
        assert message in done.stderr


def test_an_invite_to_pass_on_makes_no_key(run: Run, tmp_path: Path) -> None:
    key = tmp_path / "new.key"
    done = run("invite", "--swarm-key", str(key), "--join", str(tmp_path / "no-invite"))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 2), done.stderr
    assert not key.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chat", "--load"], "cannot read"),
        (["run", "m", "--load"], "cannot read"),
        (["generate", "hi", "--json-schema"], "cannot read the schema"),
    ],
)
@pytest.mark.parametrize("text", [None, "{", "\udcff"])
def test_a_file_that_is_missing_or_broken(
    run: Run, tmp_path: Path, words: list[str], message: str, text: str | None
) -> None:
    file = tmp_path / "file.json"
    if text is not None:
        file.write_text(text, errors="surrogateescape")
    done = run(*words, str(file))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 2), done.stderr
    assert message in done.stderr or (text == "{" and "is not a saved chat" in done.stderr)


@pytest.mark.parametrize(
    ("command", "option"),
    [(command, option) for command in ("serve", "bootstrap") for option in ("--port", "--metrics")]
    + [("serve", "--dashboard")],
)
def test_a_port_that_is_taken(run: Run, command: str, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run(command, "--host", "127.0.0.1", "--port", "0", option, port)
    assert done.returncode == 4, done.stderr
    assert f"port {port} on 127.0.0.1 is in use" in done.stderr


@pytest.mark.parametrize("command", ["gateway", "dashboard"])
def test_what_serves_http(run: Run, command: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run(command, "--port", port)
    assert done.returncode == 4, done.stderr
    assert f"cannot listen at 127.0.0.1 port {port}" in done.stderr
    assert "--host" not in done.stderr, "the address is this machine's: only the port is wrong"
    done = run(command, "--port", "0", "--api-key-file", str(tmp_path / "keys"))
    assert done.returncode == 2, done.stderr
    assert "the API keys in" in done.stderr


@pytest.mark.parametrize("command", ["serve", "bootstrap", "gateway"])
def test_keys_of_who_reads_figures(run: Run, command: str, tmp_path: Path) -> None:
    done = run(command, "--port", "0", "--metrics-key-file", str(tmp_path / "keys"))
    assert done.returncode == 2, done.stderr
    assert "the API keys in" in done.stderr


@pytest.mark.parametrize("command", [["generate", "hi"], ["chat"], ["gateway", "--port", "0"], ["serve"]])
def test_a_path_at_which_there_is_no_model(run: Run, command: list[str], tmp_path: Path) -> None:
    (tmp_path / "model-q4.gguf").touch()
    done = run(*command, "--model", str(tmp_path / "model-q5.gguf"))
    assert done.returncode == 3, done.stderr
    assert f"there is no model at {tmp_path / 'model-q5.gguf'}" in done.stderr
    assert f"Did you mean '{tmp_path / 'model-q4.gguf'}'?" in done.stderr


def test_a_wrong_word_and_help(run: Run) -> None:
    assert run("generate", "--no-such-option", "hi").returncode == 2
    assert run("--help").returncode == 0
