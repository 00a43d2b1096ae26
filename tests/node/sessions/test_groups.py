"""Steps of many sessions in one frame: the answers are those of single steps, and a bad member hurts itself
only."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from swarm_node.node.limits.quotas import Limits
from swarm_node.swarm.codecs.kinds import NONE
from swarm_node.swarm.codecs.names import KINDS
from swarm_node.swarm.errors import ErrorCode, StreamClosedError
from swarm_node.swarm.links.pool import LinkPool
from swarm_node.swarm.protocol.field_types import MAX_MEMBERS
from swarm_node.swarm.protocol.messages import (
    ErrorMessage,
    Hello,
    Kind,
    Open,
    Ping,
    Pong,
    Result,
    Results,
    Step,
    Steps,
    Want,
    Welcome,
    encode,
)
from swarm_node.swarm.protocol.wire import DEFAULT_MAX_FRAME, FrameParser, encode_frame
from swarm_node.swarm.types import Span
from tests.node.chain_swarm import MODEL, until

SESSIONS = 5
ALL_AT_ONCE, IN_TWO = [5, 5, 5, 5, 5], [2, 2, 3, 3, 3]
"""The sizes of the batches that answers were computed in; see ``engine.batching.cohorts``."""


async def connected(node, members=MAX_MEMBERS, peer="client"):
    client = await node.connect(peer, greet=False)
    hello = Hello((1,), "", KINDS, DEFAULT_MAX_FRAME, "test", members=members)
    assert isinstance(await client.ask(hello), Welcome)
    return client


async def answers(client, count):
    """By session: what is said to each of ``count`` members; and how many frames it came in."""
    found, frames = {}, 0
    while len(found) < count:
        message = await client.receive()
        frames += 1
        for each in message.members if isinstance(message, Results) else (message,):
            assert each.session not in found
            found[each.session] = each
    return found, frames


async def opened(client, x, **options):
    """Sessions that hold ``x`` (sessions, tokens, hidden)."""
    sessions = [await client.open(**options) for _ in x]
    for session, rows in zip(sessions, x, strict=True):
        await client.forward(session, rows, 0)
    return sessions


def in_fives(hidden_states, tokens):
    return np.stack([hidden_states(tokens, seed) for seed in range(SESSIONS)])


@pytest.mark.parametrize("members", [0, 2, MAX_MEMBERS])
async def test_the_answers_are_those_of_single_steps(serving, plain, hidden_states, members):
    async with serving() as node:
        client = await connected(node, members)
        x = in_fives(hidden_states, 9)
        sessions = await opened(client, x[:, :4])
        got = []
        for at in range(4, 9):
            steps = [client.step(each, row[at : at + 1], at) for each, row in zip(sessions, x, strict=True)]
            async with node.stalled():
                await client.send(Steps(tuple(steps)))
                assert isinstance(await client.ask(Ping(1)), Pong)
            found, frames = await answers(client, SESSIONS)
            assert [found[step.session].step for step in steps] == [step.step for step in steps]
            batches = sorted(found[each].batch for each in sessions)
            assert batches in (ALL_AT_ONCE, IN_TWO)
            assert frames in {0: (5,), 2: (3, 4), MAX_MEMBERS: (1, 2)}[members]
            got.append(np.stack([client.rows(found[each]) for each in sessions]))
        for number, rows in enumerate(x):
            want = plain(node.engine.model, rows)[4:]
            np.testing.assert_allclose(
                np.concatenate([each[number] for each in got]), want, atol=1e-5, rtol=1e-4
            )


async def test_steps_that_come_together_are_computed_together(serving, hidden_states):
    """With the device free: none begins before all are there."""
    async with serving() as node:
        client = await connected(node)
        x = in_fives(hidden_states, 2)
        sessions = await opened(client, x[:, :1])
        for _ in range(20):
            steps = [client.step(each, row[1:], 1) for each, row in zip(sessions, x, strict=True)]
            await client.send(Steps(tuple(steps)))
            found, _ = await answers(client, SESSIONS)
            assert sorted(each.batch for each in found.values()) in (ALL_AT_ONCE, IN_TWO)


async def test_a_bad_member_is_told_its_error_alone(serving, hidden_states):
    async with serving() as node:
        other = await node.connect("other")
        foreign = await other.open()
        client = await connected(node)
        x = in_fives(hidden_states, 3)
        sessions = await opened(client, x[:, :2], max_tokens=3)
        good, hole, old, late, int8 = sessions
        await client.forward(late, x[3, 2:], 2)
        int8 = await client.open(codec="int8")
        rows = [client.step(each, x[0, 2:], 2) for each in (good, hole, old, late, int8, foreign)]
        rows[1] = replace(rows[1], position=3)
        rows[2] = replace(rows[2], step=1)
        rows[3] = replace(rows[3], position=3)
        rows[4] = replace(rows[4], position=0)
        unknown = replace(rows[0], session=bytes(16))
        await client.send(Steps((*rows, unknown)))
        found, _ = await answers(client, 7)
        codes = {each: found[each].code for each in found if isinstance(found[each], ErrorMessage)}
        assert codes == {
            hole: ErrorCode.BAD_STEP,
            old: ErrorCode.BAD_STEP,
            late: ErrorCode.CONTEXT_EXCEEDED,
            int8: ErrorCode.BAD_TENSOR,
            foreign: ErrorCode.UNKNOWN_SESSION,
            bytes(16): ErrorCode.UNKNOWN_SESSION,
        }
        assert isinstance(found[good], Result)
        assert len(await client.forward(hole, x[1, 2:], 2)) == 1  # nothing of it is lost
        assert len(await other.forward(foreign, x[0, :1], 0)) == 1


async def test_a_member_sent_again_is_answered_again(serving, hidden_states):
    async with serving() as node:
        client = await connected(node)
        x = in_fives(hidden_states, 2)
        sessions = await opened(client, x[:, :1])
        steps = Steps(tuple(client.step(each, row[1:], 1) for each, row in zip(sessions, x, strict=True)))
        await client.send(steps)
        first, _ = await answers(client, SESSIONS)
        tokens = node.engine.load().tokens
        await client.send(steps)
        again, _ = await answers(client, SESSIONS)
        assert again == first
        assert node.engine.load().tokens == tokens


async def test_prefill_beside_decode_in_one_frame(serving, plain, hidden_states):
    async with serving() as node:
        client = await connected(node)
        x = hidden_states(40)
        short, long = await client.open(), await client.open()
        await client.forward(short, x[:2], 0)
        steps = client.step(short, x[2:3], 2), client.step(long, x, 0)
        await client.send(Steps(steps))
        found, _ = await answers(client, 2)
        want = plain(node.engine.model, x)
        np.testing.assert_allclose(client.rows(found[short]), want[2:3], atol=1e-5, rtol=1e-4)
        np.testing.assert_allclose(client.rows(found[long]), want, atol=1e-5, rtol=1e-4)


async def test_each_member_counts_for_its_quota(serving, hidden_states):
    """Members beyond what a peer may have waiting here are not read before others are answered."""
    limits = Limits(queued_tokens_per_peer=4)
    async with serving(limits=limits) as node:
        client = await connected(node)
        x = in_fives(hidden_states, 2)
        sessions = await opened(client, x[:, :1])
        async with node.stalled():
            steps = [client.step(each, row[1:], 1) for each, row in zip(sessions, x, strict=True)]
            await client.send(Steps(tuple(steps)))
            await client.send(Ping(7))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await client.receive()
        answered, before_pong = 0, None
        while answered < SESSIONS or before_pong is None:
            message = await client.receive()
            if isinstance(message, Pong):
                before_pong = answered
                continue
            members = message.members if isinstance(message, Results) else (message,)
            assert all(isinstance(each, Result) for each in members)
            answered += len(members)
        assert before_pong >= SESSIONS - limits.queued_tokens_per_peer


@pytest.mark.parametrize("kind", [Kind.STEPS, Kind.RESULTS])
async def test_a_group_that_breaks_the_protocol_ends_its_own_stream(serving, hidden_states, kind):
    async with serving() as node:
        good, bad = await connected(node, peer="good"), await connected(node, peer="bad")
        session = await bad.open()
        twice = Steps((bad.step(session, hidden_states(1), 0), bad.step(bytes(16), hidden_states(1), 0)))
        frame = encode(twice)
        header = {**frame.header, "session": [session, session]}
        bad.connection.write(encode_frame(replace(frame, kind=kind, header=header)))
        told = await bad.receive()
        assert isinstance(told, ErrorMessage)
        assert (told.session, told.code) == (None, ErrorCode.BAD_FRAME)
        with pytest.raises(StreamClosedError):
            await bad.receive()
        assert len(await good.forward(await good.open(), hidden_states(1), 0)) == 1


async def test_steps_before_hello_are_none(serving, hidden_states):
    async with serving() as node:
        client = await node.connect(greet=False)
        step = Step(bytes(16), 1, 0, 1, Want.ALL, payload=bytes(256))
        told = await client.ask(Steps((step,)))
        assert isinstance(told, ErrorMessage)
        assert "STEPS came before HELLO" in told.message


class User:
    """A session on a link that keeps what it is told."""

    waiting_since = None

    def __init__(self):
        self.told = []

    def question(self):
        return None

    def deliver(self, reply):
        self.told.append(reply)

    def fail(self, error):
        self.told.append(error)


async def test_a_link_and_a_node_put_together_what_is_said_in_one_turn(serving, plain, hidden_states):
    async with serving() as node:
        pool = LinkPool(node.network.transport("client"), MODEL)
        link = await pool.get("node")
        await link.welcome
        said, heard = frames_of(link)
        x = in_fives(hidden_states, 6)
        users = {bytes([number]) * 16: User() for number in range(SESSIONS)}
        for session, user in users.items():
            link.join(session, user)
            link.post(Open(session, Span(0, 4), 64, "none", "none"))
        await until(lambda: all(user.told for user in users.values()))
        said.clear(), heard.clear()
        for at in range(6):
            for session, rows in zip(users, x, strict=True):
                payload = NONE.encode(rows[at : at + 1])
                link.post(Step(session, at + 1, at, 1, Want.LAST, payload=payload))
            await until(lambda at=at: all(len(user.told) == at + 2 for user in users.values()))
        assert said == [Kind.STEPS] * 6
        assert set(heard) == {Kind.RESULTS}
        for user, rows in zip(users.values(), x, strict=True):
            got = [NONE.decode(each.payload, 1, rows.shape[1]) for each in user.told[1:]]
            want = plain(node.engine.model, rows)
            np.testing.assert_allclose(np.concatenate(got), want, atol=1e-5, rtol=1e-4)
        await pool.close()


def frames_of(link):
    """The kinds of the frames that it sends and gets from now on."""
    said, heard, parser = [], [], FrameParser()
    write, dispatch = link._connection.write, link._dispatch

    def writing(frames):
        for frame in frames:
            parser.receive(frame)
        while (frame := parser.next_frame()) is not None:
            said.append(frame.kind)
        return write(frames)

    def dispatching(message):
        heard.append(encode(message).kind)
        dispatch(message)

    link._connection.write, link._dispatch = writing, dispatching
    return said, heard
