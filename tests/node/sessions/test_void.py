"""Void steps on chains of nodes: they are dropped where they wait and as they come, the rows that follow are
those of a session that never had them, and nobody is blamed."""

from __future__ import annotations

import numpy as np
import pytest

from swarm_node.node.limits.quotas import WorkRate
from swarm_node.swarm.protocol.messages import ErrorMessage, Opened, Step, Void, Want
from swarm_node.swarm.types import Span
from tests.node.chain_swarm import ChainSwarm, Hop, rows, stalled, swarm_of, until

PLACES = [("a", Span(0, 1)), ("b", Span(1, 3)), ("c", Span(3, 4))]
SPANS = {"a": Span(0, 2), "b": Span(1, 3), "c": Span(1, 4), "d": Span(0, 4)}


@pytest.fixture
def swarm(tiny_span):
    return lambda **options: swarm_of(lambda span: tiny_span(span, kernels="native"), SPANS, **options)


async def alone(swarm: ChainSwarm, x: np.ndarray) -> bytes:
    """The rows of ``x`` (tokens, hidden) from a session that is fed nothing else."""
    hop = await swarm.hop("d", "someone")
    await swarm.open(hop, Span(0, 4))
    await hop.step(1, 0, rows(x), len(x))
    payload = bytes((await hop.result(1)).payload)
    await hop.close()
    return payload


async def void(hops: list[Hop], first: int, last: int) -> None:
    for hop in hops:
        await hop.control.send(Void(hop.session, first, last))


def session_at(swarm: ChainSwarm, hop: Hop):
    return swarm.servers[hop.node].sessions[hop.session]


def computed(swarm: ChainSwarm, node: str) -> int:
    return swarm.servers[node].engine.load().tokens


async def close_all(swarm: ChainSwarm, hops: list[Hop]) -> None:
    for hop in hops:
        await hop.close()
    await until(lambda: not swarm.left_behind)


def heard(hops: list[Hop]) -> list[object]:
    """What nobody has taken yet."""
    return [message for hop in hops for message in hop.control.messages]


async def test_what_waits_is_dropped_and_the_rest_is_as_if_it_had_not_been(swarm, hidden_states):
    x, other = hidden_states(32), hidden_states(4, seed=9)
    async with swarm() as it:
        wanted = await alone(it, np.concatenate([x[:12], other]))
        chain = await it.chain(PLACES)
        await chain[0].step(1, 0, rows(x[:8]), 8)
        await chain[2].result(1)
        async with stalled(it.servers["c"].engine):
            for number in (2, 3, 4):
                start = 8 * number - 8
                await chain[0].step(number, start, rows(x[start : start + 8]), 8)
            await until(lambda: session_at(it, chain[2]).inflight == 3)
            await void(chain, 3, 4)
            await until(lambda: session_at(it, chain[2]).hop.is_void(4))
        assert (await chain[2].result(2)).tokens == 8
        await chain[0].step(5, 12, rows(other), 4, void=3)
        assert bytes((await chain[2].result(5)).payload) == wanted[-4 * 256 :]
        assert heard(chain) == []
        await close_all(it, chain)


async def test_of_steps_that_all_are_void_none_is_computed(swarm, hidden_states):
    x = hidden_states(32)
    async with swarm() as it:
        wanted = await alone(it, x[:5])
        chain = await it.chain(PLACES)
        await chain[0].step(1, 0, rows(x[:8]), 8)
        await chain[2].result(1)
        async with stalled(it.servers["c"].engine):
            for number in (2, 3, 4):
                await chain[0].step(number, 8 * number - 8, rows(x[:8]), 8)
            await until(lambda: session_at(it, chain[2]).inflight == 3)
            await void(chain[2:], 2, 4)
            await until(lambda: session_at(it, chain[2]).hop.is_void(4))
        await until(lambda: session_at(it, chain[2]).inflight == 0)
        assert computed(it, "c") == 8
        account = session_at(it, chain[2]).account
        assert (account.queued_tokens, account.queued_bytes) == (0, 0)
        await chain[0].step(5, 4, rows(x[4:5]), 1, void=2)
        assert bytes((await chain[2].result(5)).payload) == wanted[-256:]
        assert computed(it, "c") == 9
        assert heard(chain) == []
        await close_all(it, chain)


async def test_a_step_that_comes_when_it_is_void_is_nobodys_fault(swarm, hidden_states):
    x = hidden_states(32)
    async with swarm() as it:
        wanted = await alone(it, x[:9])
        chain = await it.chain(PLACES)
        await chain[0].step(1, 0, rows(x[:8]), 8)
        await chain[2].result(1)
        async with stalled(it.servers["a"].engine):
            await chain[0].step(2, 8, rows(x[:8]), 8)
            await chain[0].step(3, 16, rows(x[:8]), 8)
            await void(chain[1:], 2, 3)
            await until(lambda: all(session_at(it, hop).hop.is_void(3) for hop in chain[1:]))
        await until(lambda: not session_at(it, chain[0]).inflight)
        await chain[0].step(4, 8, rows(x[8:9]), 1)
        assert bytes((await chain[2].result(4)).payload) == wanted[-256:]
        assert [computed(it, node) for node in "abc"] == [25, 9, 9]
        assert heard(chain) == []
        await close_all(it, chain)


async def test_only_the_owner_may_send_void(swarm, hidden_states):
    x = hidden_states(16)
    async with swarm() as it:
        chain = await it.chain(PLACES)
        other = await it.connect("c", "stranger")
        await other.send(Void(chain[2].session, 1, 99))
        await other.send(Void(b"nobody's session", 1, 99))
        await chain[0].step(1, 0, rows(x[:8]), 8)
        assert (await chain[2].result(1)).tokens == 8
        assert other.messages == []
        await close_all(it, chain)


async def test_one_void_for_each_step_is_part_of_its_price(swarm, hidden_states, monkeypatch):
    """Many sessions that guess over one stream make more of them than a peer may ask of anything else."""
    spent: list[float] = []
    monkeypatch.setattr(WorkRate, "spend", lambda _, units, now: spent.append(units) or 0.0)
    x = hidden_states(8)
    async with swarm() as it:
        hop = await it.hop("d")
        await it.open(hop, Span(0, 4))
        spent.clear()
        for number in range(1, 5):
            await hop.step(number, 0, rows(x), 8)
            await hop.result(number)
            await void([hop], number, number)
            await until(lambda number=number: session_at(it, hop).hop.is_void(number))
        assert spent == []
        await void([hop], 1, 2**53 - 1)
        await void([hop], 1, 1)
        await hop.control.send(Void(b"nobody's session", 1, 99))
        await until(lambda: len(spent) == 3)
        assert set(spent) == {1.0}
        await close_all(it, [hop])


async def test_what_is_void_is_forgotten_with_the_hop_that_said_so(swarm, hidden_states):
    """It may have lied: then nothing would come through that the next one sends."""
    x = hidden_states(16)
    async with swarm() as it:
        wanted = await alone(it, x[:9])
        chain = await it.chain(PLACES)
        await chain[0].step(1, 0, rows(x[:8]), 8)
        await chain[2].result(1)
        liar = await it.connect("c", "b")
        await liar.send(Step(chain[2].session, 9, 200, 1, Want.ALL, void=2, payload=rows(x[:1])))
        await until(lambda: session_at(it, chain[2]).hop.is_void(8))
        await chain[2].attach("b")
        await chain[0].step(2, 8, rows(x[8:9]), 1)
        assert bytes((await chain[2].result(2)).payload) == wanted[-256:]
        await close_all(it, chain)


async def test_close_may_overtake_steps_of_the_hop_before(swarm, hidden_states):
    x = hidden_states(32)
    async with swarm() as it:
        chain = await it.chain(PLACES)
        await chain[0].step(1, 0, rows(x[:8]), 8)
        await chain[2].result(1)
        async with stalled(it.servers["a"].engine):
            await chain[0].step(2, 8, rows(x[:8]), 8)
            await chain[0].step(3, 16, rows(x[:8]), 8)
            for hop in chain[1:]:
                await hop.close()
            await until(lambda: not it.servers["b"].sessions and not it.servers["c"].sessions)
        await until(lambda: not session_at(it, chain[0]).inflight)
        # Another session over the same link tells that b has taken what came before.
        beside = await it.chain(PLACES)
        await beside[0].step(1, 0, rows(x[:8]), 8)
        await beside[2].result(1)
        assert heard(chain) == []
        assert not it.servers["b"].sessions.work._refused
        await close_all(it, [chain[0], *beside])


async def test_who_feeds_a_session_that_its_client_did_not_close_is_told(swarm, hidden_states):
    x = hidden_states(16)
    async with swarm() as it:
        chain = await it.chain(PLACES)
        await chain[0].step(1, 0, rows(x[:8]), 8)
        await chain[2].result(1)
        chain[1].control.close()
        await until(lambda: not it.servers["b"].sessions)
        await chain[0].step(2, 8, rows(x[:8]), 8)
        told = await chain[0].control.take(ErrorMessage)
        assert "next hop" in told.message
        for hop in (chain[0], chain[2]):
            await hop.close()
        await until(lambda: not it.left_behind)


async def test_a_replay_after_void_steps_brings_what_was_judged(swarm, hidden_states):
    """Though void ones were computed, and are in the journal until others take their place."""
    x, other = hidden_states(32), hidden_states(4, seed=9)
    async with swarm() as it:
        wanted = await alone(it, np.concatenate([x[:12], other]))
        chain = await it.chain([("a", Span(0, 1)), ("b", Span(1, 3)), ("c", Span(3, 4))])
        for number in (1, 2, 3):
            start = 8 * number - 8
            await chain[0].step(number, start, rows(x[start : start + 8]), 8)
            await chain[2].result(number)
        await void(chain, 3, 3)
        new = await it.hop("d")
        opened = await it.open(
            new, Span(1, 3), upstream="a", downstream=chain[2].downstream, journal=True, hop=1, hops=3
        )
        assert isinstance(opened, Opened)
        await chain[2].attach("d")
        replayed = await chain[0].replay(0, 12, 4, new)
        assert replayed.tokens == 12
        await chain[1].close()
        await chain[0].step(99, 12, rows(other), 4, void=3)
        got = await chain[2].result(99)
        assert bytes(got.payload) == wanted[-4 * 256 :]
        assert not [each for each in heard([*chain, new]) if isinstance(each, ErrorMessage)]
        await close_all(it, [chain[0], new, chain[2]])
