"""REPLAY: hops are replaced in the middle of an answer, and it goes on as if nothing had happened.

The nodes compute with the native kernels, which give a row the same bits in any chunk: so "as if" means bit
for bit.
"""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from swarm_node.swarm.errors import ErrorCode
from swarm_node.swarm.links.message_stream import Connection
from swarm_node.swarm.protocol.field_types import Downstream, Progress
from swarm_node.swarm.protocol.messages import (
    Hello,
    Open,
    Opened,
    Ping,
    Pong,
    Replay,
    Replayed,
    Result,
    Want,
    Welcome,
    encode,
)
from swarm_node.swarm.protocol.wire import PROTOCOL_ID, encode_frame
from swarm_node.swarm.transport.interface import Stream
from swarm_node.swarm.types import NodeState, Span
from tests.node.chain_swarm import MODEL, ChainSwarm, Hop, rows, stalled, swarm_of, until

PLACES = [("a", Span(0, 1)), ("b", Span(1, 3)), ("c", Span(3, 4))]
SPANS = {"a": Span(0, 4), "b": Span(1, 3), "c": Span(2, 4), "d": Span(0, 4), "e": Span(0, 4)}
ROW = 256
PROMPT, ALL = 40, 60


@pytest.fixture
def swarm(tiny_span):
    def load(span: Span):
        return tiny_span(span, kernels="native")

    return lambda **options: swarm_of(load, SPANS, **options)


@pytest.fixture
def x(hidden_states):
    return hidden_states(ALL)


class Sender:
    """Feeds a route with rows of ``x`` and keeps what comes out of it."""

    def __init__(self, hops: list[Hop], x) -> None:
        self.hops = hops
        self.x = x
        self.number = 0
        self.out: dict[int, bytes] = {}  # by position

    async def send(self, start: int, stop: int, **more) -> int:
        self.number += 1
        await self.hops[0].step(self.number, start, rows(self.x[start:stop]), stop - start, **more)
        return self.number

    async def take(self, number: int) -> None:
        result = await self.hops[-1].result(number)
        for i in range(result.tokens):
            self.out[result.position + i] = bytes(result.payload[i * ROW : (i + 1) * ROW])

    async def push(self, start: int, stop: int) -> None:
        await self.take(await self.send(start, stop))

    async def decode(self, start: int, stop: int) -> None:
        for position in range(start, stop):
            await self.push(position, position + 1)

    def new_numbers(self, tokens: int) -> int:
        """Step numbers for a replay of so many tokens: the first of them."""
        first = self.number + 1
        self.number += tokens + 1
        return first


async def undisturbed(swarm: ChainSwarm, x) -> dict[int, bytes]:
    sender = Sender(await swarm.chain([("d", Span(0, 2)), ("e", Span(2, 4))], peer="other"), x)
    await sender.push(0, PROMPT)
    await sender.decode(PROMPT, len(x))
    for hop in sender.hops:
        await hop.close()
    return sender.out


async def begun(swarm: ChainSwarm, x, stop: int = 50, **more) -> Sender:
    sender = Sender(await swarm.chain(PLACES, **more), x)
    await sender.push(0, PROMPT)
    await sender.decode(PROMPT, stop)
    return sender


async def lose(swarm: ChainSwarm, sender: Sender, node: str = "b") -> None:
    """The middle hop dies, and both its neighbours say so."""
    swarm.network.kill(node)
    assert (await sender.hops[0].error()).code is ErrorCode.DOWNSTREAM_LOST
    assert (await sender.hops[2].error()).code is ErrorCode.UPSTREAM_LOST


async def replacement(swarm: ChainSwarm, node: str, span: Span, upstream: str, downstream: Hop) -> Hop:
    hop = await swarm.hop(node)
    opened = await swarm.open(hop, span, upstream=upstream, downstream=downstream.downstream, journal=True)
    assert isinstance(opened, Opened)
    assert opened.chained
    return hop


async def test_a_replacement_is_fed_by_the_hop_before_it(swarm, x):
    async with swarm() as it:
        wanted = await undisturbed(it, x)
        sender = await begun(it, x)
        first, _, last = sender.hops
        await lose(it, sender)
        new = await replacement(it, "d", Span(1, 3), "a", last)
        assert (await last.attach("d")).length == 50
        replayed = await first.replay(0, 50, sender.new_numbers(50), new)
        assert (replayed.tokens, replayed.payload_bytes) == (50, 50 * ROW)
        assert replayed.took_us > 0
        sender.hops = [first, new, last]
        await sender.decode(50, ALL)
        assert sender.out == wanted
        for hop in sender.hops:
            assert hop.control.messages == []
            await hop.close()
        await until(lambda: not [key for key in it.left_behind if key[0] in "acde"])


async def test_two_new_hops_are_fed_at_the_same_time(swarm, x):
    """The second replay asks for rows that are not computed yet, and live steps need not wait either."""
    async with swarm() as it:
        wanted = await undisturbed(it, x)
        sender = await begun(it, x)
        first, _, last = sender.hops
        await lose(it, sender)
        second = await it.hop("e")
        one = await it.hop("d")
        await asyncio.gather(
            it.open(one, Span(1, 2), upstream="a", downstream=second.downstream, journal=True),
            it.open(second, Span(2, 3), upstream="d", downstream=last.downstream, journal=True),
            last.attach("e"),
        )
        await one.start_replay(0, 50, sender.new_numbers(50), second)
        await first.start_replay(0, 50, sender.new_numbers(50), one)
        sender.hops = [first, one, second, last]
        numbers = [await sender.send(position, position + 1) for position in range(50, ALL)]
        for number in numbers:
            await sender.take(number)
        assert sender.out == wanted
        for hop in (first, one):
            assert (await hop.control.take(Replayed, hop.session)).tokens == 50
        assert all(hop.control.messages == [] for hop in sender.hops)


async def test_rows_that_come_later_are_sent_when_they_are_computed(swarm, x):
    async with swarm() as it:
        wanted = await undisturbed(it, x)
        first, last = await it.hop("a"), await it.hop("b")
        await it.open(first, Span(0, 2), journal=True)
        await it.open(last, Span(2, 3), upstream="a")
        await first.start_replay(0, 30, 100, last)
        for number, start in enumerate(range(0, 30, 6)):
            await first.step(number, start, rows(x[start : start + 6]), 6)
        replayed = await first.control.take(Replayed)
        assert replayed.tokens == 30
        assert last.control.messages == []  # they were held
        session = it.servers["b"].sessions[last.session]
        assert session.sequence.length == 30
        await first.step(200, 30, rows(x[30:]), 30)
        assert (await last.result(200)).position == 30
        assert len(wanted) == ALL


async def test_a_replay_to_the_client_makes_the_edge_a_relayed_one(swarm, x):
    async with swarm() as it:
        wanted = await undisturbed(it, x)
        sender = await begun(it, x)
        first, middle, _ = sender.hops
        number = sender.new_numbers(50)
        replayed = await first.replay(0, 50, number, None)
        assert (replayed.tokens, replayed.payload_bytes, replayed.link_us) == (50, 50 * ROW, 0)
        sent = [message for message in first.control.of(Result) if message.session == first.session]
        assert sum(result.tokens for result in sent) == 50
        assert [result.step for result in sent] == list(range(number, number + len(sent)))
        first.control.messages.clear()
        # The middle hop goes on from the client's hand.
        await middle.attach("")
        for position in range(50, ALL):
            step = await sender.send(position, position + 1)
            payload = bytes((await first.result(step)).payload)
            await middle.step(step, position, payload, 1)
            await sender.take(step)
        assert sender.out == wanted
        # And what came as RESULTs is what the middle hop had got.
        again = await it.hop("d")
        await it.open(again, Span(1, 4))
        for result in sent:
            await again.step(result.step, result.position, bytes(result.payload), result.tokens)
            got = await again.result(result.step)
            expected = [wanted[result.position + i] for i in range(result.tokens)]
            assert bytes(got.payload) == b"".join(expected)


async def test_nothing_to_send_just_changes_the_next_hop(swarm, x):
    async with swarm() as it:
        wanted = await undisturbed(it, x)
        sender = await begun(it, x)
        first, middle, _ = sender.hops
        await middle.attach("")
        assert (await first.replay(50, 50, sender.new_numbers(0), None)).tokens == 0
        step = await sender.send(50, 51)
        await middle.step(step, 50, bytes((await first.result(step)).payload), 1)
        await sender.take(step)
        await middle.attach("a")
        assert (await first.replay(51, 51, sender.new_numbers(0), middle)).tokens == 0
        await sender.decode(51, ALL)
        assert sender.out == wanted


async def test_what_was_under_way_before_a_replay_is_not_sent_on(swarm, x):
    async with swarm() as it:
        wanted = await undisturbed(it, x)
        sender = await begun(it, x)
        first, _, last = sender.hops
        await lose(it, sender)
        for position in range(50, 55):
            await sender.send(position, position + 1)  # nobody gets them
        new = await replacement(it, "d", Span(1, 3), "a", last)
        await last.attach("d")
        await first.start_replay(0, 50, sender.new_numbers(50), new)
        sender.hops = [first, new, last]
        await sender.decode(50, ALL)  # the first of these steps rolls ``first`` back
        assert sender.out == wanted
        await first.control.take(Replayed)
        assert all(hop.control.messages == [] for hop in sender.hops)


async def test_a_rollback_cuts_the_journal(swarm, x, hidden_states):
    async with swarm() as it:
        wanted = await undisturbed(it, x)
        sender = await begun(it, x, stop=45)
        sender.x = hidden_states(ALL, 5)
        await sender.decode(45, 55)  # a wrong turn
        sender.x = x
        await sender.decode(45, 50)
        journal = it.servers["a"].sessions[sender.hops[0].session].journal
        assert (journal.base, journal.end) == (0, 50)
        first, _, last = sender.hops
        await lose(it, sender)
        new = await replacement(it, "d", Span(1, 3), "a", last)
        await last.attach("d")
        await first.replay(0, 50, sender.new_numbers(50), new)
        sender.hops = [first, new, last]
        await sender.decode(50, ALL)
        assert sender.out == wanted


async def test_a_replacement_that_dies_too_is_told_once(swarm, x):
    async with swarm() as it:
        wanted = await undisturbed(it, x)
        sender = await begun(it, x)
        first, _, last = sender.hops
        await lose(it, sender)
        new = await replacement(it, "d", Span(1, 3), "a", last)
        await last.attach("d")
        output = it.servers["a"].sessions[first.session].output
        async with stalled(it.servers["d"].engine):
            await first.start_replay(0, 50, sender.new_numbers(50), new)
            await until(lambda: output.is_busy and output._replayer.waiting_since is not None)
            it.network.kill("d")
        assert (await first.error()).code is ErrorCode.DOWNSTREAM_LOST
        newer = await replacement(it, "e", Span(1, 3), "a", last)
        await last.attach("e")
        assert (await first.replay(0, 50, sender.new_numbers(50), newer)).tokens == 50
        sender.hops = [first, newer, last]
        await sender.decode(50, ALL)
        assert sender.out == wanted
        assert not first.control.of(Replayed)


@pytest.mark.parametrize("knows", [False, True])
async def test_a_next_hop_that_answers_ping_and_computes_nothing_is_told(swarm, x, knows):
    """It knows nothing of the session, or denies the rows that it was sent."""

    async def mute(stream: Stream) -> None:
        connection = Connection(stream)
        while True:
            message = await connection.receive()
            if isinstance(message, Hello):
                blocks = MODEL.n_blocks
                await connection.send(Welcome(1, MODEL.digest, Span(1, 3), ("none",), 2**20, "", 64, blocks))
            elif isinstance(message, Ping):
                told = tuple(Progress(session, 0, 0, 0, False) for session in message.about) if knows else ()
                await connection.send(Pong(message.nonce, 0, 0, 0, NodeState.ONLINE, tells=told))

    async with swarm() as it:
        sender = await begun(it, x)
        first = sender.hops[0]
        await lose(it, sender)
        dead = await it.hop("d")
        await it.network.transport("d").serve(PROTOCOL_ID, mute)
        await first.start_replay(0, 50, sender.new_numbers(50), dead)
        error = await first.error()
        assert error.code is ErrorCode.DOWNSTREAM_LOST
        assert ("does not have a step" if knows else "does not know a session") in error.message


async def test_a_second_replay_cancels_the_first(swarm, x):
    async with swarm() as it:
        wanted = await undisturbed(it, x)
        sender = await begun(it, x)
        first, _, last = sender.hops
        await lose(it, sender)
        it.network.partition("a", "d")
        dead = await it.hop("d")
        await it.open(dead, Span(1, 3), upstream="a")
        await first.start_replay(0, 50, sender.new_numbers(50), dead)
        new = await replacement(it, "e", Span(1, 3), "a", last)
        await last.attach("e")
        await first.start_replay(0, 50, sender.new_numbers(50), new)
        assert (await first.control.take(Replayed)).tokens == 50
        sender.hops = [first, new, last]
        await sender.decode(50, ALL)
        assert sender.out == wanted
        assert first.control.messages == []
        it.network.heal()


@pytest.mark.parametrize("target", ["no such session", "no such peer"])
async def test_a_replay_to_nobody_leaves_the_session_without_a_next_hop(swarm, x, target):
    async with swarm() as it:
        sender = await begun(it, x)
        first, middle, _ = sender.hops
        peer = "d" if target == "no such session" else "nobody"
        nobody = Hop(peer, first.control, b"n" * 16)
        step = sender.new_numbers(50)
        await first.start_replay(0, 50, step, nobody)
        lost = await first.error()
        assert (lost.code, lost.step) == (ErrorCode.DOWNSTREAM_LOST, step)
        await sender.send(50, 51)
        await until(lambda: it.servers["a"].sessions[first.session].journal.end == 51)
        assert middle.control.messages == []
        # The old next hop is still there, and may be named again.
        assert (await first.replay(50, 50, sender.new_numbers(0), middle)).tokens == 0
        await sender.decode(50, 55)
        assert all(hop.control.messages == [] for hop in sender.hops)


# Journals that do not reach back.


async def test_a_journal_beyond_the_budget_is_lost(swarm, x):
    async with swarm(journal_bytes=64 * ROW) as it:
        sender = await begun(it, x)
        journal = it.servers["a"].statistics().journal
        assert (journal.used, journal.budget, journal.sessions) == (50 * ROW, 64 * ROW, 1)
        other = await it.hop("a", "other")
        await it.open(other, Span(0, 1), journal=True)
        await other.step(1, 0, rows(x[:20]), 20)
        await other.result(1)
        journal = it.servers["a"].statistics().journal
        assert (journal.used, journal.sessions, journal.lost) == (20 * ROW, 1, 1)
        first, middle, _ = sender.hops
        await first.start_replay(0, 50, sender.new_numbers(50), middle)
        lost = await first.error()
        assert (lost.code, lost.retriable) == (ErrorCode.JOURNAL_LOST, False)
        assert "--journal-mib" in lost.message
        await first.replay(50, 50, sender.new_numbers(0), middle)
        await sender.decode(50, ALL)


@pytest.mark.parametrize("why", ["not asked for", "none here"])
async def test_without_a_journal_nothing_can_be_replayed(swarm, x, why):
    async with swarm(journal_bytes=0 if why == "none here" else 10**6) as it:
        hop = await it.hop("a")
        await it.open(hop, Span(0, 1), journal=why == "none here")
        await hop.step(1, 0, rows(x[:5]), 5)
        await hop.result(1)
        await hop.start_replay(0, 5, 2, None)
        lost = await hop.error()
        assert (lost.code, lost.step) == (ErrorCode.JOURNAL_LOST, 2)
        await hop.replay(5, 5, 3, None)


def hashes(count: int) -> tuple[bytes, ...]:
    return tuple(hashlib.blake2b(bytes([i]), digest_size=32).digest() for i in range(count))


async def test_a_known_prefix_has_its_journal(swarm, x):
    async with swarm() as it:
        prompt, reused = x[:40], []
        for turn in range(2):
            hop = await it.hop("a")
            opened = await it.open(hop, Span(0, 1), journal=True, prefix=hashes(1))
            assert opened.length == 32 * turn
            await hop.step(1, opened.length, rows(prompt[opened.length :]), 40 - opened.length)
            await hop.result(1)
            assert (await hop.replay(0, 40, 2, None)).tokens == 40
            reused.append(b"".join(bytes(result.payload) for result in hop.control.of(Result)))
            await hop.close(hashes(1))
            await until(lambda: it.servers["a"].engine.free_tokens == 1024)
        assert reused[0] == reused[1]
        assert it.servers["a"].statistics().journal.pages == 1


async def test_a_prefix_whose_rows_are_gone_begins_a_journal_behind_it(swarm, x):
    async with swarm(journal_bytes=60 * ROW) as it:
        hop = await it.hop("a")
        await it.open(hop, Span(0, 1), journal=True)
        await hop.step(1, 0, rows(x[:40]), 40)
        await hop.result(1)
        await hop.close(hashes(1))
        await until(lambda: it.servers["a"].statistics().journal.pages == 1)
        other = await it.hop("a")
        await it.open(other, Span(0, 1), journal=True)
        await other.step(1, 0, rows(x[:40]), 40)
        await other.result(1)
        assert it.servers["a"].statistics().journal.pages == 0
        await other.close()
        again = await it.hop("a")
        opened = await it.open(again, Span(0, 1), journal=True, prefix=hashes(1))
        assert opened.length == 32
        await again.step(1, 32, rows(x[32:40]), 8)
        await again.result(1)
        await again.start_replay(0, 40, 2, None)
        lost = await again.error()
        assert lost.code is ErrorCode.JOURNAL_LOST
        assert "position 32" in lost.message
        assert (await again.replay(32, 40, 3, None)).tokens == 8


async def test_a_fork_has_its_parents_journal(swarm, x):
    async with swarm() as it:
        parent = await it.hop("a")
        await it.open(parent, Span(0, 1), journal=True)
        await parent.step(1, 0, rows(x[:20]), 20)
        sent = bytes((await parent.result(1)).payload)
        child = Hop("a", parent.control)
        await it.open(child, Span(0, 1), journal=True, parent=parent.session, parent_tokens=15)
        await child.replay(0, 15, 1, None)
        assert bytes((await child.result(1)).payload) == sent[: 15 * ROW]


# Steps that are held.


async def test_a_held_step_goes_no_further(swarm, x):
    async with swarm() as it:
        wanted = await undisturbed(it, x)
        sender = Sender(await it.chain(PLACES), x)
        first, middle, _ = sender.hops
        number = await sender.send(0, PROMPT, hold=True, want=Want.ALL)
        result = await first.result(number)
        assert (result.position, result.tokens, result.payload) == (PROMPT, 0, b"")
        assert it.servers["b"].engine.load().tokens == 0
        assert (await first.replay(0, PROMPT, sender.new_numbers(PROMPT), middle)).tokens == PROMPT
        assert (await middle.replay(0, PROMPT, sender.new_numbers(PROMPT), sender.hops[2])).tokens == PROMPT
        await sender.decode(PROMPT, ALL)
        assert sender.out == {position: wanted[position] for position in range(PROMPT, ALL)}


async def test_a_held_step_that_fails_is_told_to_both(swarm, x):
    async with swarm() as it:
        sender = await begun(it, x, max_tokens=128)
        first, _, _ = sender.hops
        small = await it.hop("d")
        await it.open(small, Span(1, 3), upstream="a", max_tokens=32)
        await first.start_replay(0, 50, sender.new_numbers(50), small)
        assert (await small.error()).code is ErrorCode.CONTEXT_EXCEEDED
        lost = await first.error()
        assert lost.code is ErrorCode.DOWNSTREAM_LOST
        assert "reserved 32" in lost.message


async def test_a_replay_that_comes_before_opened(swarm, x):
    async with swarm() as it:
        it.network.partition("a", "b")
        first, last = await it.hop("a"), await it.hop("d")
        await it.open(last, Span(1, 4), upstream="a")
        opening = asyncio.ensure_future(
            it.open(first, Span(0, 1), downstream=Downstream("b", b"b" * 16), journal=True)
        )
        await until(lambda: bool(it.servers["a"].sessions))
        await first.start_replay(0, 0, 1, last)
        opened = await opening
        assert not opened.chained
        assert (await first.control.take(Replayed)).tokens == 0
        await first.step(1, 0, rows(x[:3]), 3)
        assert (await last.result(1)).tokens == 3
        it.network.heal()


async def test_a_replay_in_the_same_breath_as_open_leaves_no_question_open(swarm, x):
    async with swarm() as it:
        it.network.partition("a", "b")
        first, last = await it.hop("a"), await it.hop("d")
        await it.open(last, Span(1, 4), upstream="a")
        opening = Open(
            first.session,
            Span(0, 1),
            128,
            "none",
            "none",
            downstream=Downstream("b", b"b" * 16),
            journal=True,
        )
        request = Replay(first.session, 0, 0, 1, last.downstream)
        frames = [*encode_frame(encode(opening)), *encode_frame(encode(request))]
        first.control.connection.stream.write([b"".join(frames)])
        assert not (await first.control.take(Opened)).chained
        assert (await first.control.take(Replayed)).tokens == 0
        await first.step(1, 0, rows(x[:3]), 3)
        assert (await last.result(1)).tokens == 3
        it.network.heal()


async def test_a_session_that_is_replayed_does_not_rest(swarm, x):
    async with swarm() as it:
        first, last = await it.hop("a"), await it.hop("d")
        await it.open(first, Span(0, 2), journal=True)
        await it.open(last, Span(2, 4), upstream="a")
        await first.step(1, 0, rows(x[:30]), 30)
        await first.result(1)
        session = it.servers["a"].sessions[first.session]
        session.last_used = rested = it.servers["a"].sessions.now() - 3600.0
        await first.replay(0, 30, 10, last)
        assert session.last_used > rested + 3000.0


async def test_a_step_that_goes_back_during_a_replay_cuts_it_short(swarm, x):
    async with swarm() as it:
        wanted = await undisturbed(it, x)
        first, last = await it.hop("a"), await it.hop("d")
        await it.open(first, Span(0, 2), journal=True)
        await it.open(last, Span(2, 4), upstream="a")
        await first.step(1, 0, rows(x[:30]), 30)
        await first.result(1)
        await first.start_replay(0, 50, 10, last)
        session = it.servers["d"].sessions[last.session]
        await until(lambda: session.sequence.answered == 30)
        assert not first.control.of(Replayed)  # 20 rows are still to come
        await first.step(100, 20, rows(x[20:]), 40)
        assert (await first.control.take(Replayed)).tokens == 30
        result = await last.result(100)
        assert (result.position, result.tokens) == (20, 40)
        assert bytes(result.payload) == b"".join(wanted[position] for position in range(20, ALL))
