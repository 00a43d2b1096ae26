"""The transport over p2pd (go-libp2p): encrypted, authenticated, as raw binary streams."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import weakref
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from hivemind.p2p import P2PDaemonError, PeerID
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from ...errors import (
    ListenError,
    LocalNetworkError,
    NetworkError,
    PeerTimeoutError,
    PeerUnreachableError,
    StreamClosedError,
    UsageError,
)
from ...identity import Identity
from ...runtime.open_files import allowed_connections
from ...runtime.tasks import cancel_all
from ..address_groups import address_group, oldest_of_the_largest
from ..addresses import PeerAddress, all_loopback, listenable
from ..dial_errors import dial_error, self_dial_error
from ..interface import DIAL_TIMEOUT, NetworkWatcher, Stream, StreamHandler
from ..resolve import resolve_all
from .daemon import P2pDaemon
from .maddrs import encode_maddr, maddr_text, readable_maddrs
from .options import P2pdOptions
from .process import P2pdProcess
from .relay_watch import RelayState, RelayWatch
from .stream import P2pdStream
from .supervisor import DaemonSupervisor, steady_clock

logger = logging.getLogger(__name__)

BOOTSTRAP_TIMEOUT = 5.0
"""Seconds in which an initial peer must answer at start."""
ROUTING_TIMEOUT = 2.0
"""Seconds that we wait at most for an initial peer to say that it helps to find others."""
ROUTING_POLL = 0.02
CONTROL_TIMEOUT = 5.0
"""Seconds for a request that the daemon answers by itself."""
MOST_NEIGHBOURS = 32
"""A new daemon connects to this many peers at once; the others come back by themselves."""
MOST_ADDRESSES = 4
MAX_STREAMS, STREAMS_SHARE = 1024, 0.5
"""Others may have this many streams open here, a descriptor each, or as many as this share of all allows."""
MOST_PORTS = 3
"""Where any port will do, this many are tried."""
LIST_AGAIN_S = 0.1
"""Seconds between two lists of connections that are asked for because a peer was not in the last one."""
PING_PROTOCOL = "/ipfs/ping/1.0.0"
PING_SIZE = 32
PING_RENEWED_S = 20.0
"""A ping stream is renewed after this many seconds. libp2p implementations end one after 30 s or later."""

_SILENT = "the libp2p daemon (p2pd) of this process does not answer"
_PORT_ZERO = re.compile(r"/(tcp|udp)/0+(/|$)")
_ED25519_ID = bytes.fromhex("002408011220")  # what each PeerID of an Ed25519 key begins with


class P2pdTransport:
    """One libp2p peer: its own p2pd, its identity, its streams. Made by ``await P2pdTransport.create()``.

    A daemon that dies or hangs is replaced: identity, addresses and handlers stay, streams are lost. ``p2p``
    is the hivemind ``P2P`` for other protocols over the same daemon (the DHT).
    """

    def __init__(
        self,
        daemon: P2pDaemon,
        identity: Identity,
        initial_peers: Sequence[PeerAddress] = (),
        relays: Sequence[PeerAddress] = (),
    ) -> None:
        """Use ``create``."""
        self.p2p = daemon
        self._identity: Identity | None = identity  # whose key file the next daemon reads, too
        self.peer_id = str(daemon.peer_id)
        self._initial_peers = initial_peers
        self._relays = _by_peer(relays)
        self._relay_watch = RelayWatch(self._relays)
        self._held_relays: set[bytes] = set()
        self._relay_watch.began(steady_clock())
        self._neighbours: dict[bytes, list[bytes]] = {}  # peers that were connected a moment ago, and where
        self._remotes: dict[bytes, bytes] = {}  # the same for all of them, an address each
        self._list_again_at = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._streams: weakref.WeakSet[P2pdStream] = weakref.WeakSet()
        self._keeper = DaemonSupervisor(daemon, self._ping, self._settle)
        self._keeping: asyncio.Task[LocalNetworkError] | None = None
        self._accepted: dict[P2pdStream, str] = {}  # streams of others and their address groups, oldest first
        self._max_accepted = allowed_connections(MAX_STREAMS, STREAMS_SHARE)
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
        relays: Sequence[str] = (),
        is_relay: bool = False,
    ) -> P2pdTransport:
        """Start a daemon, listen (unless ``client_mode``), and connect to the initial peers.

        ``identity`` None: a new key that is not kept. ``announce_maddrs`` replaces the addresses that we tell
        others. One initial peer that answers is enough. ``relays``: peers through which others reach us if
        they cannot dial us; ``is_relay``: be one. Raises UsageError for a text that is not an address,
        ListenError if a port is taken, PeerUnreachableError or PeerTimeoutError if no initial peer answers
        within BOOTSTRAP_TIMEOUT, NetworkError if p2pd fails.
        """
        peers = [PeerAddress.parse(text) for text in initial_peers]
        through = [PeerAddress.parse(text) for text in relays]
        for address in (*(peer.maddr for peer in (*peers, *through)), *announce_maddrs):
            encode_maddr(address)
        for address in announce_maddrs:
            if _PORT_ZERO.search(address):
                raise UsageError(
                    f"cannot announce {address}: nobody can dial port 0", hint="Name the real port."
                )
        identity = identity or Identity.generate()
        daemon = await _launched(
            () if client_mode else host_maddrs,
            P2pdOptions(
                identity=identity,
                announce_maddrs=tuple(announce_maddrs),
                client_mode=client_mode,
                nat_port_map=not client_mode and not all_loopback(host_maddrs),
                relays=tuple(map(str, through)),
                is_relay=is_relay,
            ),
        )
        transport = cls(daemon, identity, peers, through)
        try:
            await transport._connect_initial(peers)
        except BaseException:
            await transport.close()
            raise
        transport._keeping = asyncio.create_task(transport._keeper.run(), name="p2pd keeper")
        return transport

    @property
    def listen_maddrs(self) -> tuple[str, ...]:
        """Where this process listens, which may differ from what it announces; a host of zeros is all of its
        addresses."""
        return self.p2p.options.host_maddrs

    async def maddrs(self) -> tuple[str, ...]:
        """Where others can dial us, each with /p2p/; empty in client mode. Raises NetworkError."""
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.IDENTIFY)
        try:
            response = await self._control(request, CONTROL_TIMEOUT)
        except TimeoutError:
            raise NetworkError(_SILENT) from None
        return tuple(f"{Multiaddr(raw)}/p2p/{self.peer_id}" for raw in response.identify.addrs)

    def watch(self, watcher: NetworkWatcher) -> None:
        """Tell ``watcher`` whenever the network is lost or restored, after the watchers that came before."""
        self._keeper.watch(watcher)

    async def check(self, remote_maddr: str = "") -> None:
        self._check_open()
        await self._keeper.check()

    async def serve(self, protocol_id: str, handler: StreamHandler) -> None:
        async def accept(info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            remote = info.addr.to_bytes()
            stream = self._stream(self.p2p.process, str(info.peer_id), remote, reader, writer)
            task = asyncio.current_task()
            if self._closed or task is None:
                stream.close()
                return
            self._accepted[stream] = address_group(stream.remote_maddr)
            if len(self._accepted) > self._max_accepted:  # those who were here first stay
                loser = oldest_of_the_largest(dict(reversed(self._accepted.items())))
                del self._accepted[loser]
                loser.close()
                if loser is stream:
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
                self._accepted.pop(stream, None)
                stream.close()

        self._check_open()
        try:
            async with asyncio.timeout(CONTROL_TIMEOUT):
                await self.p2p.ready()
                await self.p2p.add_binary_stream_handler(protocol_id, accept)
        except TimeoutError:
            raise NetworkError(_SILENT) from None
        except (OSError, EOFError, P2PDaemonError) as error:
            raise self.p2p.process.broken(error) from error

    async def connect(self, peer_id: str, maddrs: Sequence[str] = (), timeout: float = DIAL_TIMEOUT) -> None:
        """Connect to a peer; returns at once if it is connected.

        Addresses may come from strangers: one that cannot be read is passed over.
        Raises PeerUnreachableError, PeerTimeoutError, or LocalNetworkError if our own daemon is gone.
        """
        await self._connect(self._raw_peer_id(peer_id), readable_maddrs(peer_id, maddrs), timeout)

    async def open_stream(
        self,
        peer_id: str,
        protocol_id: str,
        maddrs: Sequence[str] = (),
        timeout: float = DIAL_TIMEOUT,
        *,
        lazy: bool = False,
    ) -> Stream:
        raw = self._raw_peer_id(peer_id)
        request = p2pd_pb2.Request(
            type=p2pd_pb2.Request.STREAM_OPEN,
            streamOpen=p2pd_pb2.StreamOpenRequest(peer=raw, proto=[protocol_id], timeout=math.ceil(timeout)),
        )
        try:
            async with asyncio.timeout(timeout):
                while True:
                    if maddrs:
                        await self._connect(raw, readable_maddrs(peer_id, maddrs), timeout)
                    self._check_open()
                    await self.p2p.ready()
                    process = self.p2p.process
                    try:
                        response, reader, writer = await self.p2p.request(request)
                    except LocalNetworkError:
                        continue  # ``ready`` waits for the next daemon, or says that there is none
                    break
        except TimeoutError:
            raise self._no_answer(peer_id, timeout) from None
        if response.type == p2pd_pb2.Response.ERROR:
            writer.close()
            raise dial_error(peer_id, response.error.msg, protocol_id)
        return self._stream(process, peer_id, response.streamInfo.addr, reader, writer)

    async def remote_maddr(self, peer_id: str) -> str:
        """The address of the connection to a peer, as our daemon sees it; "" for one that is not connected.

        For callers without a stream of their own (the DHT). Raises PeerUnreachableError for our own id, or
        for a text that is not an id.
        """
        raw = self._raw_peer_id(peer_id)
        if raw not in self._remotes and steady_clock() >= self._list_again_at:
            self._list_again_at = steady_clock() + LIST_AGAIN_S
            with suppress(NetworkError, TimeoutError):
                async with asyncio.timeout(CONTROL_TIMEOUT):
                    await self._ping()
        return maddr_text(self._remotes.get(raw, b""))

    @property
    def connected(self) -> int:
        """How many peers the daemon was connected to, a moment ago."""
        return len(self._remotes)

    async def relayed_bytes(self) -> int | None:
        """What it has passed on for others since the start; None: it is no relay."""
        figures = self.p2p.relay_figures
        return None if figures is None else await figures.passed_on()

    async def died(self) -> NetworkError:
        """Wait until there will be no daemon any more; returns what to tell people. Cancel it before
        ``close``."""
        if self._keeping is None:
            return StreamClosedError("the transport is closed")
        return await asyncio.shield(self._keeping)

    async def close(self) -> None:
        """Stop handlers, streams and daemon; no process and no socket file is left. Idempotent."""
        self._closed = True
        tasks = self._tasks - {asyncio.current_task()}
        if self._keeping is not None:
            tasks.add(self._keeping)
        await cancel_all(tasks)
        for stream in list(self._streams):
            stream.close()
        await self.p2p.shutdown()
        self._identity = None

    # Keeping the daemon.

    async def _ping(self) -> None:
        """Ask the daemon for its connected peers, and remember them: the next daemon begins with them."""
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.LIST_PEERS)
        response, _, writer = await self.p2p.request(request)
        writer.close()
        self._remotes = {peer.id: bytes(peer.addrs[0]) for peer in response.peers if peer.addrs}
        self._neighbours = {
            peer.id: [bytes(address) for address in peer.addrs][:MOST_ADDRESSES]
            for peer in response.peers[:MOST_NEIGHBOURS]
        }
        if self._relays:
            self._look_after_relays([peer.id for peer in response.peers])

    def _look_after_relays(self, connected: Sequence[bytes]) -> None:
        for relay in (self._relays.keys() & connected) - self._held_relays:
            self._held_relays.add(relay)
            self._run(self._hold_relay(relay))
        match self._relay_watch.look(connected, steady_clock()):
            case RelayState.LOST:
                self._connect_in_background(self._relays)
            case RelayState.BACK:
                self.p2p.kill("was replaced, since a relay that restarted has lost our place")

    async def _settle(self) -> None:
        """Connect to the initial peers and to those that the last daemon was connected to, until one answers;
        the others in the background. Raises NetworkError if none answers."""
        self._relay_watch.began(steady_clock())
        whom = self._neighbours | _by_peer(self._initial_peers)
        pending, met = self._connect_in_background(whom), False
        while pending and not met:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            met = any(not task.cancelled() and task.exception() is None for task in done)
        if self._initial_peers:
            if not met:
                raise PeerUnreachableError("none of the peers that were connected before answers")
            await self._wait_for_routing()

    async def _hold_relay(self, relay: bytes) -> None:
        """Keep a stream of libp2p's ping to a relay, renewed before the other side ends it: any other end is
        that of the connection."""
        stream: Stream | None = None
        try:
            while True:
                former, stream = stream, await self.open_stream(str(PeerID(relay)), PING_PROTOCOL)
                if former is not None:
                    former.close()
                stream.write([bytes(PING_SIZE)])
                with suppress(TimeoutError):
                    async with asyncio.timeout(PING_RENEWED_S):
                        while await stream.read():
                            pass
                        break
            self._relay_watch.ended(relay)
        except LocalNetworkError:
            pass  # the next daemon knows nothing of this connection
        except StreamClosedError:
            self._relay_watch.ended(relay)
        finally:
            self._held_relays.discard(relay)
            if stream is not None:
                stream.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _connect_in_background(self, whom: Mapping[bytes, Sequence[bytes]]) -> set[asyncio.Task[None]]:
        return {self._run(self._connect(raw, maddrs, BOOTSTRAP_TIMEOUT)) for raw, maddrs in whom.items()}

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("not connected again: %s", error)

    async def _connect_initial(self, peers: Sequence[PeerAddress]) -> None:
        addresses: dict[str, list[str]] = {}
        for peer in peers:
            if peer.peer_id == self.peer_id:
                raise UsageError(
                    f"initial peer {peer} has the identity of this process",
                    hint="Give the address of another peer, and each process an identity file of its own.",
                )
            addresses.setdefault(peer.peer_id, []).append(peer.maddr)

        async def attempt(peer_id: str, maddrs: list[str]) -> NetworkError | None:
            try:
                await self.connect(peer_id, await resolve_all(maddrs), BOOTSTRAP_TIMEOUT)
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

        Looking for a peer that does not exist fails in two ways. They tell whether there was a peer to ask.
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

    async def _connect(self, raw_peer_id: bytes, addresses: Sequence[bytes], timeout: float) -> None:
        request = p2pd_pb2.Request(
            type=p2pd_pb2.Request.CONNECT,
            connect=p2pd_pb2.ConnectRequest(peer=raw_peer_id, addrs=addresses, timeout=math.ceil(timeout)),
        )
        peer_id = str(PeerID(raw_peer_id))
        try:
            response = await self._control(request, timeout)
        except TimeoutError:
            raise self._no_answer(peer_id, timeout) from None
        if response.type == p2pd_pb2.Response.ERROR:
            raise dial_error(peer_id, response.error.msg)

    async def _control(self, request: p2pd_pb2.Request, timeout: float) -> p2pd_pb2.Response:
        """One request without a stream. Raises TimeoutError, StreamClosedError, NetworkError."""
        async with asyncio.timeout(timeout):
            while True:
                self._check_open()
                await self.p2p.ready()
                try:
                    response, _, writer = await self.p2p.request(request)
                except LocalNetworkError:
                    continue
                writer.close()
                return response

    def _no_answer(self, peer_id: str, timeout: float) -> NetworkError:
        """The error when time is over. It is our own daemon's if that does not answer."""
        if not self.p2p.is_up:
            return self.p2p.process.death_error()
        return PeerTimeoutError(f"peer {peer_id} did not answer within {timeout:g} s")

    def _stream(
        self,
        process: P2pdProcess,
        peer_id: str,
        remote: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> P2pdStream:
        stream = P2pdStream(process, peer_id, remote, reader, writer)
        self._streams.add(stream)
        return stream

    def _raw_peer_id(self, peer_id: str) -> bytes:
        if peer_id == self.peer_id:
            raise self_dial_error(peer_id)
        try:
            raw: bytes = PeerID.from_base58(peer_id).to_bytes()
        except ValueError:
            raise PeerUnreachableError(f"{peer_id[:100]!r} is not a peer id") from None
        return raw

    def _check_open(self) -> None:
        if self._closed:
            raise StreamClosedError("the transport is closed")


async def _launched(host_maddrs: Sequence[str], options: P2pdOptions) -> P2pDaemon:
    """A daemon that listens on ``host_maddrs``. A free port that was chosen for it may be another process's
    by the time it listens: then it gets another one."""
    tries = MOST_PORTS if any(map(_PORT_ZERO.search, host_maddrs)) else 1
    while True:
        tries -= 1
        try:
            return await P2pDaemon.launch(replace(options, host_maddrs=listenable(host_maddrs)))
        except ListenError:
            if not tries:
                raise


def _by_peer(peers: Iterable[PeerAddress]) -> dict[bytes, list[bytes]]:
    """Peer ids and addresses in binary."""
    found: dict[bytes, list[bytes]] = {}
    for peer in peers:
        found.setdefault(PeerID.from_base58(peer.peer_id).to_bytes(), []).append(encode_maddr(peer.maddr))
    return found
