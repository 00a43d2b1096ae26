"""A client over real nodes with p2pd: by itself where it can, through its own daemon where it must."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import psutil
import pytest

from swarm_node.dht.delegated.directory import DelegatedDirectory
from swarm_node.dht.delegated.service import serve_entries
from swarm_node.dht.joining.client import join_as_client
from swarm_node.dht.joining.network import Network, among_members
from swarm_node.dht.kademlia.directory import HivemindDirectory
from swarm_node.swarm.errors import NotAdmittedError, PeerUnreachableError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.membership.entry import SwarmEntry
from swarm_node.swarm.membership.membership import Membership, NamedSwarm
from swarm_node.swarm.placement.demand import WantedModel
from swarm_node.swarm.transport.p2pd.transport import P2pdTransport
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span
from tests.doubles.direct_peers import ECHO, echo

pytestmark = pytest.mark.swarm

MODEL = ModelRef("smol", "ab" * 32, 30)
TCP, QUIC = "/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"


class Swarm:
    """Nodes with p2pd, which echo, and clients of them. ``told``: why clients started daemons."""

    def __init__(self, stack: AsyncExitStack, home: Any) -> None:
        self._stack = stack
        self.home = home
        self.told: list[str] = []

    async def node(
        self,
        *where: str,
        initial: Sequence[str] = (),
        membership: Membership | None = None,
        answers: bool = True,
        span: Span = Span(0, 30),  # noqa: B008  frozen
    ) -> list[str]:
        """Serves all blocks and announces itself; returns its addresses. ``answers``: clients that are not in
        the DHT."""
        identity = Identity.generate()
        p2pd = await P2pdTransport.create(identity, host_maddrs=where, initial_peers=initial)
        self._stack.push_async_callback(p2pd.close)
        transport = among_members(p2pd, membership)
        directory = await HivemindDirectory.create(p2pd, identity, initial, membership=membership)
        self._stack.push_async_callback(directory.close)
        if answers:
            await serve_entries(transport, directory, membership)
        await transport.serve(ECHO, echo)
        maddrs = await p2pd.maddrs()
        await directory.announce(NodeInfo(identity.peer_id, maddrs, MODEL, span, NodeState.ONLINE, 0.5))
        return list(maddrs)

    async def client(self, initial: Sequence[str], **entry: Any) -> Network:
        network = await join_as_client(
            SwarmEntry(tuple(initial), **{"mdns": False, **entry}), self.told.append
        )
        self._stack.push_async_callback(network.close)
        return network


@pytest.fixture
async def swarm(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Swarm]:
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path))
    async with AsyncExitStack() as stack:
        yield Swarm(stack, tmp_path)


def daemons() -> int:
    return len(psutil.Process(os.getpid()).children())


async def echoes(network: Network) -> set[str]:
    """The peers of the model that were found, each of which has echoed."""
    nodes = await network.directory.nodes(MODEL)
    for node in nodes:
        stream = await network.transport.open_stream(node.peer_id, ECHO, node.maddrs)
        stream.write([b"hello"])
        assert await stream.read() == b"hello"
        stream.close()
    return {node.peer_id for node in nodes}


async def test_a_client_needs_no_daemon_to_ask_be_told_and_tell(swarm: Swarm) -> None:
    first = await swarm.node(TCP)
    second = await swarm.node(TCP, initial=first)
    before = daemons()
    client = await swarm.client(first)
    assert await echoes(client) == {first[0].split("/")[-1], second[0].split("/")[-1]}
    await client.directory.want([WantedModel("bigger")])
    other = await swarm.client(second)
    assert [record.peer_id for record in await other.directory.wanted()] == [client.transport.peer_id]
    assert (daemons(), swarm.told) == (before, [])


async def test_initial_peers_that_cannot_be_dialled_over_tcp(swarm: Swarm) -> None:
    address = await swarm.node(QUIC)
    assert "/quic-v1/" in address[0]
    before = daemons()
    client = await swarm.client(address)
    assert await echoes(client) == {address[0].split("/")[-1]}
    assert daemons() == before + 1
    (line,) = swarm.told
    assert line.startswith("Starting p2pd: peer ")
    assert line.endswith("cannot be dialled over plain TCP")


async def test_a_route_that_leads_over_such_a_peer(swarm: Swarm) -> None:
    """The daemon is started for this peer alone: the other is dialled by the client itself."""
    first = await swarm.node(TCP)
    second = await swarm.node(QUIC, initial=first)
    client = await swarm.client(first)
    assert swarm.told == []
    assert len(await echoes(client)) == 2
    assert len(swarm.told) == 1
    assert second[0].split("/")[-1][-6:] in swarm.told[0]


async def test_nodes_that_answer_in_the_dht_alone(swarm: Swarm) -> None:
    old = await swarm.node(TCP, answers=False)
    client = await swarm.client(old)
    assert isinstance(client.directory, HivemindDirectory)
    assert await echoes(client) == {old[0].split("/")[-1]}
    await client.directory.want([WantedModel("bigger")])
    assert swarm.told == ["Starting p2pd: the nodes that were reached answer only in the DHT"]


async def test_one_new_node_is_enough(swarm: Swarm) -> None:
    old = await swarm.node(TCP, answers=False)
    new = await swarm.node(TCP, initial=old)
    client = await swarm.client([*old, *new])
    assert isinstance(client.directory, DelegatedDirectory)
    assert len(await echoes(client)) == 2
    assert swarm.told == []


async def test_pure_python_means_never_a_daemon(swarm: Swarm) -> None:
    old, quic = await swarm.node(TCP, answers=False), await swarm.node(QUIC)
    before = daemons()
    for addresses, words in ((old, "does not speak"), (quic, "not over plain TCP")):
        with pytest.raises(PeerUnreachableError, match=words):
            await swarm.client(addresses, pure_python=True)
    assert (daemons(), swarm.told) == (before, [])


async def test_nobody_there_is_said_at_once_and_without_a_daemon(swarm: Swarm) -> None:
    gone = f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.generate().peer_id}"
    async with asyncio.timeout(2):
        with pytest.raises(PeerUnreachableError, match="nobody listens"):
            await swarm.client([gone])
    assert swarm.told == []


@pytest.mark.parametrize("answers", [True, False])
async def test_members_only(swarm: Swarm, answers: bool) -> None:
    home = await swarm.node(TCP, membership=NamedSwarm("home"), answers=answers)
    client = await swarm.client(home, membership=NamedSwarm("home"))
    assert len(await echoes(client)) == 1
    with pytest.raises(NotAdmittedError):
        await swarm.client(home, membership=NamedSwarm("other"))
    with pytest.raises(NotAdmittedError):
        await swarm.client(home)


async def test_by_the_addresses_of_an_invite(swarm: Swarm) -> None:
    address = await swarm.node(TCP)
    gone = f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.generate().peer_id}"
    client = await swarm.client([], may_meet=(gone, *address))
    assert len(await echoes(client)) == 1
    assert swarm.told == []
