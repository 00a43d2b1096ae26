"""What a node does when another machine runs with its identity."""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from swarm_node.dht.memory import MemoryDirectory
from swarm_node.dht.namesakes import Namesake
from swarm_node.node.presence import copied_identity
from swarm_node.node.presence.copied_identity import CopyWatch
from swarm_node.swarm.errors import CopiedIdentityError, NetworkError
from swarm_node.swarm.types import Incarnation

OWN = Incarnation(1000.0, "aa" * 8)
EARLIER, LATER = replace(OWN, since=999.0), replace(OWN, since=1001.0)


class Mirror(MemoryDirectory):
    """Shows what a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.own: Incarnation | None = OWN
        self.others: list[Incarnation | None] = []
        self.others_later: list[Incarnation | None] = []
        self.looks = 0

    @property
    def incarnation(self) -> Incarnation | None:
        return self.own

    @property
    def namesakes(self) -> list[Namesake]:
        return [Namesake(("/ip4/9.9.9.1/tcp/1",), each) for each in self.others]

    async def look_for_namesakes(self) -> None:
        self.looks += 1
        if self.looks == 3:
            self.others = self.others_later
        raise NetworkError("nobody answers")


class Node:
    def __init__(self, identity: Path | None) -> None:
        self.directory = Mirror()
        self.events: list[dict[str, object]] = []
        self.announced = 0
        self.watch = CopyWatch(self.directory, identity, self.emit, self.announce)

    def emit(self, event: str, **details: object) -> None:
        self.events.append({"event": event, **details})

    def announce(self) -> None:
        self.announced += 1


@pytest.fixture
def node() -> Node:
    return Node(Path("/my home/serve-1.key"))


def test_the_first_one_says_it_once_and_goes_on(node: Node) -> None:
    node.directory.others = [LATER]
    for _ in range(3):
        node.watch.judge()
    (event,) = node.events
    assert event["event"] == "copied"
    assert event["maddrs_of_copy"] == ("/ip4/9.9.9.1/tcp/1",)
    message = str(event["message"])
    assert "since 1970-01-01 00:16:41 UTC, at /ip4/9.9.9.1/tcp/1. That one began later and stops" in message
    assert f"mv {shlex.quote('/my home/serve-1.key')} {shlex.quote('/my home/serve-1.key')}.copied" in message
    assert node.announced == 3, "the directory told of the other last"
    assert node.watch.error is None
    node.directory.others = [replace(LATER, nonce="bb" * 8)]
    node.watch.judge()
    assert len(node.events) == 2


async def test_the_later_one_has_to_stop(node: Node) -> None:
    node.directory.others = [LATER, EARLIER]
    node.watch.judge()
    node.watch.judge()
    with pytest.raises(CopiedIdentityError) as caught:
        await node.watch.must_stop()
    assert caught.value.exit_code == 8
    assert (
        "since 1970-01-01 00:16:39 UTC, at /ip4/9.9.9.1/tcp/1; this one began later" in caught.value.message
    )
    assert "mv '/my home/serve-1.key' '/my home/serve-1.key'.copied and start again" in caught.value.hint


def test_before_it_is_announced_it_judges_nobody(node: Node) -> None:
    node.directory.own, node.directory.others = None, [EARLIER]
    node.watch.judge()
    assert (node.events, node.watch.error) == ([], None)


def test_one_that_only_answers_is_told_of_and_stops_nobody(node: Node) -> None:
    node.directory.others = [None]
    for _ in range(2):
        node.watch.judge()
    (event,) = node.events
    assert "with this node's identity, at /ip4/9.9.9.1/tcp/1. The one that began later stops" in str(
        event["message"]
    )
    assert node.watch.error is None


def test_an_identity_without_a_file_has_another_cure() -> None:
    node = Node(None)
    node.directory.others = [LATER]
    node.watch.judge()
    assert "--identity FILE" in str(node.events[0]["message"])


async def test_it_goes_on_looking_whatever_the_directory_says(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copied_identity, "TICK_S", 0.0)
    monkeypatch.setattr(copied_identity, "FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(copied_identity, "LOOK_S", 0.0)
    running = asyncio.create_task(node.watch.run())
    node.directory.others_later = [EARLIER]
    with pytest.raises(CopiedIdentityError):
        async with asyncio.timeout(5):
            await node.watch.must_stop()
    running.cancel()
