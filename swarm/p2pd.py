"""The transport over p2pd (go-libp2p): encrypted, authenticated, as raw binary streams."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hivemind.p2p import P2PDaemonError, PeerID
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from .addresses import PeerAddress, check_listenable, is_loopback
from .dial_errors import dial_error, self_dial_error
from .errors import NetworkError, PeerTimeoutError, PeerUnreachableError, StreamClosedError, UsageError
from .p2pd_daemon import P2pDaemon
from .transport import DIAL_TIMEOUT, READ_SIZE, Buffer, Stream, StreamHandler

if TYPE_CHECKING:
    from .identity import Identity

logger = logging.getLogger(__name__)

BOOTSTRAP_TIMEOUT = 5.0
"""Seconds in which an initial peer must answer at start."""
ROUTING_TIMEOUT = 2.0
"""Seconds that we wait at most for an initial peer to say that it helps to find others."""
ROUTING_POLL = 0.02
CONTROL_TIMEOUT = 5.0
"""Seconds for a request that the daemon answers by itself."""
CLOSE_GRACE = 5.0
"""Seconds that a closed stream may take to send what is queued, if the peer has stopped reading."""
JOIN_LIMIT = 64 * 1024
"""Up to so many bytes, copying a frame's buffers into one is cheaper than a second system call."""

_SILENT = "the libp2p daemon (p2pd) of this process does not answer"
_PORT_ZERO = re.compile(r"/(tcp|udp)/0+(/|$)")
_ED25519_ID = bytes.fromhex("002408011220")  # what each PeerID of an Ed25519 key begins with
_P2P_CODE = bytes.fromhex("a503")  # multicodec 421 as a varint


class P2pdStream:
    """A ``transport.Stream`` over the daemon's socket of one libp2p stream."""

    __slots__ = ("__weakref__", "_closed", "_daemon", "_peer_id", "_reader", "_writer")

    def __init__(
        self, daemon: P2pDaemon, peer_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._daemon = daemon
        self._peer_id = peer_id
        self._reader = reader
        self._writer = writer
        self._closed = False

    @property
    def peer_id(self) -> str:
        return self._peer_id

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        try:
            data = await self._reader.read(max_bytes)
        except OSError as error:
            raise self._broken() from error
        if not data and (self._closed or self._daemon.is_gone()):
            raise self._broken()
        return data

    def write(self, buffers: Iterable[Buffer]) -> None:
        writer = self._writer
        if self._closed or writer.transport.is_closing():
            raise self._broken()
        buffers = list(buffers)
        if len(buffers) > 1 and sum(map(len, buffers)) <= JOIN_LIMIT:
            writer.write(b"".join(buffers))
        else:
            for buffer in buffers:
                writer.write(buffer)

    async def drain(self) -> None:
        try:
            await self._writer.drain()
        except OSError as error:
            raise self._broken() from error

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        transport = self._writer.transport
        if transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(CLOSE_GRACE, transport.abort)
        self._writer.close()

    def _broken(self) -> StreamClosedError:
        if self._closed:
            return StreamClosedError(f"the stream to peer {self._peer_id} was closed on this side")
        if self._daemon.is_gone():
            return self._daemon.death_error()
        return StreamClosedError(f"peer {self._peer_id} closed the stream")


class P2pdTransport:
    """One libp2p peer: its own p2pd, its identity, its streams. Made by ``await P2pdTransport.create()``.

    ``p2p`` is the hivemind ``P2P`` for those who speak other protocols over the same daemon (the DHT).
    """

    def __init__(self, daemon: P2pDaemon) -> None:
        self.p2p = daemon
        self._peer_id = str(daemon.peer_id)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._streams: weakref.WeakSet[P2pdStream] = weakref.WeakSet()
        self._closed = False

    @classmethod
    async def create(
        cls,
        identity: Identity | None = None,
        *,
        host_maddrs: Sequence[str] = ("/ip4/127.0.0.1/tcp/0",),
        initial_peers: Sequence[str] = (),
        announce_maddrs: Sequence[str] = (),
        client_mode: bool = False,
    ) -> P2pdTransport:
        """Start a daemon, listen (unless ``client_mode``), and connect to the initial peers.

        ``identity`` None: a new key that nobody keeps. ``announce_maddrs`` replaces the addresses that
        we tell others. One initial peer that answers is enough.
        Raises UsageError for an address that is none, ListenError if a port is taken, PeerUnreachableError or
        PeerTimeoutError if no initial peer answers within BOOTSTRAP_TIMEOUT, NetworkError if p2pd fails.
        """
        peers = [PeerAddress.parse(text) for text in initial_peers]
        for address in (*(peer.maddr for peer in peers), *announce_maddrs):
            encode_maddr(address)
        for address in announce_maddrs:
            if _PORT_ZERO.search(address):
                raise UsageError(
                    f"cannot announce {address}: nobody can dial port 0", hint="Name the real port."
                )
        if not client_mode:
            check_listenable(host_maddrs)
        daemon = await P2pDaemon.launch(
            identity_path=str(identity.path) if identity is not None else None,
            host_maddrs=host_maddrs,
            announce_maddrs=announce_maddrs,
            client_mode=client_mode,
            nat_port_map=not client_mode and not all(map(is_loopback, host_maddrs)),
        )
        transport = cls(daemon)
        try:
            await transport._connect_initial(peers)
        except BaseException:
            await transport.close()
            raise
        return transport

    @property
    def peer_id(self) -> str:
        return self._peer_id

    async def maddrs(self) -> tuple[str, ...]:
        """Where others can dial us, each with /p2p/; empty in client mode. Raises NetworkError."""
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.IDENTIFY)
        try:
            response = await self._control(request, CONTROL_TIMEOUT)
        except TimeoutError:
            raise NetworkError(_SILENT) from None
        return tuple(f"{Multiaddr(raw)}/p2p/{self._peer_id}" for raw in response.identify.addrs)

    async def serve(self, protocol_id: str, handler: StreamHandler) -> None:
        async def accept(info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            stream = self._stream(str(info.peer_id), reader, writer)
            task = asyncio.current_task()
            if self._closed or task is None:
                stream.close()
                return
            self._tasks.add(task)
            try:
                await handler(stream)
            except asyncio.CancelledError:
                # asyncio reports a cancelled stream callback as a failure; when we close, it is none.
                if not self._closed:
                    raise
            except Exception:
                logger.exception("the handler of a stream from %s failed", stream.peer_id)
            finally:
                self._tasks.discard(task)
                stream.close()

        self._check_open()
        try:
            async with asyncio.timeout(CONTROL_TIMEOUT):
                await self.p2p.add_binary_stream_handler(protocol_id, accept)
        except TimeoutError:
            raise NetworkError(_SILENT) from None
        except (OSError, EOFError, P2PDaemonError) as error:
            raise self.p2p.broken(error) from error

    async def connect(self, peer_id: str, maddrs: Sequence[str] = (), timeout: float = DIAL_TIMEOUT) -> None:
        """Connect to a peer; returns at once if it is connected.

        Addresses may come from strangers: one that cannot be read is passed over.
        Raises PeerUnreachableError, PeerTimeoutError, or StreamClosedError if our own daemon is gone.
        """
        request = p2pd_pb2.Request(
            type=p2pd_pb2.Request.CONNECT,
            connect=p2pd_pb2.ConnectRequest(
                peer=self._raw_peer_id(peer_id),
                addrs=_readable(peer_id, maddrs),
                timeout=math.ceil(timeout),
            ),
        )
        try:
            response = await self._control(request, timeout)
        except TimeoutError:
            raise _no_answer(peer_id, timeout) from None
        if response.type == p2pd_pb2.Response.ERROR:
            raise dial_error(peer_id, response.error.msg)

    async def open_stream(
        self, peer_id: str, protocol_id: str, maddrs: Sequence[str] = (), timeout: float = DIAL_TIMEOUT
    ) -> Stream:
        request = p2pd_pb2.Request(
            type=p2pd_pb2.Request.STREAM_OPEN,
            streamOpen=p2pd_pb2.StreamOpenRequest(
                peer=self._raw_peer_id(peer_id), proto=[protocol_id], timeout=math.ceil(timeout)
            ),
        )
        try:
            async with asyncio.timeout(timeout):
                if maddrs:
                    await self.connect(peer_id, maddrs, timeout)
                self._check_open()
                response, reader, writer = await self.p2p.request(request)
        except TimeoutError:
            raise _no_answer(peer_id, timeout) from None
        if response.type == p2pd_pb2.Response.ERROR:
            writer.close()
            raise dial_error(peer_id, response.error.msg, protocol_id)
        return self._stream(peer_id, reader, writer)

    async def died(self) -> NetworkError:
        """Wait until the daemon ends by itself; returns what to tell people. Cancel it before ``close``."""
        await self.p2p.wait_ended()
        return self.p2p.death_error()

    async def close(self) -> None:
        """Stop handlers, streams and daemon; no process and no socket file is left. May be called again."""
        self._closed = True
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for stream in list(self._streams):
            stream.close()
        await self.p2p.shutdown()

    async def _connect_initial(self, peers: Sequence[PeerAddress]) -> None:
        addresses: dict[str, list[str]] = {}
        for peer in peers:
            if peer.peer_id == self._peer_id:
                raise UsageError(
                    f"initial peer {peer} has the identity of this process",
                    hint="Give the address of another peer, and each process an identity file of its own.",
                )
            addresses.setdefault(peer.peer_id, []).append(peer.maddr)

        async def attempt(peer_id: str, maddrs: list[str]) -> NetworkError | None:
            try:
                await self.connect(peer_id, maddrs, BOOTSTRAP_TIMEOUT)
            except NetworkError as error:
                return error
            return None

        results = await asyncio.gather(*(attempt(peer_id, maddrs) for peer_id, maddrs in addresses.items()))
        failures = [error for error in results if error is not None]
        if failures and len(failures) == len(results):
            many = f"none of {len(failures)} initial peers answers; the first: " if len(failures) > 1 else ""
            first = failures[0]
            kind = PeerTimeoutError if isinstance(first, PeerTimeoutError) else PeerUnreachableError
            raise kind(f"cannot join the swarm: {many}{first.message}", hint=first.hint)
        for error in failures:
            logger.warning("an initial peer does not answer: %s", error.message)
        if peers:
            await self._wait_for_routing()

    async def _wait_for_routing(self) -> None:
        """Wait until p2pd can ask the initial peers where others are: a moment after dialling.

        Looking for a peer that does not exist fails in two ways, which tell whether there was anybody to ask.
        """
        nobody = _ED25519_ID + os.urandom(32)
        request = p2pd_pb2.Request(
            type=p2pd_pb2.Request.CONNECT, connect=p2pd_pb2.ConnectRequest(peer=nobody, timeout=1)
        )
        try:
            async with asyncio.timeout(ROUTING_TIMEOUT):
                while True:
                    response = await self._control(request, ROUTING_TIMEOUT)
                    if "find any peer in table" not in response.error.msg:
                        return
                    await asyncio.sleep(ROUTING_POLL)
        except TimeoutError:
            logger.debug("no initial peer helps to find others")

    async def _control(self, request: p2pd_pb2.Request, timeout: float) -> p2pd_pb2.Response:
        """One request without a stream. Raises TimeoutError, StreamClosedError, NetworkError."""
        self._check_open()
        async with asyncio.timeout(timeout):
            response, _, writer = await self.p2p.request(request)
        writer.close()
        return response

    def _stream(self, peer_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> P2pdStream:
        stream = P2pdStream(self.p2p, peer_id, reader, writer)
        self._streams.add(stream)
        return stream

    def _raw_peer_id(self, peer_id: str) -> bytes:
        if peer_id == self._peer_id:
            raise self_dial_error(peer_id)
        try:
            raw: bytes = PeerID.from_base58(peer_id).to_bytes()
        except ValueError:
            raise PeerUnreachableError(f"{peer_id[:100]!r} is not a peer id") from None
        return raw

    def _check_open(self) -> None:
        if self._closed:
            raise StreamClosedError("the transport is closed")


def encode_maddr(text: str) -> bytes:
    """A multiaddress in binary. Raises UsageError.

    hivemind's Multiaddr turns ids after /p2p/ into CIDs, which p2pd does not accept, so those are done here.
    """
    encoded = b""
    try:
        first, *rest = text.replace("/ipfs/", "/p2p/").split("/p2p/")
        if first:
            encoded += Multiaddr(first).to_bytes()
        for part in rest:
            peer_id, slash, following = part.partition("/")
            raw = PeerID.from_base58(peer_id).to_bytes()
            encoded += _P2P_CODE + bytes([len(raw)]) + raw
            if following:
                encoded += Multiaddr(slash + following).to_bytes()
    except ValueError as error:
        raise UsageError(f"{text[:200]!r} is not a multiaddress: {str(error)[:200]}") from None
    return encoded


def _readable(peer_id: str, maddrs: Sequence[str]) -> list[bytes]:
    """The addresses that can be encoded, without their final /p2p part, which p2pd wants apart."""
    encoded = []
    for maddr in maddrs:
        try:
            encoded.append(encode_maddr(maddr.removesuffix(f"/p2p/{peer_id}")))
        except UsageError as error:
            logger.debug("an address of peer %s is passed over: %s", peer_id, error.message)
    return encoded


def _no_answer(peer_id: str, timeout: float) -> PeerTimeoutError:
    return PeerTimeoutError(f"peer {peer_id} did not answer within {timeout:g} s")
