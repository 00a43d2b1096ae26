"""Many clients on one node: who is let in, who waits for how long, and that nobody keeps the others out."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from swarm_node.node.limits.quotas import Limits
from swarm_node.swarm.errors import ErrorCode, StreamClosedError
from swarm_node.swarm.protocol.messages import (
    Busy,
    Close,
    ErrorMessage,
    Open,
    Opened,
    Ping,
    Pong,
    Refused,
    Result,
    Step,
    Want,
    encode,
)
from swarm_node.swarm.protocol.wire import encode_frame
from swarm_node.swarm.types import Span
from tests.doubles.fake_swarm import until

if TYPE_CHECKING:
    from tests.node.conftest import RawClient

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


# Room.


async def test_busy_until_somebody_leaves(serving):
    async with serving(kv_tokens=128) as node:
        client, other = await node.connect(), await node.connect("other")
        held = await other.open(max_tokens=60)
        answer = await client.try_open(65)
        assert isinstance(answer, Busy)
        assert 50 <= answer.retry_after_ms <= 30_000
        assert "65 tokens" in answer.reason
        assert "64 are free" in answer.reason
        await other.send(Close(held))
        await until(lambda: node.free_tokens == 128)
        await client.open(max_tokens=128)


async def test_a_full_node_never_runs_out_of_memory(serving, plain, hidden_states):
    """What was opened can be filled to the last token, however many were told to wait."""
    async with serving(kv_tokens=512) as node:
        clients = [await node.connect(f"peer{number}") for number in range(12)]
        answers = [await client.try_open(64) for client in clients]
        opened = [isinstance(answer, Opened) for answer in answers]
        assert opened == [True] * 8 + [False] * 4
        x = hidden_states(64)
        wanted = plain(node.engine.model, x)
        served = zip(clients[:8], answers, strict=False)
        rows = await asyncio.gather(*(client.forward(each.session, x, 0) for client, each in served))
        for got in rows:
            np.testing.assert_allclose(got, wanted, **TOLERANCE)
        assert node.free_tokens == 0


async def test_the_advice_is_how_long_sessions_last(serving):
    now = [0.0]
    async with serving(kv_tokens=128, clock=lambda: now[0]) as node:
        client, waiting = await node.connect(), await node.connect("waiting")
        for _ in range(30):
            session = await client.open(max_tokens=128)
            now[0] += 6.0
            await client.send(Close(session))
            await until(lambda: node.free_tokens == 128)
        await client.open(max_tokens=128)
        answer = await waiting.try_open(64)
        assert isinstance(answer, Busy)
        assert answer.retry_after_ms == pytest.approx(3000, rel=0.1)  # half of the cache in half of 6 s
        late = await node.connect("late")
        answer = await late.try_open(64)
        assert isinstance(answer, Busy)
        assert answer.retry_after_ms == pytest.approx(6000, rel=0.1)  # and who came first goes first


async def test_who_waits_gets_in_though_the_others_come_back_at_once(serving):
    now = [0.0]
    async with serving(kv_tokens=256, clock=lambda: now[0]) as node:
        greedy, waiting = await node.connect("greedy"), await node.connect("waiting")
        held = [await greedy.open(max_tokens=64) for _ in range(4)]  # alone: all of it
        assert isinstance(await waiting.try_open(64), Busy)
        await greedy.send(Close(held.pop()))
        answer = await greedy.try_open(64)
        assert isinstance(answer, Busy)
        for words in ("you hold 192 tokens", "ask for 64", "may hold 128", "close sessions"):
            assert words in answer.reason
        await waiting.open(max_tokens=64)
        assert isinstance(await greedy.try_open(64), Busy)  # full, no more
        await greedy.send(Close(held.pop()))
        await greedy.open(max_tokens=64)  # nobody else waits any more


async def test_sessions_at_rest_make_room_for_who_has_none(serving, hidden_states):
    now = [0.0]
    limits = Limits(rest_seconds=10)
    async with serving(kv_tokens=256, limits=limits, clock=lambda: now[0]) as node:
        greedy, newcomer = await node.connect("greedy"), await node.connect("newcomer")
        sessions = []
        for number in range(4):
            now[0] = number
            sessions.append(await greedy.open(max_tokens=64))
        assert isinstance(await newcomer.try_open(64), Busy)  # none has rested for long
        now[0] = 12.5
        await greedy.forward(sessions[0], hidden_states(5), 0)
        opened = await newcomer.try_open(64)
        assert isinstance(opened, Opened)
        told = await greedy.receive()
        assert isinstance(told, ErrorMessage)
        assert (told.session, told.step) == (sessions[1], None)  # the longest unused
        assert (told.code, told.retriable) == (ErrorCode.SESSION_EXPIRED, True)
        assert told.hint
        now[0] = 14.0
        await newcomer.open(max_tokens=64)
        assert (await greedy.receive()).session == sessions[2]
        now[0] = 50.0
        assert isinstance(await newcomer.try_open(64), Busy)  # each has its half now
        await greedy.forward(sessions[0], hidden_states(5), 5)
        await greedy.forward(sessions[3], hidden_states(5), 0)
        lost = await greedy.ask(greedy.step(sessions[1], hidden_states(1), 0))
        assert (lost.code, lost.retriable) == (ErrorCode.UNKNOWN_SESSION, True)


async def test_nobody_gets_more_than_its_part_from_others(serving):
    now = [0.0]
    async with serving(kv_tokens=256, clock=lambda: now[0]) as node:
        greedy, newcomer = await node.connect("greedy"), await node.connect("newcomer")
        await greedy.open(max_tokens=256)
        now[0] = 100.0
        assert isinstance(await newcomer.try_open(160), Busy)
        assert node.server.statistics().sessions == 1
        assert isinstance(await newcomer.try_open(128), Busy)  # nobody looks again at once
        now[0] = 100.1
        assert isinstance(await newcomer.try_open(128), Opened)
        assert node.server.statistics().sessions == 1
        assert (await greedy.receive()).code is ErrorCode.SESSION_EXPIRED
        await greedy.open(max_tokens=128)
        now[0] = 200.0
        assert isinstance(await newcomer.try_open(64), Busy)  # each has its part


async def test_a_session_at_work_is_never_taken(serving, hidden_states):
    now = [0.0]
    async with serving(kv_tokens=128, clock=lambda: now[0]) as node:
        worker, newcomer = await node.connect("worker"), await node.connect("newcomer")
        held = [await worker.open(max_tokens=64) for _ in range(2)]
        async with node.stalled():
            for session in held:
                await worker.send(worker.step(session, hidden_states(3), 0))
            await worker.ask(Ping(1))
            now[0] = 100.0
            assert isinstance(await newcomer.try_open(64), Busy)
        for _ in held:
            assert isinstance(await worker.receive(), Result)


async def test_a_token_now_and_then_keeps_no_room_from_others(serving, hidden_states):
    now = [0.0]
    limits = Limits(max_sessions=4)
    async with serving(kv_tokens=256, limits=limits, clock=lambda: now[0]) as node:
        hoarder, worker = await node.connect("hoarder"), await node.connect("worker")
        kept = [await hoarder.open(max_tokens=32) for _ in range(3)]
        used = await worker.open(max_tokens=32)
        for round_ in range(5):
            now[0] += 4.0
            await worker.forward(used, hidden_states(8), 8 * round_ % 24)
            for session in kept:
                await hoarder.forward(session, hidden_states(1), 0)
            node.server.sweep()
        newcomers = [await node.connect(f"newcomer{number}") for number in range(2)]
        for newcomer in newcomers:
            await newcomer.open(max_tokens=32)
        lost = {(await hoarder.receive()).session for _ in range(2)}
        assert lost < set(kept)
        await worker.forward(used, hidden_states(1), 1)
        now[0] += 60.0
        assert isinstance(await newcomers[0].try_open(32), Busy)  # each has one of four


async def test_one_peer_has_at_most_its_share(serving):
    async with serving(kv_tokens=256, limits=Limits(kv_share_per_peer=0.5)) as node:
        client, other = await node.connect("a"), await node.connect("b")
        await client.open(max_tokens=96)
        answer = await client.try_open(64)
        assert isinstance(answer, Busy)
        assert "may hold 128" in answer.reason
        answer = await client.try_open(160)
        assert isinstance(answer, Refused)
        assert answer.code is ErrorCode.CONTEXT_EXCEEDED
        assert "one peer may hold 128 tokens" in answer.message
        await other.open(max_tokens=128)


# Counts.


async def test_session_and_stream_quotas(serving):
    limits = Limits(max_sessions=3, max_sessions_per_peer=2, max_connections_per_peer=2)
    async with serving(limits=limits) as node:
        first, second = await node.connect("a"), await node.connect("a")
        await first.open()
        mine = await second.open()
        answer = await first.try_open(1)
        assert isinstance(answer, Busy)
        assert "2 sessions" in answer.reason
        other = await node.connect("b")
        await other.open()
        answer = await other.try_open(1)
        assert isinstance(answer, Busy)
        assert "all 3 sessions" in answer.reason
        third = await node.connect("a", greet=False)
        refusal = await third.receive()
        assert isinstance(refusal, ErrorMessage)
        assert (refusal.code, refusal.retriable) == (ErrorCode.TOO_MANY_SESSIONS, True)
        assert "one peer may hold 2" in refusal.message
        assert refusal.hint
        third.connection.close()
        await second.send(Close(mine))
        await other.open()
        statistics = node.server.statistics()
        assert (statistics.peers, statistics.connections, statistics.sessions) == (2, 3, 3)


async def test_streams_that_nobody_uses_make_room_for_other_peers(serving):
    now = [0.0]
    limits = Limits(max_connections=4)
    async with serving(limits=limits, clock=lambda: now[0]) as node:
        crowd = []
        for number in range(4):
            now[0] = number
            crowd.append(await node.connect("crowd"))
        await crowd[0].open()
        newcomer = await node.connect("newcomer")
        await newcomer.open()
        with pytest.raises(StreamClosedError):
            await crowd[1].receive()  # unused for longest; the one before it has a session
        second = await node.connect("newcomer")
        await second.open()
        late = await node.connect("newcomer", greet=False)
        assert (await late.receive()).code is ErrorCode.TOO_MANY_SESSIONS  # nobody has more than it would
        late.connection.close()
        assert node.server.statistics().connections == 4


async def test_a_flood_of_one_peer_leaves_others_their_turns(serving):
    async with serving() as node:
        flood, good = await node.connect("flood"), await node.connect("good")
        frame = b"".join(encode_frame(encode(Ping(7))))
        flood.connection.stream.write([frame * 3000])
        assert isinstance(await good.ask(Ping(1)), Pong)
        served = [each for each in node.server._connections if each.peer_id == "flood"]
        assert served[0]._connection.bytes_sent < 100 * 60  # most of them still wait


@pytest.mark.parametrize(
    "limits",
    [Limits(queued_tokens_per_peer=20), Limits(queued_bytes_per_peer=20 * 256)],
    ids=["tokens", "bytes"],
)
async def test_a_peer_that_queues_too_much_stops_only_itself(serving, plain, hidden_states, limits):
    async with serving(limits=limits) as node:
        flood, second, good = await node.connect("a"), await node.connect("a"), await node.connect("b")
        sessions = [await flood.open(max_tokens=200), await second.open(), await good.open()]
        x = hidden_states(200)
        async with node.stalled():
            for start in range(0, 200, 8):
                await flood.send(flood.step(sessions[0], x[start : start + 8], start, Want.LAST))
            await until(lambda: node.engine.queued == 3)  # of 8 tokens each
            await second.send(second.step(sessions[1], x[:8], 0))  # its other stream was waiting to read
            await good.send(good.step(sessions[2], x[:8], 0))
            assert isinstance(await good.ask(Ping(1)), Pong)
            assert node.engine.queued <= 5
        np.testing.assert_allclose(
            good.rows(await good.receive()), plain(node.engine.model, x[:8]), **TOLERANCE
        )
        for _ in range(25):
            assert isinstance(await flood.receive(), Result)
            assert node.engine.queued <= 4
        assert isinstance(await second.receive(), Result)
        assert isinstance(await flood.ask(Ping(2)), Pong)


async def test_a_prompt_does_not_hold_up_another_peers_tokens(serving, hidden_states):
    async with serving(batch_tokens=16, kv_tokens=4096) as node:
        heavy, light = await node.connect("heavy"), await node.connect("light")
        prompts = [await heavy.open(max_tokens=200) for _ in range(8)]
        session = await light.open()
        async with node.stalled():
            for prompt in prompts:
                await heavy.send(heavy.step(prompt, hidden_states(200), 0, Want.LAST))
            for position in range(10):
                await light.send(light.step(session, hidden_states(1), position))
            assert isinstance(await heavy.ask(Ping(1)), Pong)
            assert isinstance(await light.ask(Ping(1)), Pong)
        for _ in range(10):
            assert isinstance(await light.receive(), Result)
        assert node.engine.load().tokens < 8 * 200 / 2  # ten tokens came while most of the prompts waited
        for _ in prompts:
            assert isinstance(await heavy.receive(), Result)


# Leaving.


async def test_idle_sessions_expire_with_an_error_to_repair_from(serving, hidden_states):
    now = [0.0]
    limits = Limits(idle_session_seconds=100)
    async with serving(limits=limits, clock=lambda: now[0]) as node:
        client = await node.connect()
        used, unused = await client.open(), await client.open()
        for moment in (45.0, 90.0, 101.0):
            now[0] = moment
            await client.forward(used, hidden_states(1), 0)
            node.server.sweep()
        told = await client.receive()
        assert isinstance(told, ErrorMessage)
        assert (told.session, told.step) == (unused, None)
        assert (told.code, told.retriable) == (ErrorCode.SESSION_EXPIRED, True)
        assert "idle for 100 s" in told.message
        assert node.server.statistics().sessions == 1
        assert node.free_tokens == 1024 - 64
        again = await client.open()
        await client.forward(again, hidden_states(3), 0)


async def test_a_session_whose_step_waits_is_not_idle(serving, hidden_states):
    now = [0.0]
    async with serving(limits=Limits(idle_session_seconds=5), clock=lambda: now[0]) as node:
        client = await node.connect()
        session = await client.open()
        async with node.stalled():
            await client.send(client.step(session, hidden_states(2), 0))
            assert isinstance(await client.ask(Ping(1)), Pong)
            now[0] = 60.0
            node.server.sweep()
        assert isinstance(await client.receive(), Result)


@pytest.mark.parametrize("how", ["stream", "peer", "close"])
async def test_work_for_who_hung_up_is_dropped(serving, plain, hidden_states, how):
    async with serving(batch_tokens=16) as node:
        gone, good = await node.connect("gone"), await node.connect("good")
        mine = await good.open()
        sessions = [await gone.open(max_tokens=200) for _ in range(4)]
        x = hidden_states(200)
        async with node.stalled():
            for session in sessions:
                await gone.send(gone.step(session, x, 0))
            await gone.ask(Ping(1))
            assert node.engine.queued == 4
            if how == "stream":
                gone.connection.close()
            elif how == "peer":
                node.network.kill("gone")
            else:
                for session in sessions:
                    await gone.send(Close(session))
            await until(lambda: not any(c.sessions for c in node.server._connections if c.peer_id == "gone"))
        got = await good.forward(mine, x[:5], 0)
        np.testing.assert_allclose(got, plain(node.engine.model, x[:5]), **TOLERANCE)
        await until(lambda: node.engine.queued == 0)
        assert node.engine.load().tokens == 5
        await until(lambda: node.free_tokens == 1024 - 64)
        assert node.server.statistics().sessions == 1


async def test_who_hangs_up_while_it_is_not_read_is_noticed_by_its_answers(serving, hidden_states):
    async with serving(limits=Limits(queued_tokens_per_peer=5), batch_tokens=16) as node:
        gone = await node.connect("gone")
        session = await gone.open(max_tokens=64)
        async with node.stalled():
            await gone.send(gone.step(session, hidden_states(8), 0))
            await until(lambda: node.engine.queued == 1)
            node.network.kill("gone")
        await until(lambda: node.server.statistics().connections == 0)
        await until(lambda: node.free_tokens == 1024)
        assert node.server.statistics().sessions == 0


async def test_a_step_past_its_deadline_is_not_computed(serving, plain, hidden_states):
    async with serving() as node:
        client = await node.connect()
        session = await client.open()
        x = hidden_states(20)
        await client.forward(session, x[:10], 0)
        async with node.stalled():
            late = client.step(session, x[10:15], 10)
            await client.send(Step(session, late.step, 10, 5, Want.ALL, deadline_ms=1, payload=late.payload))
            await client.ask(Ping(1))
            await asyncio.sleep(0.01)
        answer = await client.receive()
        assert isinstance(answer, ErrorMessage)
        assert (answer.step, answer.code, answer.retriable) == (late.step, ErrorCode.DEADLINE, True)
        assert node.engine.load().tokens == 10
        got = await client.forward(session, x[10:], 10)
        np.testing.assert_allclose(got, plain(node.engine.model, x)[10:], **TOLERANCE)
        patient = client.step(session, x[:1], 20)
        answer = await client.ask(
            Step(session, patient.step, 20, 1, Want.ALL, deadline_ms=30_000, payload=patient.payload)
        )
        assert isinstance(answer, Result)


async def test_sub_spans_cost_their_part(serving):
    async with serving(kv_tokens=128) as node:
        client = await node.connect()
        await client.open(max_tokens=128, span=Span(0, 2))
        assert node.free_tokens == 64
        await client.open(max_tokens=128, span=Span(2, 4))
        assert isinstance(await client.try_open(1, Span(1, 2)), Busy)


async def act(rng: random.Random, client: RawClient, lengths: dict[bytes, int], states) -> None:
    """Something that a client may do; ``lengths`` is what it believes of its sessions."""
    action = rng.random()
    chain = tuple(bytes([rng.randrange(3), page] * 16) for page in range(4))
    if action < 0.25 or not lengths:
        more: dict[str, object] = {"prefix": chain} if rng.random() < 0.7 else {}
        if lengths and rng.random() < 0.3:
            more |= {"parent": rng.choice(list(lengths)), "parent_tokens": rng.randrange(40)}
        opening = Open(os.urandom(16), Span(0, 4), rng.randint(40, 200), "none", "none", **more)
        lengths[opening.session] = 0
        await client.send(opening)
        return
    session = rng.choice(list(lengths))
    if action < 0.35:
        del lengths[session]
        await client.send(Close(session, chain))
        return
    count = rng.choice([1, 3, 20, 33])
    step = client.step(session, states(count), lengths[session], Want.NOTHING)
    lengths[session] = rng.choice([0, lengths[session]] + 6 * [lengths[session] + count])
    await client.send(step)


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_is_left_of_clients_that_come_and_go_as_they_like(serving, hidden_states, caplog, seed):
    """Opens, forks, steps, rollbacks, closes, hang-ups, idle times, in any order and never waiting."""
    rng, now = random.Random(seed), [0.0]
    limits = Limits(
        max_sessions_per_peer=6, idle_session_seconds=40, rest_seconds=3, queued_tokens_per_peer=60
    )
    async with serving(kv_tokens=640, limits=limits, clock=lambda: now[0], batch_tokens=24) as node:
        clients: list[tuple[RawClient, dict[bytes, int]]] = []
        for _ in range(400):
            now[0] += rng.random()
            if len(clients) < 5:
                clients.append((await node.connect(f"peer{rng.randrange(4)}"), {}))
            client, lengths = rng.choice(clients)
            try:
                await act(rng, client, lengths, hidden_states)
            except StreamClosedError:  # the node found it idle
                clients.remove((client, lengths))
            if rng.random() < 0.02:
                client.connection.close()
            if rng.random() < 0.05:
                now[0] += rng.choice([1, 5, 50])
                node.server.sweep()
            await asyncio.sleep(rng.choice([0, 0, 0.001]))
            load = node.engine.load()
            assert load.free_slots + load.used_slots + load.cached_slots == load.total_slots
        for client, _ in clients:
            client.connection.close()
        await until(lambda: node.server.statistics().connections == 0 and node.engine.queued == 0)
        await asyncio.wait_for(node.server.sessions.wait_idle(), 5)
        load, statistics = node.engine.load(), node.server.statistics()
        assert (load.sequences, load.used_slots, load.reserved_slots) == (0, 0, 0)
        assert (statistics.peers, statistics.sessions, statistics.queued) == (0, 0, 0)
        assert statistics.free_kv_tokens == 640
        assert load.prefix_hit_tokens > 0
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
