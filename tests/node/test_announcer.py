from __future__ import annotations

import asyncio
import dataclasses

import pytest

from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node import announcer as announcer_module
from swarm_node.node.announcer import Announcer
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

INFO = NodeInfo(
    peer_id="node",
    maddrs=(),
    model=ModelRef("tiny", "ab" * 32, 4),
    span=Span(0, 4),
    state=NodeState.ONLINE,
)


class CountingDirectory(MemoryDirectory):
    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.announced: list[NodeInfo] = []

    async def announce(self, info: NodeInfo) -> None:
        self.announced.append(info)
        await super().announce(info)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.announced) < count:  # noqa: ASYNC110 - polls what has no event
                await asyncio.sleep(0.001)


@pytest.fixture
def directory():
    return CountingDirectory(MemoryStore())


async def running(announcer: Announcer):
    return asyncio.create_task(announcer.run())


async def test_announces_at_once_and_again_before_it_expires(directory):
    task = await running(Announcer(directory, lambda: INFO, refresh_s=0.002))
    await directory.until(4)
    task.cancel()
    assert await directory.all_nodes() == [INFO]


async def test_a_change_is_announced_without_waiting(directory):
    current = [INFO]
    announcer = Announcer(directory, lambda: current[0], refresh_s=1000)
    task = await running(announcer)
    await directory.until(1)
    current[0] = dataclasses.replace(INFO, state=NodeState.DRAINING)
    announcer.poke()
    await directory.until(2)
    assert (await directory.all_nodes())[0].state is NodeState.DRAINING
    task.cancel()


async def test_an_unreachable_directory_is_tried_again_soon(directory, monkeypatch):
    monkeypatch.setattr(announcer_module, "RETRY_S", 0.001)
    directory.store.down = True
    announcer = Announcer(directory, lambda: INFO, refresh_s=1000)
    assert not await announcer.announce()
    task = await running(announcer)
    await directory.until(3)
    directory.store.down = False
    await directory.until(len(directory.announced) + 1)
    assert await directory.all_nodes() == [INFO]
    await announcer.withdraw()
    assert await directory.all_nodes() == []
    directory.store.down = True
    await announcer.withdraw()  # told to the log only: the record expires by itself
    task.cancel()


async def test_a_directory_that_hangs_counts_as_failed(monkeypatch):
    class Hanging(MemoryDirectory):
        async def announce(self, info: NodeInfo) -> None:
            await asyncio.Event().wait()

        async def withdraw(self) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(announcer_module, "ANNOUNCE_TIMEOUT_S", 0.01)
    announcer = Announcer(Hanging(), lambda: INFO)
    assert not await announcer.announce()
    await announcer.withdraw()
