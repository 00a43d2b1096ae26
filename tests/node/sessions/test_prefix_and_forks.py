"""Sessions that begin with tokens which are there already: of an earlier session, or of a parent."""

from __future__ import annotations

import hashlib
import os
import random

import numpy as np
import pytest

from swarm_node.swarm.errors import ErrorCode
from swarm_node.swarm.protocol.messages import (
    Attach,
    Attached,
    Busy,
    Close,
    ErrorMessage,
    Open,
    Opened,
    Ping,
    Pong,
    Refused,
    Replay,
    Replayed,
    Result,
)
from swarm_node.swarm.types import Span
from tests.doubles.fake_swarm import until

ALL = Span(0, 4)
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


def chain(pages: int, seed: bytes = b"salt") -> tuple[bytes, ...]:
    hashes, link = [], seed
    for page in range(pages):
        link = hashlib.blake2b(link + bytes([page]), digest_size=32).digest()
        hashes.append(link)
    return tuple(hashes)


# Prefixes.


async def test_a_second_session_with_the_same_prefix_pays_only_for_what_is_new(serving, plain, hidden_states):
    async with serving() as node:
        client = await node.connect()
        x = hidden_states(100)
        first = await client.open(max_tokens=100, prefix=chain(3))
        assert client.opened_length == 0
        rows = [await client.forward(first, x[:50], 0), await client.forward(first, x[50:], 50)]
        await client.send(Close(first))
        other = await node.connect()  # another stream of the same peer
        second = await other.open(max_tokens=120, prefix=chain(3))
        assert other.opened_length == 96
        before = node.engine.load().tokens
        again = await other.forward(second, x[96:], 96)
        assert node.engine.load().tokens - before == 4
        np.testing.assert_allclose(again, np.concatenate(rows)[96:], **TOLERANCE)
        more = hidden_states(10, 1)
        got = await other.forward(second, more, 100)
        wanted = plain(node.engine.model, np.concatenate([x, more]))[100:]
        np.testing.assert_allclose(got, wanted, **TOLERANCE)


async def test_a_stranger_who_knows_the_names_finds_nothing_and_is_replayed_nothing(serving, hidden_states):
    async with serving() as node:
        client, thief = await node.connect(), await node.connect("thief")
        named = {"max_tokens": 100, "prefix": chain(3), "journal": True}
        session = await client.open(**named)
        await client.forward(session, hidden_states(96), 0)
        for _ in range(2):  # while the session is open, and when its pages and rows are kept
            stolen = await thief.open(**named)
            assert thief.opened_length == 0
            answer = await thief.ask(Replay(stolen, 0, 0, 1))
            assert isinstance(answer, Replayed)
            assert answer.tokens == 0
            await thief.send(Close(stolen, chain(3)))
            await client.send(Close(session, chain(3)))
        assert await client.open(**named)
        assert client.opened_length == 96
        assert node.server.statistics().journal.pages == 3


async def test_what_a_stranger_fills_under_the_names_changes_nothing(serving, plain, hidden_states):
    async with serving() as node:
        client, liar = await node.connect(), await node.connect("liar")
        filled = await liar.open(max_tokens=100, prefix=chain(3))
        await liar.forward(filled, hidden_states(96, 7) * 3, 0)
        await liar.send(Close(filled, chain(3)))
        x = hidden_states(100)
        for known in (0, 96):
            session = await client.open(max_tokens=100, prefix=chain(3))
            assert client.opened_length == known
            got = await client.forward(session, x[known:], known)
            np.testing.assert_allclose(got, plain(node.engine.model, x)[known:], **TOLERANCE)
            await client.send(Close(session, chain(3)))


async def test_names_end_where_others_begin_to_compute_what_comes(serving, hidden_states):
    async with serving() as node:
        client = await node.connect()
        session = await client.open(max_tokens=100, prefix=chain(3))
        await client.forward(session, hidden_states(40), 0)
        assert isinstance(await client.ask(Attach(session, "", unnamed=True)), Attached)
        await client.forward(session, hidden_states(60), 40)
        await client.send(Close(session))
        await client.open(max_tokens=100, prefix=chain(3))
        assert client.opened_length == 32


async def test_the_rows_of_a_fork_that_goes_back_at_once_are_not_kept_under_its_parents_names(
    serving, hidden_states
):
    async with serving() as node:
        client = await node.connect()
        parent = await client.open(max_tokens=64, prefix=chain(2))
        await client.forward(parent, hidden_states(64), 0)
        fork = await client.open(max_tokens=64, parent=parent, parent_tokens=64, journal=True)
        await client.send(Close(parent))
        await client.forward(fork, hidden_states(64, 5), 0)
        await client.send(Close(fork))
        again = await client.open(max_tokens=100, prefix=chain(2), journal=True)
        assert client.opened_length == 64
        journal = node.server.sessions[again].journal
        assert (journal.base, journal.end) == (64, 64)
        assert node.server.statistics().journal.pages == 0


async def test_a_running_session_shares_its_prefix_already(serving, plain, hidden_states):
    async with serving() as node:
        client = await node.connect()
        x, other = hidden_states(70), hidden_states(20, 1)
        first = await client.open(max_tokens=100, prefix=chain(2))
        await client.forward(first, x, 0)
        second = await client.open(max_tokens=100, prefix=chain(2))
        assert client.opened_length == 64
        inputs = {first: np.concatenate([x, hidden_states(20)]), second: np.concatenate([x[:64], other])}
        got = await client.forward(second, other, 64)
        np.testing.assert_allclose(got, plain(node.engine.model, inputs[second])[64:], **TOLERANCE)
        got = await client.forward(first, inputs[first][70:], 70)
        np.testing.assert_allclose(got, plain(node.engine.model, inputs[first])[70:], **TOLERANCE)


async def test_the_answer_is_found_in_the_next_turn(serving, plain, hidden_states):
    async with serving() as node:
        client = await node.connect()
        x = hidden_states(130)
        session = await client.open(max_tokens=130, prefix=chain(1))
        await client.forward(session, x[:40], 0)
        for position in range(40, 100):
            await client.forward(session, x[position : position + 1], position)
        await client.send(Close(session, chain(3)))
        session = await client.open(max_tokens=200, prefix=chain(4))
        assert client.opened_length == 96
        got = await client.forward(session, x[96:], 96)
        np.testing.assert_allclose(got, plain(node.engine.model, x)[96:], **TOLERANCE)


async def test_a_step_below_the_known_prefix_feeds_it_again(serving, plain, hidden_states):
    """The client begins where the hop that knows least of its prefix does."""
    async with serving() as node:
        client = await node.connect()
        x = hidden_states(100)
        session = await client.open(max_tokens=100, prefix=chain(3))
        await client.forward(session, x, 0)
        await client.send(Close(session))
        session = await client.open(max_tokens=100, prefix=chain(3))
        assert client.opened_length == 96
        got = await client.forward(session, x[32:], 32)
        np.testing.assert_allclose(got, plain(node.engine.model, x)[32:], **TOLERANCE)
        session = await client.open(max_tokens=100, prefix=chain(3))  # and it is known to the third
        assert client.opened_length == 96


async def test_something_must_be_left_to_compute(serving, hidden_states):
    async with serving() as node:
        client = await node.connect()
        session = await client.open(max_tokens=96, prefix=chain(3))
        await client.forward(session, hidden_states(96), 0)
        await client.send(Close(session))
        await client.open(max_tokens=96, prefix=chain(3))
        assert client.opened_length == 64


@pytest.mark.parametrize(
    ("change", "prefix_cache"),
    [
        ({"prefix": chain(3, b"other salt")}, True),
        ({"prefix": ()}, True),
        ({"span": Span(0, 3)}, True),
        ({}, False),
    ],
)
async def test_what_is_not_known_is_not_found(serving, hidden_states, change, prefix_cache):
    async with serving(prefix_cache=prefix_cache) as node:
        client = await node.connect()
        assert client.welcome.page_tokens == (32 if prefix_cache else 0)
        session = await client.open(max_tokens=100, prefix=chain(3))
        await client.forward(session, hidden_states(100), 0)
        await client.send(Close(session, chain(3)))
        await client.open(max_tokens=100, **{"prefix": chain(3), **change})
        assert client.opened_length == 0


async def test_pages_that_are_kept_are_no_reason_to_be_busy(serving, hidden_states):
    async with serving(kv_tokens=256) as node:
        client = await node.connect()
        for number in range(3):
            session = await client.open(max_tokens=128, prefix=chain(4, bytes([number])))
            await client.forward(session, hidden_states(128), 0)
            await client.send(Close(session))
        await until(lambda: node.engine.load().sequences == 0)
        assert node.free_tokens == 256
        assert node.engine.load().cached_tokens > 0
        session = await client.open(max_tokens=256)
        await client.forward(session, hidden_states(256), 0)
        load = node.engine.load()
        assert (load.cached_tokens, load.free_tokens) == (0, 0)


# A client may claim anything.


@pytest.mark.parametrize(
    "hashes",
    [
        tuple(os.urandom(32) for _ in range(1024)),
        chain(1) * 1024,
        (*chain(2), *chain(2), *chain(2)),
        tuple(reversed(chain(6))),
    ],
    ids=["junk", "one page 1024 times", "a loop", "backwards"],
)
async def test_hostile_chains_hurt_only_who_sends_them(serving, plain, hidden_states, hashes):
    async with serving() as node:
        good, bad = await node.connect("good"), await node.connect("bad")
        x = hidden_states(80)
        session = await good.open(max_tokens=120, prefix=chain(2))
        await good.forward(session, x, 0)
        for _ in range(4):
            evil = await bad.open(max_tokens=200, prefix=hashes)
            for position in (bad.opened_length, 0, 33):
                await bad.forward(evil, hidden_states(200 - position, 9), position)
            await bad.send(Close(evil, hashes))
            await bad.send(Close(evil, hashes))
        got = await good.forward(session, x[:40], 80)
        both = np.concatenate([x, x[:40]])
        np.testing.assert_allclose(got, plain(node.engine.model, both)[80:], **TOLERANCE)
        again = await good.open(max_tokens=120, prefix=chain(2))
        assert good.opened_length == 64
        got = await good.forward(again, x[64:], 64)
        np.testing.assert_allclose(got, plain(node.engine.model, x)[64:], **TOLERANCE)
        for client in (good, bad):
            client.connection.close()
        await until(lambda: node.engine.load().used_slots == 0)
        assert node.engine.load().reserved_slots == 0


async def test_pages_that_were_never_computed_are_not_kept(serving, hidden_states):
    async with serving() as node:
        client = await node.connect()
        session = await client.open(max_tokens=200, prefix=chain(6))
        await client.forward(session, hidden_states(40), 0)
        await client.send(Close(session, chain(6)))
        await client.open(max_tokens=200, prefix=chain(6))
        assert client.opened_length == 32


# Forks.


@pytest.mark.parametrize("tokens", [0, 1, 31, 32, 33, 40])
@pytest.mark.parametrize("parent_dies", [False, True])
async def test_a_fork_goes_its_own_way(serving, plain, hidden_states, tokens, parent_dies):
    async with serving() as node:
        client = await node.connect()
        x, y = hidden_states(60), hidden_states(60, 1)
        parent = await client.open(max_tokens=80)
        await client.forward(parent, x[:40], 0)
        child = await client.open(max_tokens=80, parent=parent, parent_tokens=tokens)
        assert client.opened_length == tokens
        if parent_dies:
            await client.send(Close(parent))
        both = np.concatenate([x[:tokens], y])
        got = await client.forward(child, y[:5], tokens)
        np.testing.assert_allclose(got, plain(node.engine.model, both)[tokens : tokens + 5], **TOLERANCE)
        if not parent_dies:
            got = await client.forward(parent, x[40:], 40)
            np.testing.assert_allclose(got, plain(node.engine.model, x)[40:], **TOLERANCE)
        got = await client.forward(child, y[5:15], tokens + 5)
        np.testing.assert_allclose(got, plain(node.engine.model, both)[tokens + 5 : tokens + 15], **TOLERANCE)
        client.connection.close()
        await until(lambda: node.engine.load().used_slots == 0)


@pytest.mark.parametrize("seed", range(3))
async def test_a_tree_of_forks_that_write_anywhere(serving, plain, hidden_states, seed):
    """Beams: forks of forks, rollbacks into shared pages, parents that end first."""
    rng = random.Random(seed)
    async with serving(kv_tokens=2048) as node:
        client = await node.connect()
        root = await client.open(max_tokens=96)
        beams = {root: hidden_states(40, seed)}
        await client.forward(root, beams[root], 0)
        for turn in range(40):
            session = rng.choice(list(beams))
            tokens = beams[session]
            action = rng.random()
            if action < 0.3 and len(beams) < 12:
                kept = rng.randrange(len(tokens) + 1)
                child = await client.open(max_tokens=96, parent=session, parent_tokens=kept)
                beams[child] = tokens[:kept]
            elif action < 0.4 and len(beams) > 1:
                del beams[session]
                await client.send(Close(session))
            else:
                position = rng.randint(max(0, len(tokens) - 40), len(tokens))
                new = hidden_states(rng.randint(1, min(20, 96 - position)), 1000 * seed + turn)
                beams[session] = np.concatenate([tokens[:position], new])
                got = await client.forward(session, new, position)
                wanted = plain(node.engine.model, beams[session])[position:]
                np.testing.assert_allclose(got, wanted, **TOLERANCE)
        client.connection.close()
        await until(lambda: node.engine.load().used_slots == 0)
        assert node.engine.load().reserved_slots == 0


async def test_forks_that_cannot_be(serving, hidden_states):
    async with serving() as node:
        client, other = await node.connect("a"), await node.connect("b")
        parent = await client.open(max_tokens=64)
        await client.forward(parent, hidden_states(40), 0)
        cases = [
            (client, {"parent": os.urandom(16)}, ErrorCode.UNKNOWN_SESSION, "not open on this stream"),
            (other, {"parent": parent}, ErrorCode.UNKNOWN_SESSION, "not open on this stream"),
            (client, {"parent": parent, "parent_tokens": 41}, ErrorCode.BAD_STEP, "40 of 41"),
            (client, {"parent": parent, "span": Span(0, 3)}, ErrorCode.UNSUPPORTED, "blocks 0-3"),
            (client, {"parent": parent, "codec": "int8"}, ErrorCode.UNSUPPORTED, "none and none"),
        ]
        for asking, change, code, text in cases:
            answer = await asking.try_open(**change)
            assert isinstance(answer, Refused), change
            assert answer.code is code
            assert text in answer.message
        async with node.stalled():
            await client.send(client.step(parent, hidden_states(8), 36))
            answer = await client.try_open(parent=parent, parent_tokens=37)
            assert isinstance(answer, Refused)
            assert "Await the answers" in answer.hint
            assert isinstance(await client.try_open(parent=parent, parent_tokens=36), Opened)
        assert isinstance(await client.receive(), Result)
        assert node.server.statistics().sessions == 2


async def test_forks_are_bounded_like_other_sessions(serving, hidden_states):
    async with serving(kv_tokens=256) as node:
        client = await node.connect()
        parent = await client.open(max_tokens=128)
        await client.forward(parent, hidden_states(96), 0)
        answers = [await client.try_open(128, parent=parent, parent_tokens=96) for _ in range(6)]
        opened = [isinstance(answer, Opened) for answer in answers]
        assert opened == [True] * 4 + [False] * 2  # three pages shared, one of its own each
        assert isinstance(answers[-1], Busy)
        assert isinstance(await client.ask(Ping(1)), Pong)


async def test_a_duplicate_of_an_open_session_is_no_fork(serving):
    async with serving() as node:
        client = await node.connect()
        session = await client.open()
        answer = await client.ask(Open(session, ALL, 10, "none", "none", parent=os.urandom(16)))
        assert isinstance(answer, ErrorMessage)
        assert answer.code is ErrorCode.DUPLICATE_SESSION
