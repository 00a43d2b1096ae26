"""Streams over the path that works: our own transport, or the daemon's."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from swarm_node.swarm.errors import LocalNetworkError, NetworkError, PeerUnreachableError
from swarm_node.swarm.transport.direct_maddrs import Way, way_of
from swarm_node.swarm.transport.interface import DIAL_TIMEOUT, NetworkRestored, Stream, StreamHandler
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.transport.paths.choice import FIRST_REST_S, NEXT_PATH_S
from swarm_node.swarm.transport.paths.transport import PathsTransport
from tests.doubles.direct_peers import echo
from tests.doubles.virtual_time import VirtualLoop

ECHO = "/echo/1"
DIRECT, ORDINARY = "/ip4/8.8.4.4/tcp/2/direct", "/ip4/8.8.4.4/tcp/1"
BOTH = (DIRECT, ORDINARY)


class Wire:
    """One path of one peer, over a network in memory. ``dialled``: the addresses of each dial."""

    def __init__(self, network: MemoryNetwork, peer_id: str, maddr: str) -> None:
        self.network, self.peer_id, self.maddr = network, peer_id, maddr
        self.connected: set[str] = set()
        self.dialled: list[tuple[str, ...]] = []
        self.fault: NetworkError | None = None
        self.closed = False
        network.hosts[peer_id] = maddr
        network.transport(peer_id)

    def is_connected(self, peer_id: str) -> bool:
        return peer_id in self.connected

    async def maddrs(self) -> tuple[str, ...]:
        return (f"{self.maddr}/p2p/{self.peer_id}",)

    async def serve(self, protocol_id: str, handler: StreamHandler) -> None:
        await self.network.transport(self.peer_id).serve(protocol_id, handler)

    async def open_stream(
        self,
        peer_id: str,
        protocol_id: str,
        maddrs: Sequence[str] = (),
        timeout: float = DIAL_TIMEOUT,
        *,
        lazy: bool = False,
    ) -> Stream:
        self.dialled.append(tuple(maddrs))
        if self.fault is not None:
            raise self.fault
        return await self.network.transport(self.peer_id).open_stream(
            peer_id, protocol_id, maddrs, timeout, lazy=lazy
        )

    async def check(self, remote_maddr: str = "") -> None:
        if self.fault is not None:
            raise self.fault

    async def close(self) -> None:
        self.closed = True
        await self.network.transport(self.peer_id).close()


class Peers:
    """Two peers, and the networks between them: of wires, and of daemons."""

    def __init__(self) -> None:
        self.wires, self.daemons = MemoryNetwork(latency=0.001), MemoryNetwork(latency=0.002)
        self.direct = Wire(self.wires, "a", "/ip4/9.9.9.9/tcp/2")
        self.daemon = Wire(self.daemons, "a", "/ip4/9.9.9.9/tcp/1")
        self.a = PathsTransport(self.direct, {Way.DAEMON: self.daemon})
        self.b = PathsTransport(
            Wire(self.wires, "b", "/ip4/8.8.4.4/tcp/2"), {Way.DAEMON: Wire(self.daemons, "b", ORDINARY)}
        )

    async def way(self, *maddrs: str) -> Way:
        """The way of a new stream from a to b, over which bytes have come back."""
        stream = await self.a.open_stream("b", ECHO, maddrs)
        stream.write([b"hello"])
        assert await stream.read() == b"hello"
        stream.close()
        return way_of(stream.remote_maddr)


def in_virtual_time(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(work)


def peers_test(test: Any) -> Any:
    """``test(peers)`` on a clock that jumps; b echoes."""

    def run() -> None:
        async def begin() -> None:
            peers = Peers()
            await peers.b.serve(ECHO, echo)
            await test(peers)

        in_virtual_time(begin())

    run.__name__ = test.__name__
    return run


@peers_test
async def test_what_can_be_dialled_directly_is(peers: Peers) -> None:
    assert await peers.way(*BOTH) is Way.DIRECT
    assert peers.direct.dialled == [("/ip4/8.8.4.4/tcp/2",)]
    assert peers.daemon.dialled == []


@peers_test
async def test_each_path_gets_its_own_addresses_only(peers: Peers) -> None:
    peers.wires.kill("b")
    assert await peers.way(*BOTH) is Way.DAEMON
    assert peers.direct.dialled == [("/ip4/8.8.4.4/tcp/2",)]
    assert peers.daemon.dialled == [(ORDINARY,)]


@peers_test
async def test_a_peer_without_a_direct_address_is_reached_by_the_daemon(peers: Peers) -> None:
    assert await peers.way(ORDINARY) is Way.DAEMON
    assert peers.direct.dialled == []


@peers_test
async def test_a_connection_that_the_peer_made_is_used(peers: Peers) -> None:
    peers.direct.connected.add("b")
    assert await peers.way() is Way.DIRECT


@peers_test
async def test_a_black_hole_costs_a_quarter_of_a_second_and_is_left_alone(peers: Peers) -> None:
    loop = asyncio.get_running_loop()
    peers.wires.partition("a", "b")
    began = loop.time()
    assert await peers.way(*BOTH) is Way.DAEMON
    assert loop.time() - began == pytest.approx(NEXT_PATH_S, abs=0.02)
    await asyncio.sleep(DIAL_TIMEOUT)  # until the direct dial has failed
    began = loop.time()
    assert await peers.way(*BOTH) is Way.DAEMON
    assert loop.time() - began < 0.02
    assert len(peers.direct.dialled) == 1


@peers_test
async def test_a_refused_dial_costs_nothing(peers: Peers) -> None:
    loop = asyncio.get_running_loop()
    peers.wires.kill("b")
    began = loop.time()
    assert await peers.way(*BOTH) is Way.DAEMON
    assert loop.time() - began < 0.02


@peers_test
async def test_a_path_that_failed_is_tried_again_later_and_used_from_then_on(peers: Peers) -> None:
    peers.wires.partition("a", "b")
    await peers.way(*BOTH)
    await asyncio.sleep(DIAL_TIMEOUT)
    peers.wires.heal()
    await asyncio.sleep(FIRST_REST_S)
    peers.daemons.latency = 0.02  # so that the direct path is not clearly slower
    await peers.way(*BOTH)  # whichever is first; the other goes on
    await asyncio.sleep(1.0)
    assert await peers.way(*BOTH) is Way.DIRECT


@peers_test
async def test_when_our_network_has_changed_every_path_is_tried_at_once(peers: Peers) -> None:
    peers.wires.partition("a", "b")
    await peers.way(*BOTH)
    await asyncio.sleep(DIAL_TIMEOUT)
    peers.wires.heal()
    await peers.a.on_network(NetworkRestored(1.0))
    assert await peers.way(*BOTH) is Way.DIRECT


@peers_test
async def test_streams_of_the_other_path_live_on_when_the_daemon_dies(peers: Peers) -> None:
    stream = await peers.a.open_stream("b", ECHO, BOTH)
    peers.daemon.fault = LocalNetworkError("the daemon is gone")
    await peers.a.check(stream.remote_maddr)
    with pytest.raises(LocalNetworkError):
        await peers.a.check(ORDINARY)
    with pytest.raises(LocalNetworkError):
        await peers.a.check()
    stream.write([b"still here"])
    assert await stream.read() == b"still here"
    assert await peers.way(*BOTH) is Way.DIRECT


@peers_test
async def test_no_peer_is_blamed_for_our_own_daemon(peers: Peers) -> None:
    peers.wires.kill("b")
    peers.daemon.fault = LocalNetworkError("the daemon is gone")
    with pytest.raises(LocalNetworkError):
        await peers.a.open_stream("b", ECHO, BOTH)
    peers.daemon.fault = None
    assert await peers.way(*BOTH) is Way.DAEMON  # which says that the daemon's path was not noted as failed


@peers_test
async def test_a_peer_that_is_gone_is_told_by_the_daemon_s_words(peers: Peers) -> None:
    peers.wires.kill("b")
    peers.daemons.kill("b")
    with pytest.raises(PeerUnreachableError, match="nobody listens there"):
        await peers.a.open_stream("b", ECHO, BOTH)
    assert len(peers.direct.dialled) == len(peers.daemon.dialled) == 1


@peers_test
async def test_a_caller_that_gives_up_ends_every_try(peers: Peers) -> None:
    peers.wires.partition("a", "b")
    peers.daemons.partition("a", "b")
    opening = asyncio.create_task(peers.a.open_stream("b", ECHO, BOTH))
    await asyncio.sleep(1.0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert len(asyncio.all_tasks()) == 1


@peers_test
async def test_what_others_open_says_which_way_it_came(peers: Peers) -> None:
    came: list[Way] = []

    async def note(stream: Stream) -> None:
        came.append(way_of(stream.remote_maddr))

    await peers.b.serve("/note/1", note)
    await peers.a.open_stream("b", "/note/1", BOTH)
    await peers.a.open_stream("b", "/note/1", (ORDINARY,))
    await asyncio.sleep(0.1)
    assert came == [Way.DIRECT, Way.DAEMON]


@peers_test
async def test_closing_ends_tries_and_every_transport(peers: Peers) -> None:
    peers.wires.partition("a", "b")
    await peers.way(*BOTH)  # the direct dial goes on
    await peers.a.close()
    assert peers.direct.closed
    assert peers.daemon.closed
    await asyncio.sleep(0.1)  # until the end of its stream has come to the peer
    assert len(asyncio.all_tasks()) == 1
