"""docs/guides/python.md, block by block, and ``swarm-node chat``, over one swarm of real processes."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.lab.local_swarm import LocalSwarm, NodeProcess, split_evenly
from scripts.lab.processes.fork_server import ForkServer
from tests import ROOT
from tests.doubles.terminal import CTRL_C, CTRL_D, ENTER, Terminal
from tests.swarms.harness import ONE_THREAD, Cli

pytestmark = [pytest.mark.swarm, pytest.mark.model]

RECIPES = ROOT / "docs/guides/python.md"
QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."
EXPECTED = "# → "


@pytest.fixture(scope="module")
def swarm(smollm2_path: Path, fork_server: ForkServer) -> Iterator[LocalSwarm]:
    with LocalSwarm(
        smollm2_path, split_evenly(30, 2), serve_options=ONE_THREAD, launch=fork_server.launch
    ) as swarm:
        yield swarm


@pytest.fixture(scope="module")
def gateway(swarm: LocalSwarm, fork_server: ForkServer) -> Iterator[str]:
    """Where one listens."""
    words = [
        "gateway",
        "--json",
        "--model",
        swarm.model,
        "--initial-peers",
        swarm.initial_peers[0],
        "--port",
        "0",
    ]
    process = NodeProcess(words, launch=fork_server.launch)
    try:
        yield process.wait_for("listening")["url"]
    finally:
        process.stop()


def blocks() -> list[tuple[str, str]]:
    """(heading, code) of each Python block of the page."""
    page = RECIPES.read_text()
    return [
        (re.findall(r"^## (.+)$", page[: block.start()], re.MULTILINE)[-1], block.group(1))
        for block in re.finditer(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    ]


def run_block(title: str, code: str, names: dict[str, Any]) -> None:
    """Run it in ``names``; what it says that it prints must come, in this order."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, f"{RECIPES.name}, {title!r}", "exec"), names)
    shown = out.getvalue().splitlines()
    for line in code.splitlines():
        if line.startswith(EXPECTED):
            expected = line.removeprefix(EXPECTED)
            assert expected in shown, f"{title}: {expected!r} was not printed, but {out.getvalue()!r}"
            del shown[: shown.index(expected) + 1]


def test_recipes(swarm: LocalSwarm, gateway: str) -> None:
    names: dict[str, Any] = {"MODEL": swarm.model, "ADDR": swarm.initial_peers[0], "GATEWAY": gateway}
    found = blocks()
    assert len(found) >= 15
    try:
        for title, code in found:
            run_block(title, code, names)
    finally:
        for name in ("swarm", "model"):
            if name in names:
                names[name].close()


def test_a_recipe_that_says_something_wrong_fails() -> None:
    with pytest.raises(AssertionError, match="'4' was not printed"):
        run_block("sums", "print(1 + 1)\n# → 2\nprint(5)\n# → 4\n", {})
    with pytest.raises(NameError):
        run_block("names", "print(nothing)", {})


def _chat(swarm: LocalSwarm, *more: str) -> list[str]:
    return [
        "chat",
        "--model",
        swarm.model,
        "--initial-peers",
        swarm.initial_peers[0],
        "--temperature",
        "0",
        *more,
    ]


def test_chat_in_a_pipe(swarm: LocalSwarm, cli: Cli) -> None:
    done = cli(*_chat(swarm, "--max-new-tokens", "12"), stdin=f"{QUESTION}\n/clear\n{QUESTION}\n")
    assert (done.returncode, done.stdout) == (0, f"{ANSWER}\n{ANSWER}\n"), done.stderr


def test_chat_for_machines(swarm: LocalSwarm, cli: Cli) -> None:
    """The second turn feeds only what is new."""
    talk = f"{QUESTION} {'And why is that so? ' * 20}\nThank you!\n/route\n/nonsense\n"
    done = cli(*_chat(swarm, "--json", "--max-new-tokens", "20"), stdin=talk)
    assert done.returncode == 2
    assert "there is no command /nonsense" in done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [event["event"] for event in events if event["event"] != "piece"]
    assert kinds == ["ready", "answer", "answer", "route", "error"]
    first, second = (event for event in events if event["event"] == "answer")
    pieces = "".join(event["text"] for event in events if event["event"] == "piece")
    assert pieces == first["text"] + second["text"]
    assert first["timings"]["cached_tokens"] == 0
    assert second["timings"]["cached_tokens"] >= 96
    assert len(events[-2]["route"]) == 2


def test_chat_in_a_terminal(swarm: LocalSwarm, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "swarm_node.node.cli", *_chat(swarm, "--no-history")]
    with Terminal(words, {"SWARM_NODE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}) as terminal:
        terminal.wait_for("Alt-Enter: new line")
        terminal.type(f"{QUESTION}{ENTER}")
        terminal.wait_for(ANSWER)
        terminal.wait_for("first after")
        terminal.wait_for("Alt-Enter: new line")
        terminal.type(f"Write a very long story about the sea.{ENTER}")
        terminal.wait_for("tokens/s")
        terminal.type(CTRL_C)
        terminal.wait_for("Stopped.")
        terminal.wait_for("Alt-Enter: new line")
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0
        assert terminal.echoes()


def test_chat_without_a_way_into_the_swarm(swarm: LocalSwarm, cli: Cli) -> None:
    nobody = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
    done = cli("chat", "--json", "--model", swarm.model, "--initial-peers", nobody, stdin="hello\n")
    assert done.returncode == 4
    (event,) = (json.loads(line) for line in done.stdout.splitlines())
    assert event["event"] == "error"
