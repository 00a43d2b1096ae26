"""The transport without a daemon: libp2p over TCP, Noise and yamux in this process. Clients and nodes take it
wherever a peer can be dialled so. It speaks with p2pd and with its like, directly or through relays, and
knows no DHT.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Coroutine, Sequence
from typing import Any

from ...errors import (
    NetworkError,
    PeerTimeoutError,
    PeerUnreachableError,
    RemoteProtocolError,
    StreamClosedError,
)
from ...fairness.buckets import Bucket
from ...fairness.gate import FairGate, GateLimits
from ...fairness.shares import Holder
from ...identity import Identity
from ...runtime.open_files import allowed_connections
from ...runtime.tasks import cancel_all, look_at
from ..address_groups import address_group, oldest_of_the_largest
from ..addresses import listen_error
from ..dial_errors import not_spoken, self_dial_error
from ..interface import DIAL_TIMEOUT, Stream, StreamHandler
from ..protocols.identify import IDENTIFY, identify_message
from ..protocols.multistream import agreed, answer, proposal
from ..protocols.yamux import MAX_INBOUND
from .addresses import Target, parse_tcp_maddr, targets_of, tcp_maddrs
from .channel import RawChannel, TcpChannel
from .connection import YamuxConnection
from .crowds import loser_to
from .relay import HOP, connect_through
from .security import Security, dial_problem
from .stream import DirectStream
from .totals import Totals

logger = logging.getLogger(__name__)

HANDSHAKE_S = 10.0
"""Seconds that a peer has to prove who it is, and then, on each stream, to say what it wants."""
NEXT_ADDRESS_S = 0.25
"""Seconds after which a further address of a peer is tried beside one that has not answered (RFC 8305)."""
MAX_HANDSHAKES = 64
"""At most this many connections have an unknown other side. One more ends the oldest of the address group
that has most, so that slow peers keep none out."""
HANDSHAKES = GateLimits(
    rate=100,
    at_once=200,
    rate_of_peer=50,
    at_once_of_peer=100,
    waiting=MAX_HANDSHAKES,
    patience_s=HANDSHAKE_S,
)
"""Handshakes of those who dial us, in a second: 100 take about 5 % of a core. Each address group counts as
one peer; when all want more, the groups take turns."""
CONNECTIONS_SHARE, HANDSHAKES_SHARE = 0.3, 0.1
"""Of the descriptors that this process may have: where they are few, fewer connections are allowed."""
MAX_CONNECTIONS = 512
"""Others may have opened at most this many connections. One more ends one that is not in use, or one of an
address group that has more than the newcomer's."""
MAX_CONNECTIONS_OF_PEER = 4
"""Of those, one peer id may have this many. Two peers that dial each other at once have two."""
LATELY_S = 5.0
"""A connection that was heard of this many seconds ago is taken to live: its peer's answer to a request for a
stream need not be awaited."""
PING = "/ipfs/ping/1.0.0"
PING_BYTES = 32
PINGS_PER_S, PINGS_AT_ONCE = 10.0, 60.0
"""Pings of one stream that are answered. A stream with more of them ends."""
PING_IDLE_S = 60.0
"""Seconds without a ping after which its stream ends, so that it does not keep a connection in use for
nothing."""

_PEER_ID = re.compile(r"[1-9A-HJ-NP-Za-km-z]{40,128}")


class DirectTransport:
    """One libp2p peer. Made by ``await DirectTransport.create()``."""

    def __init__(self, identity: Identity, announce_maddrs: Sequence[str], *, apart: bool = False) -> None:
        """Use ``create``."""
        self._identity = identity
        self._security = Security(identity, apart=apart)
        self._announce = tuple(announce_maddrs)
        self._servers: list[asyncio.Server] = []
        self._handlers: dict[str, StreamHandler] = {PING: _answer_pings, IDENTIFY: self._identify}
        self._connections: dict[str, list[YamuxConnection]] = {}
        self._dials: dict[str, _Dial] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._handshakes: dict[TcpChannel, str] = {}  # and the address group, oldest first
        self._accepted = 0  # connections that others have opened
        self._max_connections = allowed_connections(MAX_CONNECTIONS, CONNECTIONS_SHARE)
        self._max_handshakes = min(MAX_HANDSHAKES, allowed_connections(MAX_HANDSHAKES, HANDSHAKES_SHARE))
        self._gate = FairGate(HANDSHAKES)
        self._totals = Totals(self._all_connections)
        self._closed = False

    @classmethod
    async def create(
        cls,
        identity: Identity | None = None,
        *,
        host_maddrs: Sequence[str] = ("/ip4/127.0.0.1/tcp/0",),
        announce_maddrs: Sequence[str] = (),
        client_mode: bool = False,
        apart: bool = False,
    ) -> DirectTransport:
        """Listen, unless ``client_mode``. ``identity`` None: a new key that is not kept. ``announce_maddrs``
        replaces the addresses that we tell others. ``apart``: beside another host of this identity; see
        ``Security``.

        Raises ListenError if a port is taken, UsageError for a text that is not an address.
        """
        identity = identity or Identity.generate()
        for maddr in announce_maddrs:
            parse_tcp_maddr(maddr)
        transport = cls(identity, announce_maddrs, apart=apart)
        try:
            for maddr in () if client_mode else host_maddrs:
                await transport._listen(maddr)
        except BaseException:
            await transport.close()
            raise
        return transport

    @property
    def peer_id(self) -> str:
        return self._identity.peer_id

    @property
    def listen_maddrs(self) -> tuple[str, ...]:
        """Where this process listens, which may differ from what it announces; a host of zeros is all of its
        addresses."""
        names = [socket.getsockname() for server in self._servers for socket in server.sockets]
        return tuple(f"/ip{6 if ':' in host else 4}/{host}/tcp/{port}" for host, port, *_ in names)

    async def maddrs(self) -> tuple[str, ...]:
        """Where others can dial us, each with /p2p/; empty in client mode."""
        self._check_open()
        listening = [maddr for where in self.listen_maddrs for maddr in tcp_maddrs(*parse_tcp_maddr(where))]
        return tuple(f"{maddr}/p2p/{self.peer_id}" for maddr in self._announce or dict.fromkeys(listening))

    async def serve(self, protocol_id: str, handler: StreamHandler) -> None:
        self._check_open()
        self._handlers[protocol_id] = handler

    async def open_stream(
        self,
        peer_id: str,
        protocol_id: str,
        maddrs: Sequence[str] = (),
        timeout: float = DIAL_TIMEOUT,
        *,
        lazy: bool = False,
    ) -> Stream:
        self._check_open()
        if peer_id == self.peer_id:
            raise self_dial_error(peer_id)
        if not _PEER_ID.fullmatch(peer_id):
            raise PeerUnreachableError(f"{peer_id[:128]!r} is not a peer id")
        connection: YamuxConnection | None = None
        now = began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(timeout):
                if (connection := self._connected(peer_id)) is not None:
                    if lazy and now - connection.heard_at < LATELY_S:
                        return self._ask(connection, protocol_id, timeout)
                    try:
                        return await self._negotiate(connection, protocol_id)
                    except StreamClosedError:
                        if connection.usable or self._closed:
                            raise
                        # It had ended without our knowing.
                connection = await self._dial(peer_id, maddrs)
                if lazy:
                    return self._ask(connection, protocol_id, timeout)
                return await self._negotiate(connection, protocol_id)
        except TimeoutError:
            raise _silent(peer_id, connection, began, timeout) from None

    def is_connected(self, peer_id: str) -> bool:
        """Whether a stream to the peer needs no dial, perhaps since the peer has dialled us."""
        return self._connected(peer_id) is not None

    async def check(self, remote_maddr: str = "") -> None:
        self._check_open()

    async def close(self) -> None:
        self._closed = True
        for server in self._servers:
            server.close()
        tasks: set[asyncio.Task[Any]] = {*self._tasks, *(dial.task for dial in self._dials.values())}
        if (current := asyncio.current_task()) is not None:
            tasks.discard(current)
        await cancel_all(tasks)
        for connection in self._all_connections():
            connection.close()
        self._servers.clear()

    # Dialling.

    def _connected(self, peer_id: str) -> YamuxConnection | None:
        return next((each for each in self._connections.get(peer_id, ()) if each.usable), None)

    async def _dial(self, peer_id: str, maddrs: Sequence[str]) -> YamuxConnection:
        """A new connection. Callers that ask at the same time share it, and the last that gives up ends
        it."""
        dial = self._dials.get(peer_id)
        if dial is None:
            dial = self._dials[peer_id] = _Dial(asyncio.create_task(self._connect(peer_id, maddrs)))
        dial.askers += 1
        try:
            return await asyncio.shield(dial.task)
        except asyncio.CancelledError:
            if self._closed:
                raise StreamClosedError("the transport is closed") from None
            raise
        finally:
            dial.askers -= 1
            if not dial.askers:
                dial.task.cancel()
                if self._dials.get(peer_id) is dial:
                    del self._dials[peer_id]

    async def _connect(self, peer_id: str, maddrs: Sequence[str]) -> YamuxConnection:
        """Try the addresses, a new one whenever those before have failed or are slow. Raises the first's
        error if all fail."""
        targets = targets_of(peer_id, maddrs)
        pending: set[asyncio.Task[YamuxConnection]] = set()
        done: set[asyncio.Task[YamuxConnection]] = set()
        errors: list[NetworkError] = []
        try:
            while targets or pending:
                if targets:
                    pending.add(asyncio.create_task(self._connect_to(peer_id, targets.pop(0))))
                done, pending = await asyncio.wait(
                    pending, timeout=NEXT_ADDRESS_S if targets else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    error = task.exception()
                    if error is None:
                        return task.result()
                    if not isinstance(error, NetworkError):
                        raise error
                    errors.append(error)
        finally:
            await cancel_all(pending | done)
        raise errors[0]

    async def _connect_to(self, peer_id: str, target: Target) -> YamuxConnection:
        way: RawChannel | None = None
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                way = await self._way_to(peer_id, target)
                channel = await self._security.dialled(way, peer_id)
        except asyncio.CancelledError:
            if way is not None:
                way.abort()
            raise
        except Exception as error:
            if way is not None:
                way.abort()
            raise dial_problem(peer_id, target.maddr, error) from error
        return self._add(YamuxConnection(channel, peer_id, initiator=True, owner=self, totals=self._totals))

    async def _way_to(self, peer_id: str, target: Target) -> RawChannel:
        if not target.relay:
            tcp = TcpChannel()
            await asyncio.get_running_loop().create_connection(lambda: tcp, target.host, target.port)
            return tcp
        where = f"/{target.kind}/{target.host}/tcp/{target.port}"
        stream = await self.open_stream(target.relay, HOP, [where], HANDSHAKE_S)
        try:
            return await connect_through(stream, peer_id, self._run)
        except BaseException:
            stream.close()
            raise

    async def _negotiate(self, connection: YamuxConnection, protocol_id: str) -> DirectStream:
        stream = connection.open()
        stream.write([proposal(protocol_id)])
        await _agree(stream, protocol_id)
        return stream

    def _ask(self, connection: YamuxConnection, protocol_id: str, timeout: float) -> DirectStream:
        """A stream whose reader hears whether the peer agrees."""

        async def agree() -> None:
            began = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(timeout):
                    await _agree(stream, protocol_id)
            except TimeoutError:
                raise _silent(connection.peer_id, connection, began, timeout) from None

        stream = connection.open()
        stream.write([proposal(protocol_id)])
        stream.agreement = self._run(agree())
        stream.agreement.add_done_callback(look_at)
        return stream

    # Being dialled.

    async def _listen(self, maddr: str) -> None:
        host, port = parse_tcp_maddr(maddr)
        try:
            server = await asyncio.get_running_loop().create_server(
                lambda: TcpChannel(self._accept), host, port
            )
        except OSError as error:
            raise listen_error(host, port, error) from error
        self._servers.append(server)

    def _accept(self, tcp: TcpChannel) -> None:
        if self._closed:
            tcp.abort()
            return
        group = self._handshakes[tcp] = address_group(tcp.remote_maddr)
        if len(self._handshakes) > self._max_handshakes:
            oldest = oldest_of_the_largest(self._handshakes)
            del self._handshakes[oldest]
            oldest.abort()
        self._run(self._welcome(tcp, group))

    async def _welcome(self, tcp: TcpChannel, group: str) -> None:
        holder = Holder(group, group)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                channel, peer_id = await self._security.accepted(tcp, lambda: self._gate.enter(holder, 1))
        except asyncio.CancelledError:
            tcp.abort()
            raise
        except Exception as error:  # noqa: BLE001  whatever libp2p says of a stranger's bytes
            logger.debug("a connection from %s failed: %r", tcp.remote_host, error)
            tcp.abort()
            return
        finally:
            self._handshakes.pop(tcp, None)
        of_peer = len(self._connections.get(peer_id, ()))
        if (
            peer_id == self.peer_id
            or of_peer >= MAX_CONNECTIONS_OF_PEER
            or not self._make_room(tcp.remote_maddr)
        ):
            tcp.abort()
            return
        self._accepted += 1
        self._add(YamuxConnection(channel, peer_id, initiator=False, owner=self, totals=self._totals))

    def on_stream(self, stream: DirectStream) -> None:
        """A peer has opened a stream: find out what for, and serve it."""
        if stream.connection.serving < MAX_INBOUND:
            stream.connection.serving += 1
            self._run(self._serve_stream(stream))
        else:  # it has reset streams whose handlers have not noticed yet
            stream.close()

    async def _serve_stream(self, stream: DirectStream) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                protocol_id = await answer(_Lines(stream), self._handlers.__contains__)
            await self._handlers[protocol_id](stream)
        except (TimeoutError, StreamClosedError, RemoteProtocolError) as error:
            logger.debug("a stream from %s ended: %s", stream.peer_id, error)
        except Exception:
            logger.exception("the handler of a stream from %s failed", stream.peer_id)
        finally:
            stream.connection.serving -= 1
            stream.close()

    async def _identify(self, stream: Stream) -> None:
        """Tell who we are, as go-libp2p asks of every peer that it meets."""
        maddrs = [maddr.partition("/p2p/")[0] for maddr in await self.maddrs()]
        stream.write([identify_message(self._identity.public_bytes, maddrs, list(self._handlers))])
        await stream.drain()

    # Keeping count.

    def _make_room(self, remote_maddr: str) -> bool:
        """Whether one more connection may be accepted, perhaps in place of another."""
        if self._accepted < self._max_connections:
            return True
        accepted = [each for each in self._all_connections() if not each.initiator]
        loser = loser_to(remote_maddr, accepted)
        if loser is not None:
            loser.close()
        return loser is not None

    def _add(self, connection: YamuxConnection) -> YamuxConnection:
        if connection.ended_of is None:
            self._connections.setdefault(connection.peer_id, []).append(connection)
        return connection

    def on_end(self, connection: YamuxConnection) -> None:
        """A connection is over; called once for each."""
        if not connection.initiator:
            self._accepted -= 1
        known = self._connections.get(connection.peer_id, [])
        if connection in known:
            known.remove(connection)
        if not known:
            self._connections.pop(connection.peer_id, None)

    def _all_connections(self) -> list[YamuxConnection]:
        return [connection for known in self._connections.values() for connection in known]

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _check_open(self) -> None:
        if self._closed:
            raise StreamClosedError("the transport is closed")


class _Dial:
    """A dial under way, and how many wait for it."""

    def __init__(self, task: asyncio.Task[YamuxConnection]) -> None:
        self.task = task
        self.askers = 0


async def _agree(stream: DirectStream, protocol_id: str) -> None:
    """Hear that the peer speaks the protocol. Raises PeerUnreachableError, or StreamClosedError."""
    try:
        if not await agreed(_Lines(stream), protocol_id):
            raise not_spoken(stream.peer_id, protocol_id)
    except RemoteProtocolError as error:
        stream.close()
        raise StreamClosedError(f"peer {stream.peer_id}: {error.message}") from None
    except BaseException:
        stream.close()
        raise


def _silent(
    peer_id: str, connection: YamuxConnection | None, began: float, timeout: float
) -> PeerTimeoutError:
    """What to say of a peer that let ``timeout`` pass."""
    if connection is not None and connection.heard_at < began:
        connection.abort(StreamClosedError("the peer is silent"))  # what comes next dials anew
    return PeerTimeoutError(f"peer {peer_id} did not answer within {timeout:g} s")


class _Lines:
    """A stream as multistream-select wants it."""

    def __init__(self, stream: DirectStream) -> None:
        self._stream = stream
        self.read_exactly = stream.read_exactly

    def write(self, data: bytes) -> None:
        self._stream.write([data])


async def _answer_pings(stream: Stream) -> None:
    clock = asyncio.get_running_loop().time
    allowed = Bucket(PINGS_PER_S, PINGS_AT_ONCE, clock())
    while True:
        async with asyncio.timeout(PING_IDLE_S):
            data = await stream.read(PING_BYTES)
        if not data or allowed.take(1, clock()):
            return
        stream.write([data])
        await stream.drain()
