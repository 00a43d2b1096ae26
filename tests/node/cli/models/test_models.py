"""What ``models`` and ``status`` make of local files, a directory's content, and demand."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from swarm_node.node.cli.models import models
from swarm_node.node.cli.models.models import run_models
from swarm_node.node.cli.network import status
from swarm_node.node.cli.network.status import SwarmListing
from swarm_node.node.cli.network.tables import demand_lines
from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.shared import output
from swarm_node.shards.checkpoint.known_models import KnownModels
from swarm_node.shards.checkpoint.local_models import ModelFiles
from swarm_node.swarm.errors import PeerUnreachableError, UsageError
from swarm_node.swarm.names import ModelName
from swarm_node.swarm.placement.demand import Wanted, WantedModel, tally
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

MODEL = ModelRef("tiny", "ab" * 32, 30)
LONG = ModelRef("A-model-whose-name-is-quite-long-Instruct-and-then-some.Q4_K_M", "ab" * 32, 30)
FILES = ModelFiles("mine.Q4_1", Path("/models/mine.Q4_1.gguf"), "gguf", 98_000_000)


def node(peer_id: str, blocks: str, state: NodeState = NodeState.ONLINE) -> NodeInfo:
    return NodeInfo(peer_id, ("/ip4/192.168.1.7/tcp/1",), MODEL, Span.parse(blocks), state)


def asks(*names: str) -> list[Wanted]:
    return [Wanted(f"peer {number}", (WantedModel(name),)) for number, name in enumerate(names)]


def lines(nodes: Sequence[NodeInfo], *names: str) -> list[str]:
    return demand_lines(tally(asks(*names), nodes))


def test_demand_in_words() -> None:
    assert lines([], "demo", "demo") == ["[yellow]wanted[/]: demo by 2 peers; nobody serves it"]
    nodes = [node("12D3KooWabcdef", "0-9", NodeState.JOINING), node("12D3KooWonline", "20-29")]
    assert lines(nodes, "tiny") == [
        "[yellow]wanted[/]: tiny@abababababab by 1 peer; …abcdef is loading 0-9; nobody has 10-19"
    ]
    assert lines([node("a", "0-29")], "tiny")[0].endswith("all its blocks are served now")
    assert lines([], "[red]x[/red]") == [r"[yellow]wanted[/]: \[red]x\[/red] by 1 peer; nobody serves it"]
    assert lines([], *map(str, range(20)))[-1] == "[dim]12 more models are wanted[/]"


def test_status_has_the_demand(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [node("12D3KooWabcdef", "0-9", NodeState.JOINING)]
    demand = tally(asks("tiny", "other"), nodes)
    report = status.build_report(nodes, demand)
    assert report["wanted"] == [
        {
            "name": "tiny",
            "digest": MODEL.digest,
            "peers": 1,
            "votes": 1.0,
            "served": True,
            "missing": ["10-29"],
            "loading": [{"peer_id": "12D3KooWabcdef", "blocks": "0-9"}],
        },
        {**_nothing, "name": "other"},
    ]
    status.print_tables(report, demand)
    assert "wanted: tiny@abababababab by 1 peer; …abcdef is loading 0-9" in capsys.readouterr().out
    status.print_tables(status.build_report([], demand), demand)
    assert "wanted: other by 1 peer" in capsys.readouterr().out


_nothing = {"digest": "", "peers": 1, "votes": 1.0, "served": False, "missing": [], "loading": []}


class Machine:
    """What ``models`` finds: files here, and a swarm or its error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: list[ModelFiles] = [FILES]
        self.snapshot: SwarmListing | Exception = SwarmListing((), ())
        monkeypatch.setattr(models, "default_local_models", lambda: Namespace(checked=lambda: self.files))
        monkeypatch.setattr(models, "read_swarm", self.read)

    async def read(self, *_: object, **__: object) -> SwarmListing:
        if isinstance(self.snapshot, Exception):
            raise self.snapshot
        return self.snapshot


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


async def run(*words: str) -> None:
    await run_models(build_parser().parse_args(["models", *words]))


async def test_models_as_a_table(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.snapshot = SwarmListing([node("a", "0-9"), node("b", "10-29", NodeState.JOINING)], asks("other"))
    await run()
    told = capsys.readouterr().out
    assert "mine.Q4_1" in told
    assert "here (gguf)" in told
    assert "98.0 MB" in told
    (row,) = (line for line in told.splitlines() if "tiny@abababababab" in line)
    assert "swarm (2 nodes, 1 network)" in row
    assert "missing 10-29" in row
    assert "wanted: other by 1 peer; nobody serves it" in told


async def test_what_cannot_run_is_marked(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.files.append(
        replace(FILES, name="mine.mmproj", problem="/m.gguf is no model but [x]", hint="Give the other.")
    )
    await run("--local")
    told = capsys.readouterr().out
    (row,) = (line for line in told.splitlines() if "mine.mmproj " in line)
    assert row.rstrip().endswith("cannot run")
    assert "mine.mmproj: /m.gguf is no model but [x]. Give the other." in " ".join(told.split())
    await run("--local", "--json")
    (_, broken) = json.loads(capsys.readouterr().out)["here"]
    assert (broken["problem"], broken["hint"]) == ("/m.gguf is no model but [x]", "Give the other.")


@pytest.mark.parametrize("is_terminal", [False, True])
async def test_a_name_that_is_to_be_pasted_is_whole(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setattr(output.answers, "_width", 80)
    monkeypatch.setattr(output.answers, "_force_terminal", is_terminal)
    machine.snapshot = SwarmListing([replace(node("a", "0-9"), model=LONG)], ())
    await run()
    told = capsys.readouterr().out
    assert f"{LONG.name}@abababababab" in re.sub(r"\x1b\[[0-9;]*m", "", told)


async def test_models_as_json(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.snapshot = SwarmListing([node("a", "0-29")], asks("tiny"))
    await run("--json")
    report = json.loads(capsys.readouterr().out)
    assert report["here"] == [
        {
            "name": "mine.Q4_1",
            "path": "/models/mine.Q4_1.gguf",
            "kind": "gguf",
            "bytes": 98_000_000,
            "weights_root": "",
            "problem": "",
            "hint": "",
        }
    ]
    assert report["swarm"] == [
        {
            "name": "tiny",
            "digest": MODEL.digest,
            "n_blocks": 30,
            "nodes": 1,
            "networks": 1,
            "used_since": "",
            "missing": [],
        }
    ]
    assert report["pinned"] == []
    assert [each["name"] for each in report["wanted"]] == ["tiny"]
    assert report["problem"] == ""


async def test_a_name_is_pinned_and_unpinned(
    machine: Machine, capsys: pytest.CaptureFixture[str], known_models: Path
) -> None:
    machine.snapshot = SwarmListing([node("a", "0-29")], ())
    await run("pin", "TINY@abab")
    assert capsys.readouterr().out.startswith("TINY now means TINY@abababababab")
    assert KnownModels(known_models).pins() == (ModelName("TINY", MODEL.digest),)
    await run()
    assert "TINY@abababababab: pinned" in capsys.readouterr().out
    await run("pin", "other@sha256:" + "9" * 64, "--json")
    assert json.loads(capsys.readouterr().out)["root"] == "9" * 64
    await run("unpin", "tiny", "--json")
    assert json.loads(capsys.readouterr().out)["was_pinned"] is True
    await run("unpin", "tiny")
    told = capsys.readouterr().out
    assert "tiny was not pinned" in told
    assert f"; pinned: other@sha256:{'9' * 64}." in " ".join(told.split())
    await run("--json")
    assert json.loads(capsys.readouterr().out)["pinned"] == ["other@sha256:" + "9" * 64]


@pytest.mark.parametrize("words", [("pin",), ("pin", "tiny"), ("pin", "tiny@beef"), ("unpin",)])
async def test_a_pin_says_one_model(machine: Machine, words: tuple[str, ...]) -> None:
    twin = replace(node("b", "0-29"), model=replace(MODEL, digest="abac" * 16))
    machine.snapshot = SwarmListing([node("a", "0-29"), twin], ())
    with pytest.raises(UsageError) as caught:
        await run(*words)
    assert caught.value.hint
    twin = replace(twin, model=replace(MODEL, digest="abab" + "0" * 60))
    machine.snapshot = SwarmListing([node("a", "0-29"), twin], ())
    with pytest.raises(UsageError, match="2 models of this swarm match tiny@abab"):
        await run("pin", "tiny@abab")


async def test_what_was_used_here_is_told(
    machine: Machine, capsys: pytest.CaptureFixture[str], known_models: Path
) -> None:
    KnownModels(known_models, lambda: datetime(2026, 11, 20, tzinfo=UTC)).note_used("t", MODEL.digest)
    machine.snapshot = SwarmListing([node("a", "0-29")], ())
    await run()
    assert "tiny@abababababab: used here since 2026-11-20" in capsys.readouterr().out
    await run("--json")
    assert json.loads(capsys.readouterr().out)["swarm"][0]["used_since"] == "2026-11-20T00:00:00+00:00"


async def test_models_without_a_swarm(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.snapshot = PeerUnreachableError("no peer was found on this LAN")
    await run()
    told = capsys.readouterr()
    assert "mine.Q4_1" in told.out
    assert "The swarm was not asked: no peer was found on this LAN." in told.err
    await run("--json")
    assert json.loads(capsys.readouterr().out)["problem"] == "no peer was found on this LAN"
    machine.snapshot = AssertionError("asked a swarm")
    await run("--local")
    machine.files = []
    await run("--local")
    assert "Put a GGUF file" in capsys.readouterr().out


def test_who_asks_needs_no_name_of_a_model() -> None:
    parse = build_parser().parse_args
    assert parse(["generate", "hello"]).model is None
    assert parse(["chat"]).model is None
    assert parse(["gateway"]).model == []
    serve = parse(["serve", "--models", "any", "--models", "a,owner/b"])
    assert (serve.model, serve.models) == ("", ["any", "a", "owner/b"])
