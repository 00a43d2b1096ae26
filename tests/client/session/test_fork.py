"""Forks of a session over chained and relayed hops, and what takes their place where a hop refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from swarm_node.client.hops.edge_codecs import EdgeCodecs
from swarm_node.client.hops.plan import RouteSettings, SessionSettings
from swarm_node.client.routing.prefix import PrefixKey
from swarm_node.client.routing.route_finder import Need
from swarm_node.client.routing.route_wait import WaitLimits
from swarm_node.client.session.scout import Scout
from swarm_node.client.session.swarm_session import SwarmSession
from swarm_node.swarm.errors import ErrorCode, LocalProtocolError, StreamClosedError
from swarm_node.swarm.links.pool import LinkPool
from swarm_node.swarm.protocol.messages import Refused, Want
from swarm_node.swarm.types import ModelRef
from tests.doubles.fake_swarm import BOUNDARIES, FAST, N_BLOCKS, FakeSwarm, ToyHead, run_block, settle
from tests.doubles.virtual_time import in_virtual_time

PROMPT = list(b"A prompt of more than one page of tokens, or of two of them, whichever it is.")
HEAD = ToyHead()


def states(ids: Sequence[int]) -> np.ndarray:
    """(tokens, hidden) after all blocks, computed here."""
    x = HEAD.embed(ids)
    for block in range(N_BLOCKS):
        x = run_block(block, x, [])
    return x


def new_session(
    swarm: FakeSwarm, *, chain: bool = True, max_tokens: int = 200, salt: bytes | None = None
) -> SwarmSession:
    router = swarm.router()
    model: ModelRef = router.model
    links = LinkPool(swarm.network.transport("client"), model, patience=FAST)
    return SwarmSession(
        HEAD,
        links,
        router,
        Scout(links, router, HEAD.embed, "none", BOUNDARIES),
        RouteSettings(
            SessionSettings(BOUNDARIES, max_tokens),
            EdgeCodecs("none"),
            router if chain else None,
            prefix=PrefixKey(salt, model.digest) if salt is not None else None,
        ),
        Need(max_tokens, len(PROMPT)),
        limits=WaitLimits(0.0, 1.0, 1.0),
    )


async def check(session: SwarmSession, ids: list[int], more: Sequence[int]) -> list[int]:
    """Append ``more`` to a session of ``ids``; all it holds."""
    hidden = await session.append(more, want=Want.ALL)
    ids = [*ids, *more]
    assert np.array_equal(hidden, states(ids)[-len(more) :])
    assert session.length == len(ids)
    return ids


async def started() -> FakeSwarm:
    return await FakeSwarm(a="0-1", b="2-3", c="4-5").start()


@pytest.mark.parametrize("chain", [True, False])
@in_virtual_time
async def test_a_fork_goes_its_own_way(chain: bool) -> None:
    swarm = await started()
    parent = new_session(swarm, chain=chain)
    await check(parent, [], PROMPT)
    forks = [await parent.fork() for _ in range(2)]
    mine = await check(parent, PROMPT, b"one")
    others = [await check(fork, PROMPT, text) for fork, text in zip(forks, (b"two", b"3"), strict=True)]
    grandchild = await forks[0].fork(max_tokens=300)
    forks[0].close(keep=False)
    await check(grandchild, others[0], b"four")
    await check(forks[1], others[1], b"five")
    await check(parent, mine, b"six")
    for node in swarm.nodes.values():
        opens = [message for message in node.opens if message.parent is not None]
        assert [message.parent_tokens for message in opens] == [len(PROMPT)] * 2 + [len(others[0])]
        assert opens[-1].max_tokens == 300
        assert sum(step.tokens for step in node.steps) == len(PROMPT) + len(b"onetwo3fourfivesix")
        chained = [message.downstream is not None for message in opens]
        assert chained == [chain and node.peer_id != "c"] * 3
    for session in (parent, forks[1], grandchild):
        session.close()
    await settle()
    assert not swarm.open_sessions


@in_virtual_time
async def test_a_fork_after_going_back() -> None:
    """The hops have not heard of the rollback yet."""
    swarm = await started()
    parent = new_session(swarm)
    await check(parent, [], PROMPT)
    parent.rollback(40)
    fork = await parent.fork()
    await check(fork, PROMPT[:40], b"something else")
    await check(parent, PROMPT[:40], b"and this")
    fork.rollback(10)
    await check(fork, PROMPT[:10], b"again")
    assert all(open_.parent_tokens in (0, 40) for node in swarm.nodes.values() for open_ in node.opens)


@in_virtual_time
async def test_a_fork_of_nothing() -> None:
    swarm = await started()
    fork = await new_session(swarm).fork()
    await check(fork, [], PROMPT)


@pytest.mark.parametrize("peer", "abc")
@in_virtual_time
async def test_a_fork_that_one_hop_refuses_is_fed_again(peer: str) -> None:
    swarm = await started()
    parent = new_session(swarm)
    await check(parent, [], PROMPT)
    behaviour = swarm.nodes[peer].behaviour
    behaviour.refuse = Refused(b"", ErrorCode.UNSUPPORTED, "no forks here")
    fork = await parent.fork()
    behaviour.refuse = None
    await settle()
    assert len(swarm.nodes["a"].open_sessions) == 1  # the others' are closed
    await check(fork, PROMPT, b"!")
    await check(parent, PROMPT, b"?")
    assert fork.repaired == parent.repaired == []


@in_virtual_time
async def test_a_hop_that_holds_something_else_is_not_believed() -> None:
    swarm = await started()
    parent = new_session(swarm)
    await check(parent, [], PROMPT)
    swarm.nodes["b"].behaviour.opened_length = 3
    fork = await parent.fork()
    swarm.nodes["b"].behaviour.opened_length = None
    await check(fork, PROMPT, b"!")


@pytest.mark.parametrize("peer", "abc")
@in_virtual_time
async def test_a_fork_of_a_session_whose_hop_has_died(peer: str) -> None:
    swarm = await started()
    parent = new_session(swarm)
    await check(parent, [], PROMPT)
    swarm.nodes[peer].die()
    fork = await parent.fork()
    await check(fork, PROMPT, b"!")
    await check(parent, PROMPT, b"?")


@pytest.mark.parametrize("peer", "abc")
@in_virtual_time
async def test_a_fork_is_mended_from_journals_that_began_with_its_parents(peer: str) -> None:
    swarm = await FakeSwarm(a="0-1", b="2-3", c="4-5", sa="0-1", sb="2-3", sc="4-5").start()
    for spare in ("sa", "sb", "sc"):
        swarm.announce(spare, decode_ms_per_block=100.0)
    parent = new_session(swarm)
    await check(parent, [], PROMPT)
    fork = await parent.fork()
    ids = await check(fork, PROMPT, b"some")
    parent.close()
    swarm.nodes[peer].behaviour.die_at_step = swarm.nodes[peer].steps[-1].step + 1
    await check(fork, ids, b"x")
    assert len(fork.repaired) == 1
    survivors = {"a", "b", "c"} - {peer}
    for survivor in survivors:  # they were not fed anything twice
        fed = sum(step.tokens for step in swarm.nodes[survivor].steps if not step.hold)
        assert fed <= len(PROMPT) + len(b"some") + 2


@in_virtual_time
async def test_many_forks_at_once() -> None:
    swarm = await started()
    parent = new_session(swarm)
    await check(parent, [], PROMPT)
    forks = await asyncio.gather(*(parent.fork() for _ in range(8)))
    await asyncio.gather(*(check(fork, PROMPT, [number]) for number, fork in enumerate(forks)))


@in_virtual_time
async def test_closed_is_closed() -> None:
    swarm = await started()
    parent = new_session(swarm)
    await check(parent, [], PROMPT)
    fork = await parent.fork()
    parent.close()
    with pytest.raises(StreamClosedError):
        await parent.fork()
    fork.close(keep=False)
    with pytest.raises(StreamClosedError):
        await fork.append([1])


@in_virtual_time
async def test_a_fork_names_no_page_that_its_parent_could_not() -> None:
    """Behind a hop that was replaced, pages hold what another hop has made of them."""
    swarm = await FakeSwarm(a="0-2", b="3-5", spare="0-2").start()
    swarm.announce("spare", decode_ms_per_block=100.0)
    parent = new_session(swarm, salt=bytes(range(32)))
    await check(parent, [], PROMPT)
    swarm.nodes["a"].die()
    ids = await check(parent, PROMPT, b"more")
    assert [hop.peer_id for hop in parent.route.hops] == ["spare", "b"]
    fork = await parent.fork()
    await check(fork, ids, b"!")
    fork.close()
    await settle()
    assert [bool(node.closes[-1].prefix) for node in (swarm.nodes["spare"], swarm.nodes["b"])] == [
        True,
        False,
    ]


@in_virtual_time
async def test_a_branch_begins_where_its_parent_was() -> None:
    """Which has gone on, and goes on."""
    swarm = await started()
    parent, branch = new_session(swarm), new_session(swarm)
    ids = await check(parent, [], PROMPT)
    ids = await check(parent, ids, b"and on")
    await branch.branch(parent, len(PROMPT))
    await check(branch, PROMPT, b"elsewhere")
    await check(parent, ids, b"!")
    assert branch.cached_tokens == len(PROMPT)
    with pytest.raises(LocalProtocolError):
        await branch.branch(parent, len(PROMPT))
    with pytest.raises(LocalProtocolError):
        await new_session(swarm).branch(parent, 1000)
