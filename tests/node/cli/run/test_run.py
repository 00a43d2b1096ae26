"""``swarm-node run``: what it starts, what it refuses, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from swarm_node.node.auto.carrying import Alike
from swarm_node.node.auto.machine import MeasuredMachine
from swarm_node.node.auto.plan import Outlook
from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.run import run
from swarm_node.node.cli.run.own_node import OwnNode, OwnNodeError
from swarm_node.swarm.errors import RouteError
from swarm_node.swarm.placement.types import Gain, ModelShape, Serve, StandBy
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

MODEL = ModelRef("tiny", "ab" * 32, 30)
PEER = "12D3KooWDTnbXgHX8NdN9dmB7e5fPy4xgPkVwTQ38FzuaUfktvUu"
MACHINE = MeasuredMachine(ModelShape(30, 100, 1, 256), 30_000, 1.0, 100.0, "int4", "native", "float16")


def outlook(span: Span | None, *served: Span) -> Outlook:
    nodes = tuple(NodeInfo(str(each), (), MODEL, each, NodeState.ONLINE) for each in served)
    verdict = StandBy("stands by: too small")
    if span is not None:
        verdict = Serve(span, Gain.COVER, "serve", 1000, None, None, 0.0, 0.0)  # type: ignore[assignment]
    return Outlook(MODEL, MACHINE, nodes, True, verdict, alike=Alike((Span(0, 20), Span(20, 30)), 0.1))


def test_only_what_closes_the_gap_is_started() -> None:
    assert run._own_span(outlook(Span(10, 30), Span(0, 10))) == Span(10, 30)
    assert run._own_span(outlook(Span(0, 30), Span(0, 10))) == Span(10, 30), "no more than is missing"
    assert run._own_span(outlook(Span(0, 30), Span(5, 10))) == Span(0, 30)
    assert run._own_span(outlook(Span(3, 9), Span(0, 30))) == Span(3, 9)
    with pytest.raises(RouteError, match=r"blocks 0-29 of tiny, .*: 2 machines like this one") as caught:
        run._own_span(outlook(Span(0, 20)))
    assert "`swarm-node serve --model NAME`" in caught.value.hint
    with pytest.raises(RouteError, match="blocks 10-29 of tiny"):
        run._own_span(outlook(None, Span(0, 10)))


def test_the_node_gets_the_words_of_the_chat() -> None:
    parse = build_parser().parse_args
    peers = [f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}", f"/ip4/192.0.2.2/tcp/1/p2p/{PEER}"]
    words = ["run", "tiny", "--swarm", "home", "--initial-peers", ",".join(peers)]
    node = run._words(parse(words), outlook(Span(10, 30)), Span(10, 30))
    asked = parse(["serve", *node])
    assert (asked.model, asked.blocks, asked.swarm) == ("tiny", Span(10, 30), "home")
    assert asked.initial_peers == peers
    assert (asked.mdns, asked.host, asked.cache_size) == (True, "any", 200_000_000_000)
    alone = parse(["serve", *run._words(parse(["run", "tiny", "--no-mdns"]), outlook(None), Span(0, 30))])
    assert (alone.mdns, alone.host) == (False, "127.0.0.1")


def test_a_node_that_cannot_start_says_why(own_home: None) -> None:
    own = OwnNode(["--model", "/nowhere/at/all", "--blocks", "0-1", "--no-mdns"])
    with own as node, pytest.raises(OwnNodeError, match="/nowhere/at/all") as caught:
        node.wait_online(lambda event: None)
    assert caught.value.exit_code == 3


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[str]]:
    """``swarm-node run`` with an open standard input."""
    command = [sys.executable, "-m", "swarm_node.node.cli", "run", *words, "--no-mdns", "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def event_of(process: subprocess.Popen[str], name: str) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        if (event := json.loads(line))["event"] == name:
            return event
    raise AssertionError(f"it ended without {name}")


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path))


def node_of(process: subprocess.Popen[str]) -> psutil.Process:
    (node,) = (each for each in psutil.Process(process.pid).children() if "serve" in each.cmdline())
    return node


@pytest.mark.swarm
@pytest.mark.model
@pytest.mark.slow
def test_a_question_is_answered_by_a_node_that_ends_with_the_chat(smollm2_path: Path, own_home: None) -> None:
    with running(str(smollm2_path), "--kv-cache-tokens", "4096", "--temperature", "0") as process:
        assert event_of(process, "serving")["blocks"] == "0-29"
        event_of(process, "ready")
        node = node_of(process)
        answer, _ = process.communicate("What is the capital of France? One word.\n")
    assert "Paris" in answer
    assert process.returncode == 0
    assert not node.is_running()


@pytest.mark.swarm
@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_however_it_ends_the_node_ends_with_it(
    smollm2_path: Path, own_home: None, number: int, code: int
) -> None:
    with running(str(smollm2_path), "--kv-cache-tokens", "4096") as process:
        event_of(process, "ready")
        node = node_of(process)
        os.kill(process.pid, number)
        assert process.wait(60) == code
    assert psutil.wait_procs([node], timeout=60)[1] == []
