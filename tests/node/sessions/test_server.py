from __future__ import annotations

import asyncio
import os
import random
from dataclasses import replace

import numpy as np
import pytest

from scripts.lab.tiny_model import HIDDEN
from swarm_node.node.limits.quotas import Limits
from swarm_node.node.sessions.peer_connection import PeerConnection
from swarm_node.swarm.codecs.kinds import F8, NONE
from swarm_node.swarm.codecs.names import KINDS
from swarm_node.swarm.codecs.scales import ScaleTable
from swarm_node.swarm.errors import ErrorCode, StreamClosedError
from swarm_node.swarm.fidelity.row_reader import RowReader
from swarm_node.swarm.protocol.field_types import Progress
from swarm_node.swarm.protocol.messages import (
    Close,
    ErrorMessage,
    Hello,
    Open,
    Opened,
    Ping,
    Pong,
    Refused,
    Result,
    Step,
    Want,
    Welcome,
    encode,
)
from swarm_node.swarm.protocol.wire import FIXED_HEADER, Frame, encode_frame
from swarm_node.swarm.transport.address_groups import UNKNOWN
from swarm_node.swarm.types import NodeState, Span
from tests.node.chain_swarm import until
from tests.swarm.codecs.codec_cases import codec_of

ALL = Span(0, 4)
TABLE, NARROW = codec_of("int8s", HIDDEN), codec_of("int8s", HIDDEN - 1)
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


async def test_welcome_says_what_is_served(serving):
    async with serving(span=Span(1, 3), max_frame=100_000) as node:
        client = await node.connect()
        assert client.welcome == Welcome(
            version=1,
            digest="ab" * 32,
            span=Span(1, 3),
            codecs=KINDS,
            max_frame=100_000,
            agent="test",
            max_step_tokens=(100_000 - 10 - 65535) // 256,
            n_blocks=4,
            page_tokens=32,
            members=64,
            row_width=64,
            reply_width=64,
            features=("void", "branches"),
        )


@pytest.mark.parametrize("codec", KINDS)
async def test_a_session_computes_what_the_plain_forward_does(serving, plain, hidden_states, codec):
    async with serving() as node:
        client = await node.connect()
        x = hidden_states(100)
        wanted = plain(node.server.engine.model, x)
        session = await client.open(max_tokens=100, codec=codec)
        got = [await client.forward(session, x[:70], 0, codec=codec)]
        got += [await client.forward(session, x[i : i + 1], i, codec=codec) for i in range(70, 100)]
        tolerance = TOLERANCE if codec == "none" else {"atol": 0.15, "rtol": 0.1}
        np.testing.assert_allclose(np.concatenate(got), wanted, **tolerance)


async def test_want_last_and_nothing(serving, plain, hidden_states):
    async with serving() as node:
        client = await node.connect()
        session = await client.open()
        x = hidden_states(30)
        quiet = await client.ask(client.step(session, x[:20], 0, Want.NOTHING))
        assert isinstance(quiet, Result)
        assert (quiet.tokens, quiet.payload, quiet.position) == (0, b"", 20)
        last = await client.ask(client.step(session, x[20:], 20, Want.LAST))
        assert isinstance(last, Result)
        assert (last.tokens, last.position) == (1, 29)
        np.testing.assert_allclose(client.rows(last), plain(node.server.engine.model, x)[-1:], **TOLERANCE)


async def test_streamed_chunks_are_answered_in_order(serving, plain, hidden_states):
    async with serving() as node:
        client = await node.connect()
        session = await client.open(max_tokens=90)
        x = hidden_states(90)
        for start in range(0, 90, 15):
            await client.send(client.step(session, x[start : start + 15], start))
        answers = [await client.receive() for _ in range(6)]
        assert [answer.position for answer in answers] == list(range(0, 90, 15))
        got = np.concatenate([client.rows(answer) for answer in answers])
        np.testing.assert_allclose(got, plain(node.server.engine.model, x), **TOLERANCE)


async def test_a_session_id_belongs_to_who_opened_it(serving, plain, hidden_states):
    async with serving() as node:
        first, second = await node.connect("a"), await node.connect("b")
        session = await first.open()
        x = hidden_states(5)
        await first.forward(session, x[:4], 0)
        taken = await second.ask(Open(session, ALL, 10, "none", "none"))
        assert isinstance(taken, ErrorMessage)
        assert taken.code is ErrorCode.DUPLICATE_SESSION
        foreign = await second.ask(second.step(session, x[4:], 4))
        assert isinstance(foreign, ErrorMessage)
        assert foreign.code is ErrorCode.UNKNOWN_SESSION
        await second.send(Close(session))
        got = await first.forward(session, x[4:], 4)
        np.testing.assert_allclose(got, plain(node.server.engine.model, x)[4:], **TOLERANCE)


async def test_a_repeated_step_is_answered_again_and_computed_once(serving, hidden_states):
    async with serving() as node:
        client = await node.connect()
        session = await client.open()
        step = client.step(session, hidden_states(3), 0)
        first = await client.ask(step)
        assert await client.ask(step) == first
        assert node.server.engine.load().tokens == 3


async def test_a_failed_step_that_is_repeated_fails_again(serving):
    async with serving() as node:
        client = await node.connect()
        session = await client.open()
        step = Step(session, 1, 0, 2, Want.ALL, payload=b"short")
        first = await client.ask(step)
        assert isinstance(first, ErrorMessage)
        assert await client.ask(step) == first


async def test_ping_tells_the_load(serving, hidden_states):
    async with serving(kv_tokens=128) as node:
        client = await node.connect()
        session = await client.open(max_tokens=30)
        assert await client.ask(Ping(7)) == Pong(7, 1, 0, 96, NodeState.ONLINE)
        await client.forward(session, hidden_states(30), 0)
        node.server.sessions.begin_drain()
        pong = await client.ask(Ping(8))
        assert isinstance(pong, Pong)
        assert (pong.nonce, pong.sessions, pong.free_kv_tokens) == (8, 1, 96)
        assert (pong.state, pong.running, pong.batch) == (NodeState.DRAINING, 1, 100)
        assert pong.tokens_per_s > 0


async def test_pong_tells_where_requests_are_and_no_stranger(serving, hidden_states):
    async with serving(kv_tokens=128) as node:
        client, stranger = await node.connect(), await node.connect()
        session, absent = await client.open(max_tokens=30), b"a" * 16
        assert (await client.ask(Ping(1, (session, absent)))).tells == (Progress(session, 0, 0, 0, False),)
        await client.forward(session, hidden_states(9), 0)
        (told,) = (await client.ask(Ping(2, (session,)))).tells
        assert (told.received, told.done, told.work, told.busy) == (1, 1, 9, False)
        await client.send(client.step(session, hidden_states(1), 9))
        await client.send(Ping(3, (session,)))
        heard = [await client.receive(), await client.receive()]
        (told,) = next(message for message in heard if isinstance(message, Pong)).tells
        answered_before = isinstance(heard[0], Result)
        assert told.received == 2
        assert told.done == 1 + answered_before
        assert (await stranger.ask(Ping(1, (session,)))).tells == ()


async def test_a_session_keeps_the_tables_it_was_opened_with(serving, plain, hidden_states):
    """Of each direction its own, and of another session another."""
    async with serving() as node:
        client = await node.connect()
        x = hidden_states(40)
        wanted = plain(node.server.engine.model, x)
        other = codec_of("int8s", HIDDEN, seed=5)
        for codec, reply in ((TABLE, other), (other, TABLE), (F8, other), (TABLE, NONE)):
            tables = tuple(each.exponents for each in (codec, reply) if each.exponents)
            session = os.urandom(16)
            opening = Open(session, ALL, 64, codec.name, reply.name, scales=tables)
            assert isinstance(await client.ask(opening), Opened)
            step = Step(session, 1, 0, 40, Want.ALL, payload=codec.encode(x))
            answer = await client.ask(step)
            got = reply.decode(answer.payload, 40, HIDDEN)
            np.testing.assert_allclose(got, wanted, atol=0.15, rtol=0.1)


async def test_scales_are_offered_to_who_can_use_them(serving):
    async with serving(span=Span(1, 3)) as node:
        before = await node.connect()
        assert before.welcome.scales == b""
        asked: list[str] = []

        def scales(group: str) -> ScaleTable:
            asked.append(group)
            return ScaleTable(TABLE.exponents)

        node.server.sessions.offer_scales(scales)
        assert (await node.connect()).welcome.scales == TABLE.exponents
        assert asked == [UNKNOWN]
        old = await node.connect(greet=False)
        welcome = await old.ask(Hello((1,), "", ("none", "bf16", "fp16", "int8"), 1 << 20, "old"))
        assert (welcome.codecs, welcome.scales) == (("none", "bf16", "fp16", "int8"), b"")
        node.server.sessions.offer_scales(lambda group: None)
        assert (await node.connect()).welcome.scales == b""


@pytest.mark.parametrize("identities", [1, 5])
async def test_strange_rows_of_one_network_make_no_scales_for_others(serving, hidden_states, identities):
    """Who sends rows is told what fits them; who sends none is told nothing."""
    reader = RowReader(np.ones(HIDDEN, np.float32), lambda: 0.0)
    strange = np.where(np.arange(HIDDEN) % 2, 1, 2.0**24).astype(np.float32)
    async with serving(sampler=reader.sampler) as node:
        node.server.sessions.offer_scales(reader.table_for)
        strangers = [f"stranger {number}" for number in range(identities)]
        node.network.hosts |= {name: f"/ip4/8.8.4.{at}/tcp/1" for at, name in enumerate(strangers, 1)}
        node.network.hosts |= {"honest": "/ip4/9.9.9.9/tcp/1", "newcomer": "/ip4/11.0.0.1/tcp/1"}

        async def send(peer: str, sizes: np.ndarray, number: int) -> None:
            client = await node.connect(peer)
            session = await client.open(max_tokens=128, codec="bf16")
            await client.forward(session, hidden_states(128, number) * sizes, 0, codec="bf16")
            await client.send(Close(session))
            client.connection.close()

        async def told(peer: str) -> bytes:
            reader.look()
            client = await node.connect(peer)
            client.connection.close()
            return client.welcome.scales

        for number in range(30):
            await send(strangers[number % identities], strange, number)
        its_own = await told(strangers[-1])
        assert np.ptp(np.frombuffer(its_own, np.int8)) > 8
        assert [await told(peer) for peer in ("honest", "newcomer")] == [b"", b""]
        for number in range(4):
            await send("honest", np.ones(HIDDEN, np.float32), number)
            await send(strangers[0], strange, number)
        assert np.ptp(np.frombuffer(await told("honest"), np.int8)) <= 1
        assert await told("newcomer") == b""


async def test_a_node_that_wants_less_still_takes_what_it_speaks(serving, hidden_states):
    """Links that stand were told more."""
    async with serving() as node:
        client = await node.connect()
        sessions = node.server.sessions
        sessions.terms = replace(sessions.terms, codecs=("none", "bf16"))
        assert (await node.connect()).welcome.codecs == ("none", "bf16")
        session = await client.open(codec="f8")
        await client.forward(session, hidden_states(3), 0, codec="f8")


# Requests that are refused.


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"span": Span(0, 4)}, ErrorCode.SPAN_NOT_SERVED),
        ({"codec": "zip"}, ErrorCode.UNSUPPORTED_CODEC),
        ({"reply_codec": "zip"}, ErrorCode.UNSUPPORTED_CODEC),
        ({"codec": TABLE.name}, ErrorCode.UNSUPPORTED_CODEC),
        ({"codec": TABLE.name, "scales": (bytes(HIDDEN),)}, ErrorCode.UNSUPPORTED_CODEC),
        ({"reply_codec": NARROW.name, "scales": (NARROW.exponents,)}, ErrorCode.UNSUPPORTED_CODEC),
        ({"codec": "int8s", "scales": (TABLE.exponents,)}, ErrorCode.UNSUPPORTED_CODEC),
        ({"batch": 2}, ErrorCode.UNSUPPORTED),
        ({"max_tokens": 257}, ErrorCode.CONTEXT_EXCEEDED),
        ({"max_tokens": 161, "span": Span(1, 3)}, ErrorCode.CONTEXT_EXCEEDED),
    ],
)
async def test_sessions_that_cannot_be(serving, change, code):
    async with serving(span=Span(1, 3), kv_tokens=150) as node:
        client = await node.connect()
        session = os.urandom(16)
        fields = {"span": Span(1, 3), "max_tokens": 10, "codec": "none", "reply_codec": "none"} | change
        answer = await client.ask(Open(session, **fields))
        assert isinstance(answer, Refused)
        assert (answer.session, answer.code) == (session, code)
        assert node.free_tokens == 160  # whole pages
        await client.open(span=Span(2, 3))


async def test_draining_refuses_new_sessions_and_lets_old_ones_end(serving, hidden_states):
    async with serving() as node:
        client = await node.connect()
        session = await client.open()
        node.server.sessions.begin_drain()
        answer = await client.ask(Open(os.urandom(16), ALL, 1, "none", "none"))
        assert isinstance(answer, Refused)
        assert answer.code is ErrorCode.DRAINING
        await client.forward(session, hidden_states(3), 0)
        idle = asyncio.ensure_future(node.server.sessions.wait_idle())
        await asyncio.sleep(0)
        assert not idle.done()
        await client.send(Close(session))
        await asyncio.wait_for(idle, 5)


async def test_closing_the_server_tells_the_clients(serving):
    async with serving() as node:
        client = await node.connect()
        await client.open()
        node.server.close()
        assert node.free_tokens == 1024  # at once: the engine is stopped next
        answer = await client.receive()
        assert isinstance(answer, ErrorMessage)
        assert (answer.code, answer.retriable) == (ErrorCode.DRAINING, True)
        with pytest.raises(StreamClosedError):
            await client.receive()


# Steps that do not fit.


async def test_bad_steps_are_told_and_hurt_nothing(serving, plain, hidden_states):
    async with serving(limits=Limits(max_step_tokens=40)) as node:
        client = await node.connect()
        session = await client.open(max_tokens=50)
        x = hidden_states(30)
        await client.forward(session, x[:10], 0)
        row = NONE.encode(x[:1])
        many = NONE.encode(hidden_states(41))
        nan = np.full((1, 64), np.nan, np.float32).tobytes()
        cases = [
            (Step(os.urandom(16), 1, 0, 1, Want.ALL, payload=row), ErrorCode.UNKNOWN_SESSION),
            (Step(session, 1, 3, 1, Want.ALL, payload=row), ErrorCode.BAD_STEP),  # a used number
            (Step(session, 0, 10, 1, Want.ALL, payload=row), ErrorCode.BAD_STEP),  # an old number
            (Step(session, 5, 11, 1, Want.ALL, payload=row), ErrorCode.BAD_STEP),  # a hole
            (Step(session, 5, 0, 41, Want.ALL, payload=many), ErrorCode.BAD_STEP),  # too long a step
            (Step(session, 5, 10, 40, Want.ALL, payload=memoryview(many)[: 40 * 256]), None),  # fits exactly
            (Step(session, 6, 50, 1, Want.ALL, payload=row), ErrorCode.CONTEXT_EXCEEDED),
            (Step(session, 7, 10, 2, Want.ALL, payload=row), ErrorCode.BAD_TENSOR),  # a row short
            (Step(session, 8, 10, 1, Want.ALL, payload=bytes(row) + b"\0"), ErrorCode.BAD_TENSOR),
            (Step(session, 9, 10, 1, Want.ALL, payload=b""), ErrorCode.BAD_TENSOR),
            (Step(session, 10, 10, 1, Want.ALL, payload=nan), ErrorCode.BAD_TENSOR),
        ]
        for step, code in cases:
            answer = await client.ask(step)
            if code is None:
                assert isinstance(answer, Result)
                continue
            assert isinstance(answer, ErrorMessage), step
            assert (answer.session, answer.step, answer.code) == (step.session, step.step, code)
            assert answer.message
        client.step_number = 10
        got = await client.forward(session, x[10:], 10)
        np.testing.assert_allclose(got, plain(node.server.engine.model, x)[10:], **TOLERANCE)


async def test_a_session_cannot_be_opened_twice(serving, hidden_states):
    async with serving() as node:
        client = await node.connect()
        session = await client.open()
        answer = await client.ask(Open(session, ALL, 5, "none", "none"))
        assert isinstance(answer, ErrorMessage)
        assert answer.code is ErrorCode.DUPLICATE_SESSION
        await client.forward(session, hidden_states(3), 0)


async def test_a_closed_session_id_may_be_used_again(serving, hidden_states):
    async with serving(kv_tokens=64) as node:
        client = await node.connect()
        session = await client.open(max_tokens=20)
        await client.send(client.step(session, hidden_states(20), 0))
        await client.send(Close(session))  # while the step may still be computed
        opened = await client.ask(Open(session, ALL, 20, "none", "none"))
        if isinstance(opened, Result):
            opened = await client.receive()
        assert isinstance(opened, Opened)
        await client.send(Close(session))
        await until(lambda: node.free_tokens == 64)
        await client.send(Close(session))  # a session that is gone already
        assert isinstance(await client.ask(Ping(1)), Pong)


# Streams that break the protocol.


async def error_of(client) -> ErrorMessage:
    answer = await client.receive()
    assert isinstance(answer, ErrorMessage)
    with pytest.raises(StreamClosedError):
        await client.receive()
    return answer


@pytest.mark.parametrize(
    ("hello", "code", "text"),
    [
        (Hello((1,), "cd" * 32, ("none",), 2**20, "x"), ErrorCode.MODEL_MISMATCH, "cdcdcdcdcdcd"),
        (Hello((2, 3), "", ("none",), 2**20, "x"), ErrorCode.UNSUPPORTED_VERSION, "2, 3"),
        (Hello((1,), "", ("zip",), 2**20, "x"), ErrorCode.UNSUPPORTED_CODEC, "int8"),
        (Hello((1,), "", ("none",), 1024, "x"), ErrorCode.UNSUPPORTED, "1024"),
        (Ping(1), ErrorCode.BAD_FRAME, "HELLO"),
        (Pong(1, 0, 0, 0, NodeState.ONLINE), ErrorCode.BAD_FRAME, "PONG"),
    ],
)
async def test_a_bad_greeting_ends_the_stream_with_a_reason(serving, hello, code, text):
    async with serving() as node:
        client = await node.connect(greet=False)
        await client.send(hello)
        answer = await error_of(client)
        assert answer.code is code
        assert text in answer.message
        assert not answer.retriable


async def test_a_second_hello_ends_the_stream(serving):
    async with serving() as node:
        client = await node.connect()
        assert isinstance(await client.hello(), ErrorMessage)


async def test_an_unknown_kind_is_refused_and_the_stream_goes_on(serving):
    async with serving() as node:
        client = await node.connect()
        client.connection.stream.write(encode_frame(Frame(99, {})))
        answer = await client.receive()
        assert isinstance(answer, ErrorMessage)
        assert answer.code is ErrorCode.UNKNOWN_KIND
        assert isinstance(await client.ask(Ping(1)), Pong)


def step_frame(tokens: int = 1) -> bytes:
    step = Step(b"s" * 16, 1, 0, tokens, Want.ALL, payload=bytes(256 * tokens))
    return b"".join(bytes(part) for part in encode_frame(encode(step)))


GARBAGE = {
    "noise": random.Random(1).randbytes(5000),
    "zeros": bytes(5000),
    "http": b"GET / HTTP/1.1\r\nHost: node\r\n\r\n",
    "frame too large": FIXED_HEADER.pack(b"SW", 7, 0, 10, 2**32 - 1),
    "bad msgpack": FIXED_HEADER.pack(b"SW", 7, 0, 4, 0) + b"\xc1\xc1\xc1\xc1",
    "not a map": FIXED_HEADER.pack(b"SW", 7, 0, 1, 0) + b"\x01",
    "missing fields": b"".join(encode_frame(Frame(7, {"session": b"s" * 16}))),
    "wrong type": b"".join(encode_frame(Frame(11, {"nonce": "one"}))),
    "reply kind": b"".join(bytes(b) for b in encode_frame(encode(Pong(1, 0, 0, 0, NodeState.ONLINE)))),
}


@pytest.mark.parametrize("greet", [False, True])
@pytest.mark.parametrize("garbage", GARBAGE)
async def test_garbage_ends_its_own_stream_with_a_reason(serving, plain, hidden_states, garbage, greet):
    async with serving() as node:
        good, bad = await node.connect("good"), await node.connect("bad", greet=greet)
        session = await good.open()
        if greet:
            await bad.open()
        x = hidden_states(20)
        first = await good.forward(session, x[:10], 0)
        bad.connection.stream.write([GARBAGE[garbage]])
        answer = await error_of(bad)
        assert answer.code is ErrorCode.BAD_FRAME
        second = await good.forward(session, x[10:], 10)
        wanted = plain(node.server.engine.model, x)
        np.testing.assert_allclose(np.concatenate([first, second]), wanted, **TOLERANCE)
        assert node.server.statistics().sessions == 1


@pytest.mark.parametrize("cut", [1, 9, 10, 15, 60, 300])
async def test_a_stream_that_ends_in_mid_frame_frees_its_sessions(serving, hidden_states, cut):
    async with serving() as node:
        good, bad = await node.connect("good"), await node.connect("bad")
        session = await good.open(max_tokens=24)
        await bad.open(max_tokens=200)
        frame = step_frame(4)
        bad.connection.stream.write([frame[: min(cut, len(frame) - 1)]])
        bad.connection.close()
        await until(lambda: node.free_tokens == 1024 - 32)
        await good.forward(session, hidden_states(3), 0)


async def test_a_client_that_dies_during_its_prompt_frees_everything(serving, hidden_states):
    async with serving(batch_tokens=16) as node:
        client = await node.connect("bad")
        sessions = [await client.open(max_tokens=100) for _ in range(8)]
        for session in sessions:
            await client.send(client.step(session, hidden_states(100), 0))
        node.network.kill("bad")
        await until(lambda: node.free_tokens == 1024)
        await until(lambda: node.server.engine.queued == 0)
        assert node.server.statistics().connections == 0


@pytest.mark.parametrize("seed", range(5))
async def test_fuzzing_one_stream_does_not_change_anothers_results(serving, plain, hidden_states, seed):
    rng = random.Random(seed)
    async with serving() as node:
        good = await node.connect("good")
        session = await good.open(max_tokens=40)
        x = hidden_states(40, seed)
        got = []
        for position in range(40):
            bad = await node.connect("bad", greet=rng.random() < 0.7)
            stolen = Step(session, position + 1, position, 1, Want.ALL, payload=bytes(256))
            frames = b"".join(bytes(part) for part in encode_frame(encode(stolen))) + step_frame()
            mutated = bytearray(frames)
            for _ in range(rng.randrange(4)):
                mutated[rng.randrange(len(mutated))] = rng.randrange(256)
            bad.connection.stream.write([mutated[: rng.randrange(len(mutated) + 1)]])
            got.append(await good.forward(session, x[position : position + 1], position))
            bad.connection.close()
        np.testing.assert_allclose(np.concatenate(got), plain(node.server.engine.model, x), **TOLERANCE)
        await until(lambda: node.server.statistics().connections == 1)


# Time and memory bounds.


def unfinished_step(size: int) -> bytes:
    """A STEP without its last byte."""
    frame = b"".join(encode_frame(encode(Step(bytes(16), 1, 0, 1, Want.LAST, payload=bytes(size)))))
    return frame[:-1]


async def test_frames_that_never_end_are_counted_and_given_up(serving, hidden_states):
    now = [0.0]
    async with serving(clock=lambda: now[0]) as node:
        bad, good = await node.connect("bad"), await node.connect("good")
        session = await good.open()
        for _ in range(3):
            await good.forward(session, hidden_states(9), 0)
        assert node.server.frames.held == 0
        bad.connection.stream.write([unfinished_step(100_000)])
        await until(lambda: node.server.frames.held > 100_000)
        now[0] = 29.0
        node.server.sweep()
        assert isinstance(await good.ask(Ping(1)), Pong)
        now[0] = 31.0
        node.server.sweep()
        told = await bad.receive()
        assert (told.code, told.session, told.retriable) == (ErrorCode.OVERLOADED, None, True)
        assert "grew by less than" in told.message
        assert node.server.frames.held == 0
        await until(lambda: node.server.statistics().connections == 1)
        await good.forward(session, hidden_states(9), 0)


async def test_before_hello_only_a_small_frame_is_taken(serving):
    async with serving() as node:
        mute = await node.connect("mute", greet=False)
        mute.connection.stream.write([unfinished_step(5000)])
        told = await mute.receive()
        assert told.code is ErrorCode.BAD_FRAME
        assert "at most 4096" in told.message
        assert node.server.frames.held == 0


async def test_idle_connections_are_closed(serving, hidden_states):
    now = [0.0]
    limits = Limits(idle_connection_seconds=50, hello_seconds=5)
    async with serving(limits=limits, clock=lambda: now[0]) as node:
        client, mute = await node.connect("client"), await node.connect("mute", greet=False)
        await client.open()
        now[0] = 6.0
        node.server.sweep()
        with pytest.raises(StreamClosedError):
            await mute.receive()
        await client.ask(Ping(1))
        now[0] = 57.0
        node.server.sweep()
        with pytest.raises(StreamClosedError):
            await client.receive()
        await until(lambda: node.free_tokens == 1024)
        await until(lambda: node.server.statistics().connections == 0)


async def test_a_client_that_does_not_read_is_not_read_and_then_closed(serving, hidden_states):
    now = [0.0]
    limits = Limits(idle_connection_seconds=50, queued_bytes_per_peer=4 * 65536)
    async with serving(clock=lambda: now[0], limits=limits) as node:
        client, good = await node.connect("deaf"), await node.connect("good")
        session = await client.open(max_tokens=256)
        x = hidden_states(256)

        async def flood() -> None:
            for _ in range(200):  # 64 KB of results each
                await client.send(client.step(session, x, 0))

        flooding = asyncio.ensure_future(flood())
        other = await good.open()
        await good.forward(other, hidden_states(5), 0)
        tokens = -1
        async with asyncio.timeout(30):  # until nothing moves any more
            while tokens != node.engine.load().tokens or node.engine.queued:
                tokens = node.engine.load().tokens
                await asyncio.sleep(0.1)
        assert tokens < 60 * 256
        now[0] = 51.0
        await good.ask(Ping(1))
        node.server.sweep()
        flooding.cancel()
        await until(lambda: node.server.statistics().connections == 1)
        assert node.free_tokens == 1024 - 64
        await good.forward(other, hidden_states(5), 5)


async def test_a_reader_that_ends_its_own_stream_returns_as_one_that_came_to_the_end(
    serving, hidden_states, monkeypatch
):
    readers = []
    run = PeerConnection.run

    async def watched(connection: PeerConnection) -> None:
        readers.append(asyncio.current_task())
        await run(connection)

    monkeypatch.setattr(PeerConnection, "run", watched)
    async with serving() as node:
        client = await node.connect("deaf")
        session = await client.open()
        monkeypatch.setattr(PeerConnection, "_on_step", lambda connection, step: connection.close())
        await client.send(client.step(session, hidden_states(1), 0))
        await until(readers[0].done)
        assert not readers[0].cancelled()
        assert node.server.statistics().connections == 0


async def test_payloads_that_wait_are_bounded(serving, hidden_states):
    limits = Limits(queued_bytes_per_peer=10 * 256)
    async with serving(limits=limits) as node:
        client = await node.connect()
        session = await client.open(max_tokens=200)
        x = hidden_states(200)
        for start in range(0, 200, 8):
            await client.send(client.step(session, x[start : start + 8], start, Want.LAST))
        for _ in range(25):
            answer = await client.receive()
            assert isinstance(answer, Result)
            assert node.server.engine.queued <= 2


async def test_a_bug_of_ours_is_an_internal_error_without_details(serving, monkeypatch):
    async with serving() as node:
        client = await node.connect()
        monkeypatch.setattr(node.server.sessions, "pong", lambda nonce: 1 // 0)
        await client.send(Ping(1))
        answer = await error_of(client)
        assert answer.code is ErrorCode.INTERNAL
        assert "division" not in answer.message


async def test_what_is_done_is_counted(serving, hidden_states):
    async with serving(limits=Limits(max_sessions=1)) as node:
        client = await node.connect()
        session = await client.open()
        await client.forward(session, hidden_states(30), 0)
        await client.forward(session, hidden_states(1), 30)
        await client.try_open()  # there is no room for another
        await client.ask(client.step(b"x" * 16, hidden_states(1), 0))  # is not open
        await client.send(Close(session))
        await client.ask(Ping(1))
        work = node.server.sessions.work
        totals = work.totals()
        assert (totals.prefill_tokens, totals.decode_tokens) == (30, 1)
        assert (totals.sessions_opened, totals.sessions_ended) == (1, {"closed": 1})
        assert totals.peers_served == 1
        assert totals.refused == {"busy": 1, "unknown_session": 1}
        assert totals.queue_wait_s.count == totals.batch_sessions.count == 2
        (link,) = totals.traffic
        assert link == ("incoming", "daemon")
        assert totals.traffic[link].received == client.connection.bytes_sent
        client.connection.close()
        await until(lambda: not node.server.statistics().connections)
        assert work.totals().traffic[link].received == totals.traffic[link].received


async def test_sessions_that_a_stream_takes_along_are_counted_as_such(serving):
    async with serving() as node:
        first, second = await node.connect("a"), await node.connect("b")
        await first.open()
        await second.open()
        first.connection.close()
        await until(lambda: node.server.statistics().sessions == 1)
        node.server.close()
        await until(lambda: not node.server.statistics().sessions)
        ended = node.server.sessions.work.totals().sessions_ended
        assert ended == {"stream_ended": 1, "node_left": 1}


async def test_sessions_are_logged_in_a_line_each(serving, hidden_states, caplog):
    caplog.set_level("INFO", "swarm_node.node.sessions")
    async with serving() as node:
        client = await node.connect("peer-of-a-long-name")
        session = await client.open(max_tokens=40)
        await client.forward(session, hidden_states(10), 0)
        await client.send(Close(session))
        await client.ask(Ping(1))
    opened, closed = (line for line in caplog.messages if "session_" in line)
    assert opened == "event=session_opened peer=…g-name blocks=0-3 max_tokens=40 known_tokens=0"
    assert closed.startswith("event=session_closed peer=…g-name blocks=0-3 tokens=10 seconds=")
    assert closed.endswith(" why=closed")
