"""What ``swarm-node doctor`` tells, and what a report for others does not."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.lab.processes.fork_server import ForkServer
from swarm_node.swarm.identity import Identity

SECRET = "s3cret"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A state folder in which everything has a name that must not be told, and much is wrong."""
    home = tmp_path / SECRET
    (home / "models").mkdir(parents=True)
    (home / "models" / f"{SECRET}.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    Identity.load_or_create(home / f"{SECRET}.key")
    (home / f"{SECRET}.key").chmod(0o644)
    (home / "config.toml").write_text(f'[serve]\nmodel = "{SECRET}"\n{SECRET} = 1\n')
    return home


Doctor = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    with ForkServer(modules=["swarm_node.node.cli.main", "torch"]) as fork_server:
        yield fork_server


@pytest.fixture
def doctor(fork_server: ForkServer, home: Path) -> Doctor:
    own = {"SWARM_NODE_HOME": str(home), "HF_HOME": str(home / "hf"), "USER": SECRET}
    program = ["-m", "swarm_node.node.cli", "doctor", "--no-mdns"]
    return lambda *words: fork_server.run([*program, *words], environment=own, stdin="", timeout=120)


def test_what_is_wrong_is_said_with_what_to_do(doctor: Doctor, home: Path) -> None:
    ran = doctor()
    assert ran.returncode == 1, ran.stderr
    assert "Traceback" not in ran.stdout + ran.stderr
    assert re.search(r"^FAIL configuration: 1 fault in its file$", ran.stdout, re.MULTILINE)
    assert "warn own files: 1 of keys" in ran.stdout
    assert f"chmod 600 {home / SECRET}.key" in " ".join(ran.stdout.split())
    assert "warn model files: 0 can be served, 1 cannot" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "1 check failed."


@pytest.mark.parametrize("words", [["--share"], ["--share", "--json"]])
def test_a_report_for_others_names_nobody_and_no_place(doctor: Doctor, home: Path, words: list[str]) -> None:
    peer = "12D3KooWQYV9dGMFoRzNStwpXztXaBUjtPqi6aU76ZgUriHhKust"
    ran = doctor(*words, "--model", SECRET, "--initial-peers", f"/ip4/127.0.0.1/tcp/9/p2p/{peer}")
    assert ran.returncode == 1
    assert ran.stdout.count("own files") == 1, "it says what is wrong"
    for private in (SECRET, peer, peer[-6:], str(home.parent), os.uname().nodename, "127.0.0.1", "/ip4/"):
        assert private not in ran.stdout, ran.stdout
    assert not re.search(r"\b\d{1,3}(\.\d{1,3}){3}\b|[0-9a-f]{1,4}::|([0-9a-f]{2}:){5}", ran.stdout)


def test_json_is_one_object_with_stable_keys(doctor: Doctor, home: Path) -> None:
    ran = doctor("--json")
    told = json.loads(ran.stdout)
    assert set(told) == {"healthy", "findings"}
    assert told["healthy"] is False
    assert {frozenset(each) for each in told["findings"]} == {
        frozenset({"check", "health", "says", "advice", "details"})
    }
    assert {each["health"] for each in told["findings"]} <= {"ok", "warn", "fail", "unknown"}
    names = [each["check"] for each in told["findings"]]
    assert names[:3] == ["Python", "packages", "extras"] or names[:3] == ["Python", "packages", "kernels"]
    assert {"disk", "own files", "configuration", "ports", "local network", "from outside", "swarm"} <= set(
        names
    )
