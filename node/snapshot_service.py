"""The snapshot service: entries of the DHT for peers that take no part in it, and theirs for the DHT.

Who asks is served what lies in the DHT as it lies there. Each peer has a budget of keys that it may ask for
and of entries that it may store, so that one that asks too much waits, alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ..dht.directory import TTL_S
from ..dht.entry_check import Entry, EntryCheck
from ..dht.envelope import subkey_of
from ..dht.layout import key_hash
from ..dht.snapshot_messages import (
    MAX_FRAME,
    SNAPSHOT_MESSAGES,
    SNAPSHOT_PROTOCOL,
    Entries,
    Get,
    PackedEntry,
    Put,
    Slower,
    SnapshotMessage,
    Stored,
    pack_entries,
)
from ..swarm.connection import MessageStream
from ..swarm.errors import NetworkError, RemoteProtocolError
from ..swarm.membership import Membership
from ..swarm.transport import Stream, Transport

log = logging.getLogger(__name__)

KEYS_PER_S = 32.0
"""Keys that a peer may ask for, in the long run: a client of a large model looks at 8 every few seconds."""
KEYS_AT_ONCE = 512.0
"""The same after a rest: one listing of every node of a few dozen models."""
PUTS_PER_S = 1.0
PUTS_AT_ONCE = 16.0
"""Entries that a peer may store: a light node refreshes two every 20 s."""
MAX_KEYS_OF_PEER = 16
"""Keys under which one peer may have entries, put there through us, within their life."""
MAX_STREAMS_OF_PEER = 8
MAX_STREAMS = 256
MAX_PEERS = 1024
"""Peers whose budgets are remembered; of more, those that were silent for longest begin anew."""
IDLE_S = 60.0
"""Seconds after which a stream ends on which nothing is asked."""
FRESH_S = 1.0
"""For how long an answer of the DHT is good for the next who asks."""
MAX_FRESH = 1024
LOOKUPS_AT_ONCE = 32


async def serve_snapshots(transport: Transport, store: EntryStore, membership: Membership | None) -> None:
    """Serve the entries of ``store`` to whoever asks over ``transport``: of a swarm with a name or a key, its
    members."""
    tag = "" if membership is None else membership.tag
    service = SnapshotService(store, EntryCheck(TTL_S, membership=membership), tag)
    await transport.serve(SNAPSHOT_PROTOCOL, service.handle)


class EntryStore(Protocol):
    """What the service needs of the DHT; HivemindDirectory has it."""

    async def entries(self, keys: Sequence[str]) -> Mapping[str, Mapping[str, Entry]]: ...

    async def store(self, owner: str, key: str, expiration: float, value: bytes) -> NetworkError | None: ...


class _Budget:
    """A bucket that fills by ``rate`` a second up to ``most``."""

    __slots__ = ("_at", "_left", "_most", "_rate")

    def __init__(self, rate: float, most: float, now: float) -> None:
        self._rate, self._most, self._left, self._at = rate, most, most, now

    def take(self, amount: float, now: float) -> float:
        """Seconds to wait; 0 if it was taken."""
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        if amount > self._left:
            return (amount - self._left) / self._rate
        self._left -= amount
        return 0.0


class _Peer:
    """What one peer has asked for."""

    __slots__ = ("held", "keys", "puts", "streams")

    def __init__(self, now: float) -> None:
        self.keys = _Budget(KEYS_PER_S, KEYS_AT_ONCE, now)
        self.puts = _Budget(PUTS_PER_S, PUTS_AT_ONCE, now)
        self.held: dict[str, float] = {}  # key -> expiration of the peer's entry
        self.streams = 0


class SnapshotService:
    """``handle`` serves streams of SNAPSHOT_PROTOCOL. ``check``: what entries must be in this swarm; ``tag``:
    the swarm's; ``clock``: Unix time in seconds."""

    def __init__(
        self,
        store: EntryStore,
        check: EntryCheck,
        tag: str = "",
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._check = check
        self._tag = tag
        self._clock = clock
        self._now = monotonic
        self._peers: OrderedDict[str, _Peer] = OrderedDict()
        self._fresh: OrderedDict[str, tuple[float, Mapping[str, Entry]]] = OrderedDict()
        self._lookups = asyncio.Semaphore(LOOKUPS_AT_ONCE)
        self._streams = 0

    async def handle(self, stream: Stream) -> None:
        """Serve one stream until it ends, or is idle for IDLE_S."""
        peer = self._peer(stream.peer_id)
        if self._streams >= MAX_STREAMS or peer.streams >= MAX_STREAMS_OF_PEER:
            log.info("event=snapshot_refused peer=%s streams=%d", stream.peer_id, peer.streams)
            return
        self._streams += 1
        peer.streams += 1
        try:
            await self._serve(MessageStream(stream, SNAPSHOT_MESSAGES, MAX_FRAME), peer)
        except (NetworkError, TimeoutError) as error:
            log.debug("event=snapshot_ended peer=%s reason=%r", stream.peer_id, str(error))
        except RemoteProtocolError as error:
            log.info("event=snapshot_bad_frame peer=%s message=%r", stream.peer_id, error.message)
        finally:
            self._streams -= 1
            peer.streams -= 1

    async def _serve(self, stream: MessageStream[SnapshotMessage], peer: _Peer) -> None:
        while True:
            async with asyncio.timeout(IDLE_S):
                request = await stream.receive()
            match request:
                case Get(keys):
                    await self._answer(stream, peer, keys)
                case Put():
                    answer = await self._put(stream.peer_id, peer, request)
                    async with asyncio.timeout(IDLE_S):
                        await stream.send(answer)
                case _:
                    raise RemoteProtocolError(f"{type(request).__name__} is no request")

    async def _answer(self, stream: MessageStream[SnapshotMessage], peer: _Peer, keys: Sequence[str]) -> None:
        if wait := peer.keys.take(len(keys), self._now()):
            async with asyncio.timeout(IDLE_S):
                await stream.send(Slower(_ms(wait)))
            return
        found = await self._entries(keys)
        packed = (
            PackedEntry(index, entry.expiration, entry.owner.encode(), entry.value)
            for index, key in enumerate(keys)
            for entry in found[key].values()
        )
        payloads = list(pack_entries(packed))
        async with asyncio.timeout(IDLE_S):
            for index, payload in enumerate(payloads):
                await stream.send(Entries(self._clock(), index == len(payloads) - 1, payload))

    async def _entries(self, keys: Sequence[str]) -> Mapping[str, Mapping[str, Entry]]:
        """What the DHT has, or had a moment ago. Raises NetworkError."""
        now = self._now()
        fresh = {key: self._fresh[key] for key in keys if key in self._fresh}
        found = {key: entries for key, (at, entries) in fresh.items() if now - at < FRESH_S}
        if missing := [key for key in dict.fromkeys(keys) if key not in found]:
            async with self._lookups:
                new = await self._store.entries(missing)
            for key in missing:
                found[key] = new[key]
                self._fresh[key] = (now, new[key])
                self._fresh.move_to_end(key)
            while len(self._fresh) > MAX_FRESH:
                self._fresh.popitem(last=False)
        return found

    async def _put(self, owner: str, peer: _Peer, request: Put) -> Stored | Slower:
        now = self._clock()
        if wait := peer.puts.take(1, self._now()):
            return Slower(_ms(wait))
        try:
            self._check.check(
                key_hash(request.key, self._tag),
                subkey_of(owner.encode()),
                request.expiration,
                bytes(request.payload),
            )
        except RemoteProtocolError as error:
            return Stored(error.message)
        if request.expiration <= now:
            return Stored("the entry has expired already: compare the clocks")
        peer.held = {key: until for key, until in peer.held.items() if until > now}
        if request.key not in peer.held and len(peer.held) >= MAX_KEYS_OF_PEER:
            return Stored(f"one peer stores entries under {MAX_KEYS_OF_PEER} keys at most")
        problem = await self._store.store(owner, request.key, request.expiration, bytes(request.payload))
        if problem is not None:
            return Stored(problem.message)
        peer.held[request.key] = request.expiration
        self._fresh.pop(request.key, None)
        return Stored()

    def _peer(self, peer_id: str) -> _Peer:
        peer = self._peers.setdefault(peer_id, _Peer(self._now()))
        self._peers.move_to_end(peer_id)
        while len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)
        return peer


def _ms(seconds: float) -> int:
    return min(3_600_000, int(seconds * 1000) + 1)
