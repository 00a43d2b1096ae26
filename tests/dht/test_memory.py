"""The directory without a network behaves like the real one."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from swarm_node.dht.directory import TTL_S, Directory
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.swarm.errors import NetworkError
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span
from tests.doubles.clock import Clock

MODEL = ModelRef("m", "ab" * 32, 30)
OTHER = ModelRef("m", "cd" * 32, 30)


def node(peer_id: str, start: int = 0, model: ModelRef = MODEL) -> NodeInfo:
    return NodeInfo(peer_id, (), model, Span(start, start + 10), NodeState.ONLINE)


async def test_announce_read_withdraw() -> None:
    store = MemoryStore()
    first, second, reader = MemoryDirectory(store), MemoryDirectory(store), MemoryDirectory(store)
    await first.announce(node("b", 10))
    await second.announce(node("a", 0))
    assert [info.peer_id for info in await reader.nodes(MODEL)] == ["a", "b"]
    await first.announce(dataclasses.replace(node("b", 10), state=NodeState.DRAINING))
    assert [info.state for info in await reader.nodes(MODEL)] == [NodeState.ONLINE, NodeState.DRAINING]
    await first.withdraw()
    await first.withdraw()
    assert [info.peer_id for info in await reader.nodes(MODEL)] == ["a"]


async def test_records_expire() -> None:
    clock = Clock(100.0)
    directory = MemoryDirectory(MemoryStore(clock))
    await directory.announce(node("a"))
    clock.now += TTL_S - 1
    assert len(await directory.nodes(MODEL)) == 1
    await directory.announce(node("a"))
    clock.now += TTL_S - 1
    assert len(await directory.nodes(MODEL)) == 1
    clock.now += 1
    assert await directory.nodes(MODEL) == []
    assert await directory.models() == []


async def test_models_of_one_name_are_told_apart() -> None:
    store = MemoryStore()
    await MemoryDirectory(store).announce(node("a"))
    await MemoryDirectory(store).announce(node("b", model=OTHER))
    reader: Directory = MemoryDirectory(store)
    assert [info.peer_id for info in await reader.nodes(OTHER)] == ["b"]
    assert await reader.models() == [MODEL, OTHER]
    assert len(await reader.all_nodes()) == 2
    assert len(await reader.nodes(dataclasses.replace(MODEL, name="local copy"))) == 1
    await reader.close()


async def test_unreachable_directory() -> None:
    store = MemoryStore()
    store.down = True
    with pytest.raises(NetworkError):
        await MemoryDirectory(store).models()


def test_importing_the_package_does_not_import_hivemind() -> None:
    script = "import sys, swarm_node.dht; sys.exit('hivemind' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
