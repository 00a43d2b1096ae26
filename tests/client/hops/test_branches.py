"""A session's steps with branches, over chained and relayed hops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from swarm_node.client.session.swarm_session import SwarmSession
from swarm_node.swarm.errors import LocalProtocolError
from tests.client.session.test_fork import PROMPT, new_session, states
from tests.doubles.fake_swarm import FakeSwarm, settle

STEP, BRANCHES = list(b"abc"), ((0, b"x"), (2, b"yz"), (3, b"w"))


def right(before: Sequence[int], step: Sequence[int], branches=BRANCHES) -> np.ndarray:
    found = [states([*before, *step])[len(before) :]]
    found += [states([*before, *step[:row], *ids])[-len(ids) :] for row, ids in branches]
    return np.concatenate(found)


async def opened(swarm: FakeSwarm, **more) -> SwarmSession:
    await swarm.start()
    session = new_session(swarm, **more)
    await session.append(PROMPT)
    return session


@pytest.mark.parametrize("chain", [True, False], ids=["chained", "relayed"])
async def test_rows_of_branches_come_behind_those_of_the_step(chain: bool) -> None:
    swarm = FakeSwarm(a="0-1", b="2-3", c="4-5")
    session = await opened(swarm, chain=chain)
    assert session.takes_branches
    session.send(STEP, branches=BRANCHES)
    session.send(b"de")
    session.send(b"f", branches=((1, b"g"),))
    held = [*PROMPT, *STEP]
    assert np.array_equal(await session.receive(), right(PROMPT, STEP))
    assert np.array_equal(await session.receive(), right(held, b"de", ()))
    assert np.array_equal(await session.receive(), right([*held, *b"de"], b"f", ((1, b"g"),)))
    assert session.length == len(PROMPT) + 6
    session.rollback(len(PROMPT) + 2)
    session.send(b"q", branches=((0, b"r"),))
    assert np.array_equal(await session.receive(), right([*PROMPT, *b"ab"], b"q", ((0, b"r"),)))
    more = await session.append(b"end")
    assert np.array_equal(more, states([*PROMPT, *b"abq", *b"end"])[-1:])
    session.close()
    await settle()


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("chain", [True, False], ids=["chained", "relayed"])
async def test_a_hop_without_room_leaves_them_out(chain: bool, number: int) -> None:
    swarm = FakeSwarm(a="0-1", b="2-3", c="4-5")
    session = await opened(swarm, chain=chain)
    swarm.nodes["abc"[number]].engine.memory.scratch.take = lambda slots: None
    session.send(STEP, branches=BRANCHES)
    session.send(b"d")
    assert np.array_equal(await session.receive(), right(PROMPT, STEP, ()))
    assert np.array_equal(await session.receive(), right([*PROMPT, *STEP], b"d", ()))
    assert not session.repaired
    session.close()
    await settle()


async def test_a_route_with_a_hop_that_does_not_know_them_gets_none() -> None:
    swarm = FakeSwarm(a="0-2", b="3-5")
    session = await opened(swarm)
    assert session._session is not None
    session._session.hops[1].features = ()
    assert not session.takes_branches
    session.send(STEP, branches=BRANCHES)
    assert np.array_equal(await session.receive(), right(PROMPT, STEP, ()))
    assert not any(step.branches for node in swarm.nodes.values() for step in node.steps)
    session.close()
    await settle()


async def test_after_a_repair_steps_are_sent_again_without_them() -> None:
    swarm = FakeSwarm(a="0-2", b="3-5", spare="3-5")
    for name, ms in (("a", 1.0), ("b", 1.0), ("spare", 50.0)):
        swarm.announce(name, decode_ms_per_block=ms)
    session = await opened(swarm)
    used = session.route.hops[1].peer_id
    session.send(STEP, branches=BRANCHES)
    assert np.array_equal(await session.receive(), right(PROMPT, STEP))
    swarm.nodes[used].die()
    swarm.network.kill(used)
    session.send(b"d", branches=((1, b"e"),))
    session.send(b"f", branches=((1, b"g"),))
    held = [*PROMPT, *STEP]
    assert np.array_equal(await session.receive(), right(held, b"d", ()))
    assert np.array_equal(await session.receive(), right([*held, *b"d"], b"f", ()))
    assert [repair.kind for repair in session.repaired]
    session.send(b"h", branches=((1, b"i"),))
    assert np.array_equal(await session.receive(), right([*held, *b"df"], b"h", ((1, b"i"),)))
    session.close()
    await settle()


async def test_more_than_hops_compute_is_our_own_fault() -> None:
    session = await opened(FakeSwarm(a="0-5"))
    with pytest.raises(LocalProtocolError, match="there may be"):
        session.send(b"a", branches=((0, b"x" * 40), (0, b"x" * 40)))
    session.close()
    await settle()


async def test_rows_of_another_count_are_a_hops_fault() -> None:
    """All of them, or the step's own."""
    swarm = FakeSwarm(a="0-2", b="3-5", spare="3-5")
    for name, ms in (("a", 1.0), ("b", 1.0), ("spare", 50.0)):
        swarm.announce(name, decode_ms_per_block=ms)
    session = await opened(swarm, chain=False)
    liar = swarm.nodes[session.route.hops[1].peer_id]
    engine = liar.engine
    submit = engine.submit

    def fewer(job) -> None:
        if job.branches:
            job.payload, job.branches = memoryview(job.payload)[: len(job.payload) // 7 * 4], ((0, 1),)
        submit(job)

    engine.submit = fewer
    session.send(STEP, branches=BRANCHES)
    assert np.array_equal(await session.receive(), right(PROMPT, STEP, ()))
    assert len(session.repaired) == 1
    session.close()
    await settle()
