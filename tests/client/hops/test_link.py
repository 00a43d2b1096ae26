"""One stream for all sessions of a client on a node: who shares what, and how it ends."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from swarm_node.client.hops import segment as segment_module
from swarm_node.client.hops.route_session import RouteSession
from swarm_node.swarm.errors import (
    HopFailedError,
    ModelMismatchError,
    PeerTimeoutError,
    StreamClosedError,
    SwarmError,
)
from swarm_node.swarm.links import timers
from swarm_node.swarm.links.message_stream import Connection
from swarm_node.swarm.links.pool import LinkPool
from swarm_node.swarm.protocol.messages import Hello, Open, Opened, Result, Step, Welcome
from swarm_node.swarm.protocol.wire import PROTOCOL_ID
from swarm_node.swarm.transport.interface import Stream
from swarm_node.swarm.types import Hop, Route, Span
from tests.doubles.fake_swarm import BOS, FAST, HIDDEN, MODEL, FakeSwarm, ToyHead, expected, settle, until
from tests.doubles.virtual_time import in_virtual_time, now

ROUTE = Route((Hop("a", Span(0, 6)),))
X = ToyHead().embed(list(b"thirty-odd tokens of some prompt"))


async def _swarm(**spans: str) -> tuple[FakeSwarm, LinkPool]:
    swarm = await FakeSwarm(**(spans or {"a": "0-5"})).start()
    return swarm, LinkPool(swarm.network.transport("client"), MODEL, patience=FAST)


SETTINGS = FakeSwarm().settings()


async def _open(links: LinkPool, route: Route = ROUTE) -> RouteSession:
    return await RouteSession.open(links, route, SETTINGS)


@in_virtual_time
async def test_sessions_share_a_stream_and_say_hello_once() -> None:
    swarm, links = await _swarm()
    sessions = await asyncio.gather(*(_open(links) for _ in range(5)))
    alone = await sessions[0].forward(X, 0)
    together = await asyncio.gather(*(session.forward(X, 0) for session in sessions[1:]))
    assert all(np.array_equal(alone, other) for other in together)
    assert swarm.nodes["a"].hellos == 1
    assert swarm.open_sessions == 5
    for session in sessions:
        session.close()
    await settle()
    assert swarm.open_sessions == 0
    await links.close()


@in_virtual_time
async def test_an_open_link_costs_one_round_trip() -> None:
    latency = 0.05
    swarm = await FakeSwarm(latency, a="0-5").start()
    links = LinkPool(swarm.network.transport("client"), MODEL)
    loop = asyncio.get_running_loop()
    took = []
    for _ in range(2):
        began = loop.time()
        session = await _open(links)
        took.append(loop.time() - began)
        assert 2 * latency * 0.95 < session.hops[0].link.round_trip_s <= took[0]
    assert took[0] > 4 * latency * 0.95  # dial, then HELLO and OPEN together
    assert took[1] < took[0] - latency
    await links.close()


@in_virtual_time
async def test_steps_of_one_turn_leave_in_one_write() -> None:
    _, links = await _swarm()
    sessions = [await _open(links) for _ in range(4)]
    link = await links.get(ROUTE.hops[0].peer_id)
    writes = 0
    write = link._connection.stream.write

    def counting(buffers: list[bytes]) -> None:
        nonlocal writes
        writes += 1
        write(buffers)

    link._connection.stream.write = counting  # type: ignore[method-assign]
    await asyncio.gather(*(session.forward(X[:1], 0) for session in sessions))
    assert writes == 1
    await links.close()


@in_virtual_time
async def test_a_link_that_ends_fails_every_session_with_one_error() -> None:
    swarm, links = await _swarm()
    sessions = [await _open(links) for _ in range(3)]
    swarm.nodes["a"].behaviour.step_delay_s = 60
    tasks = [asyncio.create_task(session.forward(X, 0)) for session in sessions[:2]]
    await settle()
    swarm.network.kill("a")
    failures = await asyncio.gather(*tasks, return_exceptions=True)
    with pytest.raises(HopFailedError) as idle:
        await sessions[2].forward(X, 0)
    causes = {id(failure.cause) for failure in (*failures, idle.value)}  # type: ignore[union-attr]
    assert len(causes) == 1
    assert isinstance(idle.value.cause, StreamClosedError)
    for session in sessions:
        session.close()
    await links.close()


@in_virtual_time
async def test_what_a_node_said_before_it_ended_the_stream_is_read() -> None:
    """The node refuses HELLO and ends the stream while OPEN is on its way."""
    swarm, links = await _swarm()
    swarm.nodes["a"].behaviour.digest = "cd" * 32
    with pytest.raises(HopFailedError) as caught:
        await _open(links)
    assert isinstance(caught.value.cause, ModelMismatchError)
    await links.close()


async def test_every_answer_on_a_dead_link_is_repaired_and_the_peer_banned_once() -> None:
    swarm = await FakeSwarm(a="0-5", b="0-5").start()
    router = swarm.router()
    prompts = [[BOS, *f"prompt {number}".encode()] for number in range(6)]
    async with swarm.client(router=router) as model:
        streams = [model.stream(prompt, max_new_tokens=15, ignore_eos=True) for prompt in prompts]
        for stream in streams:
            await anext(stream)
        (used,) = (peer for peer, node in swarm.nodes.items() if node.open_sessions)
        swarm.network.kill(used)
        answers = await asyncio.gather(*(stream.finish() for stream in streams))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert list(answer.token_ids) == expected(prompt, 15)
        assert answer.repairs == 1
    assert router.health.statistics()[used].failures == 1


@in_virtual_time
async def test_a_silent_node_is_pinged_once_for_all_sessions() -> None:
    swarm, links = await _swarm()
    sessions = [await _open(links) for _ in range(8)]
    swarm.nodes["a"].behaviour.step_delay_s = 0.1
    began = now()
    await asyncio.gather(*(session.forward(X[:1], 0) for session in sessions))  # one after another: 0.8 s
    took = now() - began
    assert 2 <= swarm.nodes["a"].pings <= 2 * took / FAST.ping_after_s + 1  # questions, not one a session
    await links.close()


@in_virtual_time
async def test_a_frozen_node_ends_the_link() -> None:
    swarm, links = await _swarm()
    session = await _open(links)
    swarm.network.partition("client", "a")
    began = now()
    with pytest.raises(HopFailedError) as caught:
        await session.forward(X, 0)
    assert isinstance(caught.value.cause, PeerTimeoutError)
    assert now() - began < 2
    await links.close()


@in_virtual_time
async def test_a_loop_that_was_blocked_is_no_sign_of_a_dead_node() -> None:
    _, links = await _swarm()
    await _open(links)
    link = await links.get(ROUTE.hops[0].peer_id)
    link._connection.heard_at, link._timers._pinged_at = now() - 20, now() - 10
    link._due = now() - 10
    link._look()
    assert link.failure is None
    assert now() - link._timers._pinged_at < 1  # the time that we were away does not count
    link._timers._pinged_at -= 15  # after it was heard last, and more than any measured round trip allows
    link._due = now()
    link._look()
    assert link.failure is None
    await asyncio.sleep(1.1 * timers.SECOND_LOOK_S)
    assert isinstance(link.failure, PeerTimeoutError)
    await links.close()


@in_virtual_time
async def test_a_link_outlives_its_last_session_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "IDLE_S", 0.05)
    swarm, links = await _swarm()
    for _ in range(3):
        (await _open(links)).close()
    assert swarm.nodes["a"].hellos == 1
    link = await links.get(ROUTE.hops[0].peer_id)
    await asyncio.sleep(0.15)
    assert link.failure is not None
    session = await _open(links)
    assert swarm.nodes["a"].hellos == 2
    await asyncio.sleep(0.15)  # in use: however long
    await session.forward(X, 0)
    assert swarm.nodes["a"].hellos == 2
    await links.close()


@in_virtual_time
async def test_a_paused_session_keeps_its_link_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "KEEP_ALIVE_S", 0.03)
    swarm, links = await _swarm()
    await _open(links)
    await until(lambda: swarm.nodes["a"].pings >= 3)
    await links.close()


@in_virtual_time
async def test_one_who_gives_up_dialling_costs_the_others_nothing() -> None:
    swarm = await FakeSwarm(0.02, a="0-5").start()
    for delay in (0.01, 0.05):  # while dialling, and while waiting for WELCOME
        links = LinkPool(swarm.network.transport("client"), MODEL)
        impatient = asyncio.create_task(_open(links))
        patient = asyncio.create_task(_open(links))
        await asyncio.sleep(delay)
        impatient.cancel()
        session = await patient
        assert impatient.cancelled()
        await session.forward(X, 0)
        session.close()
        await links.close()
    await asyncio.sleep(0.05)
    assert swarm.open_sessions == 0


@in_virtual_time
async def test_a_long_prefill_leaves_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_module, "IN_FLIGHT_BYTES", 8 * HIDDEN * 4)
    swarm, links = await _swarm()
    node = swarm.nodes["a"]
    node.behaviour.max_step_tokens = 2
    session = await _open(links)
    most = 0
    post = segment_module.Segment.post

    def watching(self: segment_module.Segment, *arguments: object, **named: object) -> None:
        nonlocal most
        post(self, *arguments, **named)  # type: ignore[arg-type]
        most = max(most, len(self._sent))

    monkeypatch.setattr(segment_module.Segment, "post", watching)
    assert np.array_equal(await session.forward(X, 0), await (await _open(links)).forward(X, 0))
    assert len(node.steps) == len(X)
    assert 2 <= most <= 4  # 8 rows, 2 a step
    await links.close()


class Rude:
    """A node that answers OPEN and then what the test wants."""

    def __init__(self, *after_open: object, on_step: tuple[object, ...] = ()) -> None:
        self.after_open = after_open
        self.on_step = on_step

    async def handle(self, stream: Stream) -> None:
        connection = Connection(stream)
        while True:
            match await connection.receive():
                case Hello():
                    welcome = Welcome(1, MODEL.digest, Span(0, 6), ("none",), 1 << 20, "rude", 64, 6)
                    await connection.send(welcome)
                case Open(session=session):
                    await connection.send(Opened(session, 0, 64))
                    for message in self.after_open:
                        await connection.send(self._of(message, session))
                case Step(session=session):
                    for message in self.on_step:
                        await connection.send(self._of(message, session))

    def _of(self, message: object, session: bytes) -> object:
        return replace(message, session=session) if message.session == OURS else message  # type: ignore[attr-defined, type-var]


OURS, OTHER = bytes(16), bytes(range(16))
ROW = np.zeros((1, HIDDEN), np.float32).tobytes()


async def _rude(node: Rude) -> RouteSession:
    swarm = FakeSwarm()
    await swarm.network.transport("a").serve(PROTOCOL_ID, node.handle)
    return await _open(LinkPool(swarm.network.transport("client"), MODEL, patience=FAST))


@in_virtual_time
async def test_answers_to_nobody_are_passed_over() -> None:
    stray = Result(OTHER, 1, 0, 1, ROW)
    session = await _rude(Rude(stray, stray, on_step=(stray, Result(OURS, 1, 0, 1, ROW))))
    assert np.array_equal(await session.forward(X[:1], 0), np.zeros((1, HIDDEN), np.float32))


@pytest.mark.parametrize("messages", [2, 1000])
@in_virtual_time
async def test_answers_that_were_not_asked_for_end_a_session(messages: int) -> None:
    session = await _rude(Rude(*[Result(OURS, 7, 0, 1, ROW)] * messages))
    await settle()
    assert len(session.segments[0]._inbox) <= 1
    with pytest.raises(HopFailedError):
        await session.forward(X[:1], 0)


@in_virtual_time
async def test_a_second_welcome_ends_the_link() -> None:
    welcome = Welcome(1, MODEL.digest, Span(0, 6), ("none",), 1 << 20, "rude", 64, 6)

    class Twice(Rude):
        def _of(self, message: object, session: bytes) -> object:
            return welcome

    session = await _rude(Twice(OURS))
    await settle()
    with pytest.raises(HopFailedError, match="WELCOME"):
        await session.forward(X[:1], 0)


@in_virtual_time
async def test_closing_leaves_no_task_and_refuses_what_follows() -> None:
    swarm, links = await _swarm(a="0-5", b="0-5")
    before = asyncio.all_tasks()
    session = await _open(links)
    dialling = asyncio.create_task(_open(links, Route((Hop("b", Span(0, 6)),))))
    await asyncio.sleep(0)
    await links.close()
    await links.close()
    await settle()
    with pytest.raises(SwarmError):
        await session.forward(X, 0)
    with pytest.raises(HopFailedError, match="client is closed"):
        await _open(links)
    (outcome,) = await asyncio.gather(dialling, return_exceptions=True)
    assert isinstance(outcome, HopFailedError | RouteSession), outcome
    own = {task for task in asyncio.all_tasks() - before if "MemoryTransport" not in repr(task)}
    assert not own
    assert swarm.open_sessions == 0
