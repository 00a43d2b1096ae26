"""Trying a relay with peers of our own that have no other way to each other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from hivemind.p2p import PeerID
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from ...errors import NetworkError, PeerUnreachableError
from ..addresses import PeerAddress
from ..interface import Stream
from .transport import P2pdTransport

CHECK_BYTES = 512 * 1024
"""Bytes sent through a relay to test it. Every p2pd relays a little, and cuts a connection after 128 KiB; one
that is a relay does not."""
PLACE_S = 20.0
"""Seconds in which a peer must become reachable through a relay; one second is usual."""
DIAL_S = 3.0
ATTEMPTS = 3
"""A relay is started up to this many times: p2pd starts two relay services, and sometimes the wrong one
wins."""
RETRY_S = 0.5
BYTES_S = 10.0
logger = logging.getLogger(__name__)

_PROTOCOL = "/swarm-node/relay-check/1"
_WHICH_ADDRESS = "Give --relay the address that `swarm-node bootstrap --relay` prints."


async def check_reachable(peer_id: str, relays: Sequence[str]) -> None:
    """Raises NetworkError unless a stranger can dial ``peer_id`` through one of ``relays`` (…/p2p/RELAY)."""
    stranger = await P2pdTransport.create(client_mode=True)
    try:
        await _dial(stranger, peer_id, relays)
    finally:
        await stranger.close()


async def make_relay(transport: P2pdTransport) -> None:
    """Return once ``transport`` relays as it should. Raises NetworkError."""
    here = (
        maddr.replace("/ip4/0.0.0.0/", "/ip4/127.0.0.1/").replace("/ip6/::/", "/ip6/::1/")
        for maddr in transport.listen_maddrs
    )
    maddrs = [f"{maddr}/p2p/{transport.peer_id}" for maddr in here]
    for attempt in range(ATTEMPTS):
        try:
            await check_relaying(maddrs)
        except NetworkError as error:
            if attempt == ATTEMPTS - 1:
                raise NetworkError(
                    f"this node does not relay as it should: {error.message}",
                    hint="Check that no firewall keeps this computer's processes apart, and start it again.",
                ) from error
            logger.warning("%s; starting p2pd anew", error.message)
        else:
            return
        transport.p2p.kill("was replaced, since it did not relay as it should")
        await transport.p2p.ended()
        await transport.maddrs()  # waits for the next one


async def check_relaying(maddrs: Sequence[str]) -> None:
    """Raises NetworkError unless a relay at ``maddrs`` connects peers, and for more than a few bytes."""
    async with contextlib.AsyncExitStack() as ends:
        near = await P2pdTransport.create(client_mode=True)
        ends.push_async_callback(near.close)
        await _meet_one(near, maddrs)
        far = await P2pdTransport.create(client_mode=True, initial_peers=maddrs, relays=maddrs)
        ends.push_async_callback(far.close)
        await far.serve(_PROTOCOL, _echo)
        await _dial(near, far.peer_id, maddrs)
        stream = await near.open_stream(far.peer_id, _PROTOCOL)
        try:
            async with asyncio.timeout(BYTES_S):
                whole = await _echoed(stream, CHECK_BYTES) == CHECK_BYTES
        except TimeoutError:
            whole = False
        if not whole:
            raise NetworkError(
                f"the relay breaks connections off within {CHECK_BYTES // 1024} KiB",
                hint="It must be started with `swarm-node bootstrap --relay`.",
            )


async def _meet_one(transport: P2pdTransport, maddrs: Sequence[str]) -> None:
    """Raises NetworkError if no relay answers at any of the addresses, each with /p2p/PEER."""

    async def attempt(address: PeerAddress) -> NetworkError | None:
        try:
            await transport.connect(address.peer_id, [address.maddr], timeout=DIAL_S)
        except NetworkError as error:
            return error
        return None

    failures = await asyncio.gather(*(attempt(PeerAddress.parse(maddr)) for maddr in maddrs))
    first = next((error for error in failures if error is not None), None)
    if first is not None and None not in failures:
        raise PeerUnreachableError(f"no relay answers: {first.message}", hint=first.hint or _WHICH_ADDRESS)


async def _dial(stranger: P2pdTransport, peer_id: str, relays: Sequence[str]) -> None:
    circuits = [f"{relay}/p2p-circuit" for relay in relays]
    last: NetworkError | None = None
    try:
        async with asyncio.timeout(PLACE_S):
            while True:
                try:
                    await stranger.connect(peer_id, circuits, timeout=DIAL_S)
                    await _check_relayed(stranger, peer_id)
                except NetworkError as error:
                    last = error
                else:
                    return
                await asyncio.sleep(RETRY_S)
    except TimeoutError:
        raise NetworkError(
            f"no relay leads to this peer after {PLACE_S:g} s: {last.message if last else 'no answer'}",
            hint=_WHICH_ADDRESS,
        ) from last


async def _check_relayed(stranger: P2pdTransport, peer_id: str) -> None:
    """Raises NetworkError if it is connected in another way, as p2pd finds one on the same machine."""
    raw = PeerID.from_base58(peer_id).to_bytes()
    response, _, writer = await stranger.p2p.request(p2pd_pb2.Request(type=p2pd_pb2.Request.LIST_PEERS))
    writer.close()
    addresses = [
        str(Multiaddr(bytes(each))) for peer in response.peers if peer.id == raw for each in peer.addrs
    ]
    if not any("/p2p-circuit" in address for address in addresses):
        request = p2pd_pb2.Request(
            type=p2pd_pb2.Request.DISCONNECT, disconnect=p2pd_pb2.DisconnectRequest(peer=raw)
        )
        _, _, writer = await stranger.p2p.request(request)
        writer.close()
        raise NetworkError("the relay has no place for it")


async def _echo(stream: Stream) -> None:
    with contextlib.suppress(NetworkError):
        while data := await stream.read():
            stream.write([data])
            await stream.drain()


async def _echoed(stream: Stream, size: int) -> int:
    """Send ``size`` bytes; returns how many came back before the stream ended."""

    async def send() -> None:
        for _ in range(0, size, 1 << 16):
            stream.write([bytes(1 << 16)])
            await stream.drain()

    sending = asyncio.create_task(send())
    received = 0
    try:
        while received < size and (data := await stream.read()):
            received += len(data)
    except NetworkError:
        pass
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    return received
