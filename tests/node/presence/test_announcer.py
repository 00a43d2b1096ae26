from __future__ import annotations

import asyncio
import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node.presence import announcer as announcer_module
from swarm_node.node.presence.announcer import EARLY_S, MUCH_KV, Announcer, is_due, moved_much
from swarm_node.swarm.errors import LocalProtocolError, RemoteProtocolError
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, PeerLink, Span

INFO = NodeInfo(
    peer_id="node", maddrs=(), model=ModelRef("tiny", "ab" * 32, 4), span=Span(0, 4), state=NodeState.ONLINE
)


def states(free: int) -> NodeInfo:
    return dataclasses.replace(INFO, free_states=free, total_states=16)


def loaded(free: int, queue_ms: float = 0.0) -> NodeInfo:
    return dataclasses.replace(INFO, free_kv_tokens=free, total_kv_tokens=1000, queue_ms=queue_ms)


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
    announcer.announce_now()
    await directory.until(2)
    assert (await directory.all_nodes())[0].state is NodeState.DRAINING
    task.cancel()


async def test_a_load_that_moved_much_is_announced_early_but_not_often(directory, monkeypatch):
    monkeypatch.setattr(announcer_module, "LOOK_S", 0.001)
    now = [0.0]
    current = [loaded(1000)]
    task = await running(Announcer(directory, lambda: current[0], refresh_s=1000, clock=lambda: now[0]))
    await directory.until(1)
    current[0] = loaded(500)
    await asyncio.sleep(0.02)
    assert len(directory.announced) == 1
    now[0] = EARLY_S
    await directory.until(2)
    assert (await directory.all_nodes())[0].free_kv_tokens == 500
    current[0] = loaded(490)
    now[0] = 100.0
    await asyncio.sleep(0.02)
    assert len(directory.announced) == 2
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


# When to announce.


@pytest.mark.parametrize(
    ("told", "current", "much"),
    [
        (loaded(1000), loaded(1000), False),
        (loaded(1000), loaded(880), False),
        (loaded(1000), loaded(870), True),
        (loaded(0), loaded(125), True),
        (loaded(9, 0.0), loaded(9, 1.9), False),
        (loaded(9, 0.0), loaded(9, 2.0), True),
        (loaded(9, 10.0), loaded(9, 19.0), False),
        (loaded(9, 10.0), loaded(9, 20.0), True),
        (loaded(9, 10.0), loaded(9, 5.0), True),
        (states(4), states(4), False),
        (states(4), states(3), False),
        (states(4), states(2), True),
        (states(1), states(0), True),  # nobody finds room any more
        (states(0), states(1), True),
        (INFO, INFO, False),  # nothing measured, no cache
    ],
)
def test_what_counts_as_much(told, current, much):
    assert moved_much(told, current) is much


loads = st.builds(loaded, st.integers(0, 1000), st.floats(0, 1e6))


def test_first_links_are_announced_early() -> None:
    known = dataclasses.replace(INFO, links=(PeerLink("12D3KooWother", 0.01),))
    assert moved_much(INFO, known)
    assert not moved_much(known, dataclasses.replace(known, links=(PeerLink("12D3KooWother", 0.02),)))
    assert not moved_much(known, INFO)


@given(told=loads, current=loads, age=st.floats(0, 100), refresh=st.floats(0.1, 60))
def test_due_in_time_and_never_within_the_limit_for_load_alone(told, current, age, refresh):
    due = is_due(told, age, current, refresh)
    if age >= refresh:
        assert due
    elif age < EARLY_S:
        assert not due
    else:
        assert due is moved_much(told, current)


@given(st.lists(st.tuples(st.floats(0.05, 3.0), loads), min_size=1, max_size=60))
def test_a_wild_load_is_announced_at_a_bounded_rate_and_a_calm_one_is_known(changes):
    """The announcer's loop over any course of loads, on a clock of its own."""
    refresh_s, now, told_at, told, times = 20.0, 0.0, 0.0, loaded(1000), [0.0]
    for wait, current in changes:
        now += wait
        if is_due(told, now - told_at, current, refresh_s):
            told, told_at = current, now
            times.append(now)
        if now - told_at >= EARLY_S:  # what others believe is about right
            assert abs(told.free_kv_tokens - current.free_kv_tokens) < MUCH_KV * 1000
            assert abs(told.queue_ms - current.queue_ms) < max(2.0, told.queue_ms, current.queue_ms / 2)
    assert len(times) <= 1 + now / EARLY_S
    assert all(later - earlier >= EARLY_S for earlier, later in itertools.pairwise(times))


async def test_nothing_that_goes_wrong_ends_the_announcing(directory, monkeypatch, caplog):
    monkeypatch.setattr(announcer_module, "RETRY_S", 0.001)
    failures = [ZeroDivisionError("a bug"), LocalProtocolError("out of bounds"), RemoteProtocolError("odd")]

    class Failing(CountingDirectory):
        async def announce(self, info: NodeInfo) -> None:
            if failures:
                raise failures.pop(0)
            await super().announce(info)

    failing = Failing(directory.store)
    task = await running(Announcer(failing, lambda: INFO, refresh_s=1000))
    await failing.until(1)
    task.cancel()
    assert await directory.all_nodes() == [INFO]
    assert "ZeroDivisionError: a bug" in caplog.text  # with its traceback
