"""Routes whose hops send results on to each other."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from swarm_node.node.limits.quotas import Limits
from swarm_node.swarm.codecs.kinds import NONE
from swarm_node.swarm.errors import ErrorCode
from swarm_node.swarm.protocol.field_types import Downstream
from swarm_node.swarm.protocol.messages import ErrorMessage, Opened, Ping, Pong, Refused, Result, Step, Want
from swarm_node.swarm.types import Span
from tests.node.chain_swarm import ChainSwarm, Hop, rows, stalled, swarm_of, until
from tests.swarm.codecs.codec_cases import codec_of

HIDDEN = 64
PLACES = [("a", Span(0, 1)), ("b", Span(1, 3)), ("c", Span(3, 4))]
SPANS = {"a": Span(0, 2), "b": Span(1, 3), "c": Span(2, 4), "d": Span(0, 4)}


@pytest.fixture
def swarm(tiny_span):
    """``async with swarm() as it``: four nodes."""
    return lambda **options: swarm_of(tiny_span, SPANS, **options)


async def push(
    hops: list[Hop], number: int, position: int, payload: bytes, tokens: int, want=Want.ALL
) -> Result:
    """A step through a chain."""
    await hops[0].step(number, position, payload, tokens, want=want)
    return await hops[-1].result(number)


async def relay(hops: list[Hop], number: int, position: int, payload: bytes, tokens: int) -> bytes:
    """A step through hops that answer the client, who passes payloads on as they are."""
    for hop in hops:
        await hop.step(number, position, payload, tokens)
        payload = bytes((await hop.result(number)).payload)
    return payload


async def relayed(swarm: ChainSwarm, places=PLACES, **more) -> list[Hop]:
    hops = []
    for index, (node, span) in enumerate(places):
        hop = await swarm.hop(node, "relaying")
        answer = await swarm.open(hop, span, hop=index, hops=len(places), **more)
        assert isinstance(answer, Opened)
        hops.append(hop)
    return hops


@pytest.mark.parametrize("codec", ["none", "int8", "f8", "int8s"])
async def test_chained_greedy_steps_equal_the_relayed_ones(swarm, hidden_states, codec):
    table, head = hidden_states(128, 9), hidden_states(128, 10)
    async with swarm() as it:
        chain = await it.chain(PLACES, codec=codec)
        assert [hop.opened.chained for hop in chain] == [True, True, False]
        reference = await relayed(it, codec=codec)
        ids = [[5, 17, 99, 3], [5, 17, 99, 3]]
        for number in range(1, 30):
            for route, known in zip((chain, reference), ids, strict=True):
                fed = known if number == 1 else known[-1:]
                position = len(known) - len(fed)
                payload = rows(table[fed], codec)
                if route is chain:
                    result = await push(route, number, position, payload, len(fed), Want.LAST)
                    last, count = result.payload, 1
                    assert (result.tokens, result.position) == (1, len(known) - 1)
                    assert len(result.spent) == 2
                    assert all(len(spent) == 4 and spent[1] > 0 for spent in result.spent)
                else:
                    last, count = await relay(route, number, position, payload, len(fed)), len(fed)
                hidden = codec_of(codec, HIDDEN).decode(last, count, HIDDEN)[-1]
                known.append(int((head @ hidden).argmax()))
        assert ids[0] == ids[1]
        assert len(set(ids[0])) > 5
        sizes = [len(it.servers[node].sessions) for node in "abc"]
        assert sizes == [2, 2, 2]
        for hop in chain[:2]:
            assert hop.control.messages == []  # hops in the middle tell the client nothing


async def test_chained_payloads_equal_the_relayed_ones_bit_for_bit(swarm, hidden_states):
    async with swarm() as it:
        chain, reference = await it.chain(PLACES), await relayed(it)
        x = hidden_states(60)
        for number, (start, stop) in enumerate([(0, 40), *((i, i + 1) for i in range(40, 60))], 1):
            payload = rows(x[start:stop])
            result = await push(chain, number, start, payload, stop - start)
            assert bytes(result.payload) == await relay(reference, number, start, payload, stop - start)


async def test_chunks_of_a_prompt_are_under_way_on_all_hops(swarm, hidden_states, plain, tiny_span):
    async with swarm() as it:
        chain = await it.chain(PLACES)
        x = hidden_states(96)
        for number in range(6):
            await chain[0].step(number, 16 * number, rows(x[16 * number : 16 * number + 16]), 16)
        got = [await chain[2].result(number) for number in range(6)]
        assert [result.position for result in got] == list(range(0, 96, 16))
        y = NONE.decode(b"".join(bytes(result.payload) for result in got), 96, HIDDEN)
        np.testing.assert_allclose(y, plain(tiny_span(), x), atol=1e-4, rtol=1e-4)


async def test_a_hop_that_cannot_be_dialled_is_relayed(swarm, hidden_states):
    async with swarm() as it:
        first, last = await it.hop("a"), await it.hop("c")
        opened = await it.open(first, Span(0, 2), downstream=Downstream("nobody", b"n" * 16), journal=True)
        assert isinstance(opened, Opened)
        assert not opened.chained
        assert opened.reason == "the next hop cannot be reached from here"
        await it.open(last, Span(2, 4))
        reference = await relayed(it, [("a", Span(0, 2)), ("c", Span(2, 4))])
        payload = rows(hidden_states(20))
        got = await relay([first, last], 1, 0, payload, 20)
        assert got == await relay(reference, 1, 0, payload, 20)


async def test_a_frozen_next_hop_is_waited_for_no_longer_than_said(swarm):
    async with swarm(limits=Limits(link_seconds=0.2)) as it:
        it.network.partition("a", "b")
        first, second = await it.hop("a"), await it.hop("b")
        opened = await it.open(first, Span(0, 1), downstream=second.downstream)
        assert isinstance(opened, Opened)
        assert not opened.chained
        assert opened.reason == "the next hop cannot be reached from here"  # as of any other failure


async def test_a_node_that_does_not_dial_says_so(swarm):
    async with swarm(dials=False) as it:
        first, second = await it.hop("a"), await it.hop("b")
        opened = await it.open(first, Span(0, 1), downstream=second.downstream)
        assert isinstance(opened, Opened)
        assert (opened.chained, opened.reason) == (False, "this node does not dial other nodes")


async def test_steps_before_opened_are_sent_on_once_the_link_stands(swarm, hidden_states):
    async with swarm() as it:
        it.network.latency = 0.01
        hops = [await it.hop("a"), await it.hop("b")]
        await it.open(hops[1], Span(1, 3), upstream="a")
        payload = rows(hidden_states(9))
        opening = asyncio.ensure_future(it.open(hops[0], Span(0, 1), downstream=hops[1].downstream))
        await until(lambda: hops[0].session in it.servers["a"].sessions)
        await hops[0].step(1, 0, payload, 9)
        assert (await hops[1].result(1)).tokens == 9
        assert (await opening).chained


async def test_close_comes_before_opened(swarm):
    async with swarm(limits=Limits(link_seconds=5.0)) as it:
        it.network.partition("a", "b")
        first, second = await it.hop("a"), await it.hop("b")
        opening = asyncio.ensure_future(it.open(first, Span(0, 1), downstream=second.downstream))
        await until(lambda: bool(it.servers["a"].sessions))
        await first.close()
        await until(lambda: not it.left_behind)
        opening.cancel()
        again = await it.open(first, Span(0, 1))
        assert isinstance(again, Opened)
        assert first.control.messages == []
        it.network.heal()


async def test_busy_and_refused_are_answered_at_once(swarm):
    async with swarm() as it:
        it.network.partition("a", "b")
        first, second = await it.hop("a"), await it.hop("b")
        refused = await it.open(first, Span(3, 4), downstream=second.downstream)
        assert isinstance(refused, Refused)
        assert refused.code is ErrorCode.SPAN_NOT_SERVED
        assert not it.left_behind


# Who may feed a session.


async def test_a_fed_session_takes_no_steps_from_others(swarm, hidden_states):
    async with swarm() as it:
        chain = await it.chain(PLACES)
        payload = rows(hidden_states(4))
        await chain[1].step(1, 0, payload, 4)
        refused = await chain[1].error(1)
        assert refused.code is ErrorCode.UNKNOWN_SESSION
        assert "peer …a" in refused.message
        for peer in ("client", "d", "a1"):
            foreign = await it.connect("b", peer)
            await foreign.send(Step(chain[1].session, 1, 0, 4, Want.ALL, payload=payload))
            told = await foreign.take(ErrorMessage, chain[1].session, 1)
            assert told.code is ErrorCode.UNKNOWN_SESSION
        assert chain[1].control.messages == []
        assert (await push(chain, 1, 0, payload, 4)).tokens == 4


async def test_attach_moves_a_session_to_another_feeder(swarm, hidden_states):
    async with swarm() as it:
        chain = await it.chain(PLACES)
        x = hidden_states(10)
        await push(chain, 1, 0, rows(x[:6]), 6)
        assert (await chain[2].attach("")).length == 6
        await chain[2].step(2, 6, rows(x[6:8]), 2)
        assert (await chain[2].result(2)).tokens == 2
        await chain[0].step(3, 6, rows(x[6:7]), 1)  # b sends it to c, which is not b's to feed any more
        assert (await chain[1].error()).code is ErrorCode.DOWNSTREAM_LOST
        assert (await chain[2].attach("b")).length == 8
        await chain[1].replay(7, 7, 4, chain[2])
        await chain[0].step(5, 6, rows(x[6:7]), 1)
        assert (await chain[2].result(5)).position == 6


async def test_only_the_owner_may_attach_replay_and_close(swarm, hidden_states):
    async with swarm() as it:
        chain = await it.chain(PLACES)
        foreign = Hop("b", await it.connect("b", "d"), chain[1].session)
        await foreign.start_replay(0, 0, 5, None)
        assert (await foreign.error()).code is ErrorCode.UNKNOWN_SESSION
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await foreign.attach("d")
        assert (await foreign.error()).code is ErrorCode.UNKNOWN_SESSION
        await foreign.close()
        assert (await push(chain, 1, 0, rows(hidden_states(4)), 4)).tokens == 4


async def test_a_session_is_fed_by_one_session_of_a_node(swarm, hidden_states):
    """Who knows a session's id and shares its upstream cannot mix into it."""
    async with swarm() as it:
        chain = await it.chain(PLACES)
        other = await it.hop("a", "other")
        opened = await it.open(other, Span(0, 1), downstream=chain[1].downstream)
        assert isinstance(opened, Opened)
        assert not opened.chained
        assert "fed by another" in opened.reason
        assert (await push(chain, 1, 0, rows(hidden_states(4)), 4)).tokens == 4


async def test_a_circle_of_hops_comes_to_rest(swarm, hidden_states):
    async with swarm() as it:
        one, two = await it.hop("a"), await it.hop("b")
        await asyncio.gather(
            it.open(one, Span(1, 2), downstream=two.downstream),
            it.open(two, Span(1, 2), downstream=one.downstream, upstream="a"),
        )
        await one.step(1, 0, rows(hidden_states(2)), 2)
        await until(lambda: it.servers["b"].engine.load().tokens == 2)
        # b's step comes back to a, whose session takes none from b.
        assert (await two.error()).code is ErrorCode.DOWNSTREAM_LOST
        await one.attach("b")
        await two.replay(2, 2, 2, one)
        for server in it.servers.values():
            await until(lambda server=server: not server.engine.queued)
        computed = [it.servers[node].engine.load().tokens for node in "ab"]
        assert computed == [2, 2]


# What goes wrong, and who is told.


async def test_a_bad_step_is_told_to_the_client_of_that_hop(swarm, hidden_states):
    async with swarm() as it:
        chain = await it.chain(PLACES)
        await chain[0].step(1, 0, b"short", 4)
        assert (await chain[0].error(1)).code is ErrorCode.BAD_TENSOR
        assert (await push(chain, 3, 0, rows(hidden_states(4)), 4)).tokens == 4
        assert [hop.control.messages for hop in chain] == [[], [], []]


async def test_what_a_feeder_sends_wrong_or_too_late_is_told_to_the_client(swarm, hidden_states):
    async with swarm() as it:
        hop = await it.hop("b")
        await it.open(hop, Span(1, 3), upstream="mean")
        feeder = await it.connect("b", "mean")
        payload = rows(hidden_states(4))
        async with stalled(it.servers["b"].engine):
            await feeder.send(Step(hop.session, 1, 0, 4, Want.ALL, deadline_ms=1, payload=payload))
            await until(lambda: it.servers["b"].engine.queued == 1)
            await asyncio.to_thread(time.sleep, 0.002)
        assert (await hop.error(1)).code is ErrorCode.DEADLINE
        await feeder.send(Step(hop.session, 2, 0, 4, Want.ALL, payload=payload[:-1]))
        assert (await hop.error(2)).code is ErrorCode.BAD_TENSOR
        await feeder.send(Step(hop.session, 3, 7, 4, Want.ALL, payload=payload))
        assert (await hop.error(3)).code is ErrorCode.BAD_STEP
        await feeder.send(Step(hop.session, 4, 0, 4, Want.ALL, payload=payload))
        assert (await hop.result(4)).tokens == 4
        assert feeder.messages == hop.control.messages == []


async def test_a_dead_next_hop_is_told_once_and_the_session_stays(swarm, hidden_states):
    async with swarm() as it:
        chain = await it.chain(PLACES)
        x = hidden_states(10)
        await push(chain, 1, 0, rows(x[:5]), 5)
        it.network.kill("b")
        assert (await chain[0].error()).code is ErrorCode.DOWNSTREAM_LOST
        for number in range(2, 6):
            await chain[0].step(number, 3 + number, rows(x[3 + number : 4 + number]), 1)
        await until(lambda: it.servers["a"].sessions[chain[0].session].journal.end == 9)
        await chain[0].control.send(Ping(1))
        await chain[0].control.take(Pong)
        assert chain[0].control.messages == []


async def test_a_next_hop_that_takes_smaller_steps_than_the_client_was_told_is_lost(swarm, hidden_states):
    async with swarm() as it:
        chain = await it.chain(PLACES)
        a = it.servers["a"]
        link = await a.next_hops.reach(chain[1].downstream, a.sessions[chain[0].session].account)
        link.max_step_tokens = 2
        await chain[0].step(1, 0, rows(hidden_states(4)), 4)
        told = await chain[0].control.take(ErrorMessage, chain[0].session)
        assert (told.code, told.step, told.retriable) == (ErrorCode.DOWNSTREAM_LOST, None, True)
        assert "takes 2 tokens in a step" in told.message


@pytest.mark.parametrize("garbage", [b"", b"GET / HTTP/1.1", b"SW\x07\x00\xff"])
async def test_a_feeder_that_ends_or_sends_garbage_is_told_and_replaced(swarm, hidden_states, garbage):
    async with swarm() as it:
        hop = await it.hop("b")
        await it.open(hop, Span(1, 3), upstream="mean")
        feeder = await it.connect("b", "mean")
        x = hidden_states(8)
        await feeder.send(Step(hop.session, 1, 0, 4, Want.ALL, payload=rows(x[:4])))
        assert (await hop.result(1)).tokens == 4
        if garbage:
            feeder.connection.stream.write([garbage])
        feeder.close()
        lost = await hop.error()
        assert (lost.code, lost.step, lost.retriable) == (ErrorCode.UPSTREAM_LOST, None, True)
        assert "mean" in lost.message
        assert (await hop.attach("")).length == 4
        await hop.step(2, 4, rows(x[4:]), 4)
        assert (await hop.result(2)).position == 4
        assert hop.control.messages == []


async def test_a_clients_end_frees_its_sessions_everywhere(swarm, hidden_states):
    async with swarm() as it:
        chain = await it.chain(PLACES)
        await push(chain, 1, 0, rows(hidden_states(40)), 40)
        assert it.left_behind
        it.network.kill("client")
        await until(lambda: not it.left_behind)


async def test_sessions_end_one_by_one_and_nothing_stays(swarm, hidden_states):
    async with swarm() as it:
        chain = await it.chain(PLACES)
        await push(chain, 1, 0, rows(hidden_states(40)), 40)
        for hop in chain:
            await hop.close()
        await until(lambda: not it.left_behind)
        assert all(hop.control.messages == [] for hop in chain)


# Limits.


async def test_a_client_may_cause_so_many_dials(swarm):
    limits = Limits(dials_per_peer=2, link_seconds=5.0)
    async with swarm(limits=limits) as it:
        hops = [await it.hop("a") for _ in range(3)]
        for name in ("x1", "x2"):
            it.network.partition("a", name)
        waiting = [
            asyncio.ensure_future(it.open(hop, Span(0, 1), downstream=Downstream(name, b"n" * 16)))
            for hop, name in zip(hops, ("x1", "x2"), strict=False)
        ]
        await until(lambda: len(it.servers["a"].sessions) == 2)
        other = await it.hop("b")
        third = await it.open(hops[2], Span(0, 1), downstream=other.downstream)
        assert isinstance(third, Opened)
        assert (third.chained, third.reason) == (False, "not dialled: 2 dials of yours are under way")
        stranger = await it.hop("a", "stranger")
        assert (await it.open(stranger, Span(0, 1), downstream=other.downstream)).chained
        it.network.heal()
        assert not any(answer.chained for answer in await asyncio.gather(*waiting))


async def test_dials_of_a_minute_are_counted_and_links_that_stand_cost_none(swarm):
    async with swarm(limits=Limits(dials_per_minute_per_peer=1)) as it:
        for wanted in (("b", True), ("b", True), ("c", False)):
            hop, other = await it.hop("a"), await it.hop(wanted[0])
            opened = await it.open(hop, Span(0, 1), downstream=other.downstream)
            assert (wanted[0], opened.chained) == wanted
        assert opened.reason == "not dialled: a peer may cause 1 dials a minute"


async def test_steps_beyond_the_owners_quota_cost_that_session_only(swarm, hidden_states):
    async with swarm(limits=Limits(queued_tokens_per_peer=8)) as it:
        hop, other = await it.hop("b"), await it.hop("b", "other")
        await it.open(hop, Span(1, 3), upstream="mean")
        await it.open(other, Span(1, 3), upstream="mean")
        feeder = await it.connect("b", "mean")
        x = hidden_states(60)
        async with stalled(it.servers["b"].engine):
            for number in range(12):
                first = 5 * number
                step = Step(hop.session, number, first, 5, Want.ALL, payload=rows(x[first : first + 5]))
                await feeder.send(step)
            await feeder.send(Step(other.session, 0, 0, 5, Want.ALL, payload=rows(x[:5])))
            refused = await hop.error(7)
        assert (refused.code, refused.retriable) == (ErrorCode.OVERLOADED, True)
        assert [(await hop.result(number)).tokens for number in range(7)] == [5] * 7  # 35 > 4 * 8
        assert (await other.result(0)).tokens == 5
        assert other.control.messages == []


async def test_a_hop_that_floods_a_session_leaves_its_clients_stream_read(swarm, hidden_states):
    async with swarm(limits=Limits(queued_tokens_per_peer=40)) as it:
        hop = await it.hop("b")
        await it.open(hop, Span(1, 3), 16, upstream="mean")
        feeder = await it.connect("b", "mean")
        payload = rows(hidden_states(16))
        async with stalled(it.servers["b"].engine):
            for number in range(3):  # over and over from the start, so that each fits
                await feeder.send(Step(hop.session, number, 0, 16, Want.ALL, payload=payload))
            assert (await hop.error(2)).code is ErrorCode.OVERLOADED
            await hop.control.send(Ping(7))
            assert (await hop.control.take(Pong)).nonce == 7
        assert [(await hop.result(number)).tokens for number in range(2)] == [16, 16]
        await feeder.send(Step(hop.session, 3, 0, 16, Want.ALL, payload=payload))
        assert (await hop.result(3)).tokens == 16


# Leaving.


async def test_a_node_that_leaves_while_a_farewell_is_unread_ends_quietly(swarm, monkeypatch):
    async with swarm() as it:
        control, server = await it.connect("a"), it.servers["a"]
        (served,) = server._connections
        unread = asyncio.Event()

        async def drain() -> None:
            unread.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(served._connection.stream, "drain", drain)
        control.connection.stream.write([b"no frame at all, but more than a header"])
        await unread.wait()
        serving = served._task
        server.close()
        await asyncio.wait([serving])
        assert not serving.cancelled()
        assert serving.exception() is None


async def test_a_draining_node_goes_on_being_fed(swarm, hidden_states):
    async with swarm() as it:
        chain = await it.chain(PLACES)
        x = hidden_states(12)
        await push(chain, 1, 0, rows(x[:4]), 4)
        server = it.servers["b"]
        server.sessions.begin_drain()
        late = await it.hop("b")
        refused = await it.open(late, Span(1, 3), upstream="a")
        assert isinstance(refused, Refused)
        assert refused.code is ErrorCode.DRAINING
        idle = asyncio.ensure_future(server.sessions.wait_idle())
        assert (await push(chain, 2, 4, rows(x[4:8]), 4)).position == 4
        assert not idle.done()
        await chain[1].close()
        await asyncio.wait_for(idle, 5)  # a's stream is open, but no session of a's


async def test_a_node_that_leaves_says_farewell_to_clients_and_neighbours(swarm, hidden_states):
    async with swarm() as it:
        chain = await it.chain(PLACES)
        await push(chain, 1, 0, rows(hidden_states(4)), 4)
        await it.servers["b"].aclose()
        farewell = await chain[1].control.take(ErrorMessage)
        assert (farewell.session, farewell.code) == (None, ErrorCode.DRAINING)
        lost = await chain[0].error()
        assert lost.code is ErrorCode.DOWNSTREAM_LOST
        assert "leaving" in lost.message
        assert (await chain[2].error()).code is ErrorCode.UPSTREAM_LOST
        left = it.left_behind
        assert not any(key.startswith("b ") for key in left), left
