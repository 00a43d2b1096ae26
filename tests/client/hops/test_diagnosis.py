"""What neighbours say of each other, and which of them is believed."""

from __future__ import annotations

import asyncio

import pytest

from swarm_node.client.hops.diagnosis import diagnose
from swarm_node.client.hops.route_session import RouteSession
from swarm_node.swarm.errors import ErrorCode
from swarm_node.swarm.links.pool import LinkPool
from swarm_node.swarm.protocol.messages import ErrorMessage
from swarm_node.swarm.types import Hop, Route, Span
from tests.doubles.fake_swarm import FAST, MODEL, FakeSwarm
from tests.doubles.virtual_time import in_virtual_time


@pytest.mark.parametrize("first", ["sender", "receiver"])
@in_virtual_time
async def test_of_a_lost_edge_the_sender_says_why(first: str) -> None:
    """Even if the receiver, who saw the stream end, was heard before."""
    swarm = FakeSwarm(0.01, a="0-2", b="3-5")
    await swarm.start()
    links = LinkPool(swarm.network.transport("client"), MODEL, patience=FAST)
    route = Route((Hop("a", Span(0, 3)), Hop("b", Span(3, 6))))
    session = await RouteSession.open(links, route, swarm.settings())
    sender, receiver = session.hops
    silent = ErrorMessage(sender.session, None, ErrorCode.DOWNSTREAM_LOST, "b is silent for 1.4 s", True)
    closed = ErrorMessage(receiver.session, None, ErrorCode.UPSTREAM_LOST, "a closed the stream", True)
    if first == "sender":
        sender.deliver(silent)
        receiver.deliver(closed)
        found = await diagnose(session.hops)
    else:
        receiver.deliver(closed)
        diagnosis = asyncio.create_task(diagnose(session.hops))
        await asyncio.sleep(0.005)  # the sender is being asked whether it lives
        sender.deliver(silent)
        found = await diagnosis
    assert not found.lost
    assert [error.message for error in found.edges.values()] == ["peer …a: b is silent for 1.4 s"]
    session.close()
    await links.close()
