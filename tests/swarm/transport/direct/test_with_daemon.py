"""Peers that are dialled directly need no daemon; the first that cannot be gets one started."""

from __future__ import annotations

import asyncio

import pytest

from swarm_node.swarm.errors import NetworkError, NotSpokenError, PeerUnreachableError, StreamClosedError
from swarm_node.swarm.transport.direct.with_daemon import LazyDaemonTransport
from swarm_node.swarm.transport.memory import MemoryNetwork, MemoryTransport
from tests.doubles.direct_peers import ECHO, echo

TCP = "/ip4/192.0.2.1/tcp/1"
QUIC = "/ip4/192.0.2.1/udp/1/quic-v1"
RELAYED = f"{TCP}/p2p/12D3KooWGBfKT9DXjP8kTGGwtJmqvCDqwnfTFGvzPLEyJZ1rEcBR/p2p-circuit"


class Client:
    """``direct`` and ``daemons``: two networks with a peer "node" each, unless it is taken away. ``told``:
    why the daemon was started."""

    def __init__(self) -> None:
        self.direct, self.daemons = MemoryNetwork(), MemoryNetwork()
        self.told: list[str] = []
        self.fails = 0
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.started: list[MemoryTransport] = []
        self.transport = LazyDaemonTransport(self.direct.transport("me"), self._start, self.told.append)

    async def open(self, *, direct: bool = True) -> Client:
        for network in [self.direct] * direct + [self.daemons]:
            await network.transport("node").serve(ECHO, echo)
        return self

    async def _start(self) -> MemoryTransport:
        await self.may_start.wait()
        if self.fails:
            self.fails -= 1
            raise NetworkError("p2pd does not start")
        self.started.append(self.daemons.transport("me"))
        return self.started[-1]

    async def echoes(self, *maddrs: str) -> bool:
        stream = await self.transport.open_stream("node", ECHO, maddrs, 5.0)
        stream.write([b"x"])
        answered = await stream.read() == b"x"
        stream.close()
        return answered


@pytest.mark.parametrize("maddrs", [(), (TCP,), (RELAYED,), (QUIC, TCP)])
async def test_no_daemon_for_what_can_be_dialled(maddrs: tuple[str, ...]) -> None:
    client = await Client().open()
    assert await client.echoes(*maddrs)
    assert client.told == []
    await client.transport.check()
    await client.transport.close()


async def test_one_daemon_for_all_that_cannot_be() -> None:
    client = await Client().open(direct=False)
    client.may_start.clear()
    several = [asyncio.create_task(client.echoes(QUIC)) for _ in range(3)]
    await asyncio.sleep(0)
    client.may_start.set()
    assert all(await asyncio.gather(*several))
    assert await client.echoes(TCP, QUIC)
    assert client.told == ["Starting p2pd: peer …node cannot be dialled over plain TCP"]
    assert len(client.started) == 1
    await client.transport.close()
    with pytest.raises(StreamClosedError):
        await client.started[0].check()


async def test_a_daemon_does_not_help_against_other_failures() -> None:
    client = await Client().open(direct=False)
    with pytest.raises(PeerUnreachableError):
        await client.echoes(TCP)
    client.direct.transport("node")
    with pytest.raises(NotSpokenError):
        await client.echoes(TCP, QUIC)
    assert client.told == []
    await client.transport.close()


async def test_a_daemon_that_fails_is_started_again_when_needed() -> None:
    client = await Client().open(direct=False)
    client.fails = 2
    with pytest.raises(NetworkError, match="p2pd does not start"):
        await client.echoes(QUIC)
    with pytest.raises(PeerUnreachableError, match="node"):  # why it cannot be dialled says more
        await client.echoes(QUIC, TCP)
    assert await client.echoes(QUIC)
    await client.transport.close()


async def test_closing_ends_a_daemon_that_is_being_started() -> None:
    client = await Client().open(direct=False)
    client.may_start.clear()
    asking = asyncio.create_task(client.echoes(QUIC))
    await asyncio.sleep(0)
    assert client.told
    await client.transport.close()
    with pytest.raises(StreamClosedError):
        await asking
    with pytest.raises(StreamClosedError):
        await client.echoes(QUIC)
    assert client.started == []
