"""Steps with branches, over nodes that send them on to each other."""

from __future__ import annotations

import numpy as np
import pytest

from swarm_node.node.limits.quotas import Limits
from swarm_node.node.sessions.step_result import StepResult
from swarm_node.swarm.codecs.kinds import NONE
from swarm_node.swarm.errors import ErrorCode
from swarm_node.swarm.protocol.branches import MAX_COMPUTED_ROWS
from swarm_node.swarm.protocol.messages import Result, Step, Want
from swarm_node.swarm.types import Span
from tests.node.chain_swarm import Hop, rows, swarm_of, until

PLACES = [("a", Span(0, 1)), ("b", Span(1, 3)), ("c", Span(3, 4))]
SPANS = {"a": Span(0, 2), "b": Span(1, 3), "c": Span(2, 4), "d": Span(0, 4)}
BRANCHES = ((0, 1), (2, 2), (3, 1))
"""Behind three rows."""


@pytest.fixture
def swarm(tiny_span):
    """``async with swarm() as it``: four nodes."""
    return lambda **options: swarm_of(tiny_span, SPANS, **options)


async def push(hops: list[Hop], number: int, position: int, x: np.ndarray, branches=(), **more) -> Result:
    await hops[0].step(number, position, rows(x), len(x), branches=branches, **more)
    return await hops[-1].result(number)


def lines(x: np.ndarray, branches=BRANCHES, chain: int = 3) -> list[np.ndarray]:
    """What each branch of a step is fed, its own rows last."""
    found, at = [], chain
    for row, count in branches:
        found.append(np.concatenate([x[:row], x[at : at + count]]))
        at += count
    return found


async def alone(hops: list[Hop], start: int, x: np.ndarray, position: int) -> np.ndarray:
    """The rows of ``x`` at ``position``, as ordinary steps that take back what was there."""
    result = await push(hops, start, position, x)
    return NONE.decode(result.payload, result.tokens, 64)


@pytest.mark.parametrize("places", [PLACES, [("d", Span(0, 4))]], ids=["chained", "one hop"])
async def test_branches_go_through_a_chain(swarm, hidden_states, places):
    async with swarm() as it:
        hops, others = await it.chain(places), await it.chain(places)
        prompt, x, after = hidden_states(29), hidden_states(7, 3), hidden_states(4, 5)
        for each in (hops, others):
            await push(each, 1, 0, prompt)
        result = await push(hops, 2, 29, x, BRANCHES)
        assert (result.position, result.tokens) == (29, 7)
        got = NONE.decode(result.payload, 7, 64)
        assert np.array_equal(got[:3], await alone(others, 2, x[:3], 29))
        at = 3
        for number, line in enumerate(lines(x), 3):
            own = len(line) - (BRANCHES[number - 3][0])
            assert np.array_equal(got[at : at + own], (await alone(others, number, line, 29))[-own:])
            at += own
        await push(others, 9, 29, x[:3])
        assert np.array_equal(await alone(hops, 10, after, 32), await alone(others, 10, after, 32))
        for hop in hops[:-1]:
            assert it.servers[hop.node].sessions[hop.session].journal.end == 36
        for server in it.servers.values():
            assert server.engine.memory.scratch.take(0) is not None


@pytest.mark.parametrize(
    ("why", "number"),
    [("no room", 0), ("no room", 1), ("no room", 2), ("not understood", 1), ("not understood", 2)],
)
async def test_a_hop_may_leave_them_out(swarm, hidden_states, why, number):
    """Where it has no room, or the hop behind it does not know them: the step itself is computed."""
    async with swarm() as it:
        hops = await it.chain(PLACES)
        prompt, x = hidden_states(29), hidden_states(7, 3)
        await push(hops, 1, 0, prompt)
        if why == "no room":
            it.servers[hops[number].node].engine.memory.scratch.take = lambda slots: None
        else:
            before = it.servers[hops[number - 1].node]
            (link,) = before.next_hops._hops.values()
            link.features = ()
        result = await push(hops, 2, 29, x, BRANCHES)
        assert (result.position, result.tokens) == (29, 3)
        assert bytes(result.payload) == rows(await alone(hops, 3, x[:3], 29))


@pytest.mark.parametrize("want", [Want.LAST, Want.NOTHING])
async def test_who_wants_the_last_row_gets_the_steps(swarm, hidden_states, want):
    async with swarm() as it:
        hops, x = await it.chain(PLACES), hidden_states(7)
        result = await push(hops, 1, 0, x, BRANCHES, want=want)
        assert (result.position, result.tokens) == ((2, 1) if want is Want.LAST else (3, 0))
        if want is Want.LAST:
            assert bytes(result.payload) == rows((await alone(hops, 2, x[:3], 0))[-1:])


async def test_too_many_rows_cost_only_their_session(swarm, hidden_states):
    async with swarm() as it:
        hops, others = await it.chain(PLACES), await it.chain(PLACES)
        x = hidden_states(12)
        for number, (chain, branches) in enumerate([(3, ((3, 1),) * 16), (9, ((0, 1),))], 1):
            step = np.concatenate([x, x])[: chain + sum(count for _, count in branches)]
            await hops[0].step(number, 0, rows(step), len(step), branches=branches)
            error = await hops[0].error(number)
            assert error.code is ErrorCode.BAD_STEP
            assert "there may be" in error.message
        assert MAX_COMPUTED_ROWS < 3 + 16 * 4
        assert (await push(hops, 3, 0, x[:7], BRANCHES)).tokens == 7
        assert (await push(others, 1, 0, x)).tokens == 12


async def test_rows_that_are_computed_again_count(swarm, hidden_states):
    """A peer that has much waiting is not taken more steps from, whatever its payloads are."""
    async with swarm(limits=Limits()) as it:
        hop = await it.hop("d")
        await it.open(hop, Span(0, 4))
        server = it.servers["d"]
        x = hidden_states(7)
        session = server.sessions[hop.session]
        counted = []
        queue = server.ledger.queue
        server.ledger.queue = lambda account, tokens, size: (
            counted.append(tokens),
            queue(account, tokens, size),
        )
        await hop.step(1, 0, rows(x), 7, branches=BRANCHES)
        assert (await hop.result(1)).tokens == 7
        assert counted[0] == 3 + 1 + 4 + 4
        await until(lambda: session.queued_tokens == 0)


def result_of(want: Want, payload: bytes = b"aabbccdd", branches=((1, 1), (2, 1))) -> StepResult:
    return StepResult(5, 10, 4, want, 0, payload, (), 1, 2, 3, 1, branches=branches)


def test_a_result_without_its_branches():
    cut = result_of(Want.ALL).without_branches()
    assert (cut.tokens, bytes(cut.payload), cut.branches) == (2, b"aabb", ())
    sent = result_of(Want.ALL).as_step(b"s" * 16)
    assert isinstance(sent, Step)
    assert (sent.tokens, sent.branches, sent.payload) == (4, ((1, 1), (2, 1)), b"aabbccdd")
    wanted = {Want.ALL: (10, 4, b"aabbccdd"), Want.LAST: (11, 1, b"bb"), Want.NOTHING: (12, 0, b"")}
    for want, right in wanted.items():
        told = result_of(want).as_result(b"s" * 16)
        assert (told.position, told.tokens, bytes(told.payload)) == right
    nothing = StepResult(5, 12, 0, Want.NOTHING, 0, b"", (), 1, 2, 3, 1).as_result(b"s" * 16)
    assert (nothing.position, nothing.tokens, nothing.payload) == (12, 0, b"")
