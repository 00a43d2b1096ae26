"""Where somebody who only looks at a swarm asks its nodes whether they are there."""

from __future__ import annotations

import pytest

from swarm_node.node.presence.roll_call import call_roll, silent_nodes
from swarm_node.swarm.errors import PeerUnreachableError
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

MODEL = ModelRef("tiny", "ab" * 32, 4)
PUBLIC, LAN, LOOP = "/ip4/8.8.8.8/tcp/1", "/ip4/192.168.1.1/tcp/2", "/ip4/127.0.0.1/tcp/3"


class Outside:
    """The transport of a process that announces no address. Nobody answers."""

    peer_id = "us"

    def __init__(self) -> None:
        self.dialled: dict[str, list[str]] = {}

    async def maddrs(self):
        return ()

    async def open_stream(self, peer_id, protocol_id, maddrs=(), timeout=0.0, *, lazy=False):
        self.dialled[peer_id] = list(maddrs)
        raise PeerUnreachableError("nobody is there")


def _node(peer_id: str, *maddrs: str, model: ModelRef = MODEL) -> NodeInfo:
    return NodeInfo(peer_id, maddrs, model, Span(0, 4), NodeState.ONLINE)


@pytest.mark.parametrize(
    ("announced", "dialled"), [([LOOP], [LOOP]), ([LAN], [LAN]), ([LOOP, LAN, PUBLIC], [LAN, PUBLIC])]
)
async def test_a_node_is_asked_at_the_addresses_that_it_announces(announced, dialled):
    """Without addresses the network would be asked where it is, and may tell where it was."""
    transport = Outside()
    found = await call_roll(transport, MODEL, [_node("them", *announced)])
    assert transport.dialled == {"them": dialled}
    assert [node.peer_id for node in found.silent] == ["them"]


async def test_so_are_those_of_every_model():
    transport = Outside()
    other = ModelRef("other", "cd" * 32, 4)
    nodes = [_node("a", LOOP), _node("b", LAN, model=other)]
    assert await silent_nodes(transport, nodes) == {"a", "b"}
    assert transport.dialled == {"a": [LOOP], "b": [LAN]}
