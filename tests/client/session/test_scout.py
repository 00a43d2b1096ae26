"""Hundreds of records of nobody, and an honest route among them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from time import perf_counter

import pytest

from swarm_node.client.routing.reserves import Wanted
from swarm_node.client.routing.route_finder import Need
from swarm_node.client.session.scout import AT_ONCE, MOST_AT_ONCE, Scout
from swarm_node.client.session.trial import TRIAL_S
from swarm_node.swarm.errors import PeerUnreachableError, SwarmError
from swarm_node.swarm.links.link import Patience
from swarm_node.swarm.links.pool import LinkPool
from swarm_node.swarm.protocol.messages import Step
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import NodeInfo, NodeState, Span
from tests.doubles.fake_swarm import BOS, BOUNDARIES, MODEL, FakeSwarm, ToyHead
from tests.doubles.virtual_time import VirtualLoop, in_virtual_time, now, run

FAKES = 400
SOON_S = 3.0


def fake(number: int, maddr: str = "/ip4/127.0.0.1/tcp/1") -> NodeInfo:
    """A record that claims all blocks at a fantastic speed, of a peer that is not there."""
    return NodeInfo(
        peer_id=f"fake{number}",
        maddrs=(maddr,),
        model=MODEL,
        span=Span(0, MODEL.n_blocks),
        state=NodeState.ONLINE,
        decode_ms_per_block=1e-6,
        prefill_tokens_per_s=1e9,
        free_kv_tokens=10**9,
        total_kv_tokens=10**9,
    )


async def _crowd(fakes: int = FAKES, latency: float = 0.0, **spans: str) -> FakeSwarm:
    """An honest swarm behind closed ports of one address."""
    swarm = await FakeSwarm(latency, **spans).start()
    for number in range(fakes):
        swarm.store.put(fake(number))
    return swarm


@pytest.fixture
def dials(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """[under way, most at once]"""
    counts = [0, 0]
    reach = MemoryNetwork._reach

    async def counted(self: MemoryNetwork, a: str, b: str) -> None:
        counts[0] += 1
        counts[1] = max(counts)
        try:
            await reach(self, a, b)
        finally:
            counts[0] -= 1

    monkeypatch.setattr(MemoryNetwork, "_reach", counted)
    return counts


@in_virtual_time
async def test_hundreds_of_records_of_nobody_end_no_request(dials: list[int]) -> None:
    swarm = await _crowd(latency=0.001, a="0-2", b="3-5")
    began = now()
    async with swarm.client() as model:
        answer = await model.generate_detailed([BOS, 3], max_new_tokens=2)
        assert [hop.peer_id for hop in answer.route.hops] == ["a", "b"]
        assert now() - began < SOON_S
        assert dials[1] <= MOST_AT_ONCE + 1
        told = answer.as_dict()["passed_over"]
        assert 1 <= told["count"] == len(answer.passed_over) <= FAKES  # type: ignore[index]
        assert "fake" in told["first"][0]["peer_id"]  # type: ignore[index]
        # who has worked is asked first from now on
        again = await model.generate_detailed([BOS, 3], max_new_tokens=2)
        assert [hop.peer_id for hop in again.route.hops] == ["a", "b"]
        assert not again.passed_over


async def test_records_that_name_an_honest_node_s_host_do_not_hide_it() -> None:
    swarm = await FakeSwarm(0.001, a="0-2", b="3-5").start()
    for peer in "ab":
        swarm.announce(peer, maddrs=("/ip4/9.9.9.9/tcp/4000",))
    for number in range(300):
        swarm.store.put(fake(number, f"/ip4/9.9.9.9/tcp/{5000 + number}"))
    async with swarm.client() as model:
        answer = await model.generate_detailed([BOS, 3], max_new_tokens=2)
    assert [hop.peer_id for hop in answer.route.hops] == ["a", "b"]


@in_virtual_time
async def test_silent_addresses_hold_up_nobody(dials: list[int]) -> None:
    swarm = await _crowd(60, a="0-2", b="3-5")
    for number in range(60):
        swarm.network.partition("client", f"fake{number}")
    for peer in "ab":  # each on an address of its own
        swarm.announce(peer, maddrs=(f"/ip4/10.0.0.{ord(peer)}/tcp/1",))
    began = now()
    async with swarm.client() as model:
        answer = await model.generate_detailed([BOS, 3], max_new_tokens=2)
    assert [hop.peer_id for hop in answer.route.hops] == ["a", "b"]
    assert now() - began < SOON_S
    assert dials[1] <= 2 * AT_ONCE


async def test_a_hop_lost_in_mid_answer_is_found_among_hundreds_of_nobody() -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5", c="3-5").start()
    swarm.store.remove("c")
    async with swarm.client() as model:
        stream = model.stream([BOS, 3], max_new_tokens=12, ignore_eos=True)
        events = stream.events()
        await anext(events)
        swarm.announce("c", decode_ms_per_block=50.0)
        for number in range(FAKES):
            swarm.store.put(replace(fake(number), span=Span(3, 6)))
        swarm.nodes["b"].die()
        swarm.network.kill("b")
        swarm.store.remove("b")
        await model._router._announcements.refresh()
        answer = await stream.finish()
    assert [hop.peer_id for hop in answer.route.hops] == ["a", "c"]


async def test_where_really_nobody_answers_the_error_says_so() -> None:
    swarm = await _crowd(50)
    router = swarm.router(clock=lambda: 20 * perf_counter(), sleep=lambda s: asyncio.sleep(s / 20))
    async with swarm.client(router=router) as model:
        with pytest.raises(SwarmError, match=r"(?s)Seen: .* and 46 more.*nobody listens"):
            await model.generate([BOS, 3], max_new_tokens=2)


def test_a_crowd_that_answers_and_does_not_work_is_seen_through_side_by_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One after the other they would take longer than anybody waits."""
    loop = VirtualLoop()

    async def work() -> None:
        began = loop.time()
        swarm = await FakeSwarm(**{f"x{number}": "0-5" for number in range(20)}, a="0-2", b="3-5").start()
        for name, node in swarm.nodes.items():
            if name[0] == "x":
                node.behaviour.swallows = frozenset({Step})
                swarm.announce(name, decode_ms_per_block=0.001)
        async with swarm.client(patience=Patience(), router=swarm.router(clock=loop.time)) as model:
            answer = await model.generate_detailed([BOS, 3], max_new_tokens=2)
        assert [hop.peer_id for hop in answer.route.hops] == ["a", "b"]
        assert loop.time() - began == pytest.approx(TRIAL_S, abs=0.1)

    run(monkeypatch, work(), loop)


async def test_a_search_that_somebody_gave_up_is_not_shared_while_it_ends() -> None:
    swarm = await _crowd(3, latency=0.001, a="0-5")
    router = swarm.router()
    links = LinkPool(swarm.network.transport("client"), MODEL)
    scout = Scout(links, router, ToyHead().embed, "none", BOUNDARIES)
    need = Need(10)
    await router.plan(need)
    first = asyncio.create_task(scout.meet(need, Wanted()))
    await asyncio.sleep(0)
    first.cancel()
    second = asyncio.create_task(scout.meet(need, Wanted()))
    await asyncio.wait((first, second))
    assert first.cancelled()
    assert not second.cancelled()
    assert not router.reserves.unmet(need, Wanted())
    await scout.close()
    await router.close()
    await links.close()


async def test_sessions_share_a_search(dials: list[int]) -> None:
    swarm = await _crowd(40, latency=0.001, a="0-5")
    router = swarm.router()
    links = LinkPool(swarm.network.transport("client"), MODEL)
    scout = Scout(links, router, ToyHead().embed, "none", BOUNDARIES)
    need = Need(10)
    await router.plan(need)
    found = await asyncio.gather(*(scout.meet(need, Wanted()) for _ in range(8)))
    assert not router.reserves.unmet(need, Wanted())
    assert all(failures == found[0] for failures in found)
    assert all(isinstance(failure.cause, PeerUnreachableError) for failure in found[0])
    assert len({failure.peer_id for failure in found[0]}) == len(found[0])
    await scout.close()
    await router.close()
    await links.close()
