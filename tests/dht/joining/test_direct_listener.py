"""A node's own listener beside its daemon: where it is, what is told of it, and whom it lets in."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from swarm_node.dht.joining.direct_listener import direct_maddrs, open_direct
from swarm_node.dht.joining.network import Network, open_network
from swarm_node.swarm.errors import ListenError, NotAdmittedError, PeerUnreachableError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.membership.membership import NamedSwarm
from swarm_node.swarm.membership.transport import MembersTransport
from swarm_node.swarm.transport.addresses import parse_socket_maddr
from swarm_node.swarm.transport.direct.transport import DirectTransport
from swarm_node.swarm.transport.direct_maddrs import PORT_ABOVE, DirectOptions, Way, way_of, without_mark
from swarm_node.swarm.transport.p2pd.transport import P2pdTransport
from tests.doubles.direct_peers import echo

HOME = "127.0.0.1"


async def port_of(transport: DirectTransport) -> int:
    (maddr,) = await transport.maddrs()
    at = parse_socket_maddr(maddr.partition("/p2p/")[0])
    assert at is not None
    return at.port


def free_port() -> int:
    """Such that the one PORT_ABOVE is free, too."""
    while True:
        with contextlib.closing(socket.socket()) as low, contextlib.closing(socket.socket()) as high:
            low.bind((HOME, 0))
            port = int(low.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):
                high.bind((HOME, port + PORT_ABOVE))
                return port


async def test_a_chosen_port_says_which_the_listener_has() -> None:
    port = free_port()
    first = await open_direct(Identity.generate(), DirectOptions(), listen_at=(HOME, port))
    second = await open_direct(Identity.generate(), DirectOptions(), listen_at=(HOME, port))
    assert await port_of(first) == port + PORT_ABOVE
    assert await port_of(second) not in (0, port + PORT_ABOVE)  # which is taken
    told = DirectOptions(announce=(f"/ip4/203.0.113.5/tcp/{port + PORT_ABOVE}",))
    with pytest.raises(ListenError, match="in use") as caught:  # what is announced would be the first's
        await open_direct(Identity.generate(), told, listen_at=(HOME, port))
    assert "--direct-port" in caught.value.hint
    taken = DirectOptions(port=port + PORT_ABOVE)
    with pytest.raises(ListenError, match="in use"):
        await open_direct(Identity.generate(), taken, listen_at=(HOME, 0))
    await first.close()
    await second.close()


async def test_no_port_is_beyond_the_last() -> None:
    listener = await open_direct(Identity.generate(), DirectOptions(), listen_at=(HOME, 65_000))
    assert 0 < await port_of(listener) <= 65_535
    await listener.close()


def test_others_are_told_what_most_of_them_can_dial_first() -> None:
    found = ["/ip4/192.168.1.5/tcp/1", "/ip6/::1/tcp/1", "/ip4/8.8.8.8/tcp/1", "/ip4/127.0.0.1/tcp/1"]
    assert direct_maddrs(found) == ("/ip4/8.8.8.8/tcp/1/direct", "/ip4/192.168.1.5/tcp/1/direct")
    assert direct_maddrs(found[1:2]) == ("/ip6/::1/tcp/1/direct",)
    assert direct_maddrs(["/dns4/a.example/tcp/1", *found[:1]]) == (
        "/dns4/a.example/tcp/1/direct",
        "/ip4/192.168.1.5/tcp/1/direct",
    )
    assert direct_maddrs([]) == ()


@contextlib.asynccontextmanager
async def joined(**options: Any) -> AsyncIterator[Network]:
    network = await open_network(Identity.generate(), **options)
    try:
        yield network
    finally:
        await network.close()


async def test_a_daemon_is_told_nothing_of_the_listener() -> None:
    async with joined(direct=DirectOptions()) as network:
        (direct,) = await network.direct_maddrs()
        assert without_mark(direct) not in {
            maddr.partition("/p2p/")[0] for maddr in await network.transport.maddrs()
        }


async def test_a_daemon_that_is_led_to_the_listener_finds_no_peer_there() -> None:
    """Else it would think that the peer is there and has no DHT."""
    daemon = await P2pdTransport.create()
    async with joined(direct=DirectOptions()) as network:
        peer_id = network.transport.peer_id
        with pytest.raises(PeerUnreachableError, match="does not speak"):
            await daemon.connect(peer_id, [without_mark(maddr) for maddr in await network.direct_maddrs()])
        await daemon.connect(peer_id, await network.transport.maddrs())
    await daemon.close()


async def test_a_light_node_takes_both_at_one_place() -> None:
    async with joined() as boot:
        (address,) = await boot.transport.maddrs()
        async with joined(pure_python=True, initial_peers=[address]) as light:
            await light.transport.serve("/echo/1", echo)
            (direct,), (ordinary,) = await light.direct_maddrs(), await light.transport.maddrs()
            assert without_mark(direct) == ordinary.partition("/p2p/")[0]
            for apart in (True, False):
                dialler = await DirectTransport.create(client_mode=True, apart=apart)
                stream = await dialler.open_stream(light.transport.peer_id, "/echo/1", [without_mark(direct)])
                stream.write([b"hello"])
                assert await stream.read() == b"hello"
                await dialler.close()


async def test_where_the_daemon_s_addresses_are_replaced_so_must_the_listener_s() -> None:
    announce = ["/ip4/203.0.113.5/tcp/31331"]
    async with joined(direct=DirectOptions(), announce_maddrs=announce) as network:
        assert await network.direct_maddrs() == ()
    other = DirectOptions(announce=("/ip4/203.0.113.5/tcp/32331",))
    async with joined(direct=other, announce_maddrs=announce) as network:
        assert await network.direct_maddrs() == ("/ip4/203.0.113.5/tcp/32331/direct",)


async def test_strangers_are_refused_at_both_ways() -> None:
    async with joined(direct=DirectOptions(), membership=NamedSwarm("home")) as network:
        await network.transport.serve("/echo/1", echo)
        where = {Way.DIRECT: await network.direct_maddrs(), Way.DAEMON: await network.transport.maddrs()}
        for way, maddrs in where.items():
            for swarm in ("home", "elsewhere"):
                inner = await DirectTransport.create(client_mode=True, apart=way is Way.DIRECT)
                dialler = MembersTransport(inner, NamedSwarm(swarm))
                stream = await dialler.open_stream(
                    network.transport.peer_id, "/echo/1", [without_mark(maddr) for maddr in maddrs]
                )
                stream.write([b"hello"])
                if swarm == "home":
                    assert await stream.read() == b"hello"
                else:
                    with pytest.raises(NotAdmittedError):
                        await stream.read()
                await dialler.close()


async def test_two_nodes_take_the_direct_way_and_the_daemon_s_where_there_is_none() -> None:
    async with joined(direct=DirectOptions()) as a, joined(direct=DirectOptions()) as b:
        await b.transport.serve("/echo/1", echo)
        for maddrs, way in (
            (await b.transport.maddrs(), Way.DAEMON),
            ((*await b.direct_maddrs(), *await b.transport.maddrs()), Way.DIRECT),
        ):
            stream = await a.transport.open_stream(b.transport.peer_id, "/echo/1", maddrs)
            stream.write([b"hello"])
            assert await stream.read() == b"hello"
            assert way_of(stream.remote_maddr) is way
