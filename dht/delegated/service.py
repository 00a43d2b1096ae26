"""The service for light peers, which are not in the DHT: it reads entries of the DHT for them, and stores
theirs.

A peer that asks gets the entries as they lie in the DHT. Each peer has a budget of keys that it may ask for
and of entries that it may store, so that one that asks too much waits, alone. The work for all of them
together is bounded too. If it is scarce, address groups go in turn, and room is divided among them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ...swarm.errors import NetworkError, RemoteProtocolError
from ...swarm.fairness.buckets import Buckets
from ...swarm.fairness.gate import FairGate, GateLimits, TurnedAwayError
from ...swarm.fairness.recent import RecentMap
from ...swarm.fairness.shares import Holder, ShareLimits, Shares
from ...swarm.links.message_stream import MessageStream
from ...swarm.membership.membership import Membership
from ...swarm.transport.address_groups import address_group
from ...swarm.transport.interface import Stream, Transport
from ..directory import TTL_S
from ..records.directory import Found
from ..records.entry_check import Entry, EntryCheck
from ..records.envelope import subkey_of
from ..records.kept_entries import KeptEntries
from ..records.keys import MAX_KEYS_OF_OWNER, key_hash
from .messages import (
    DELEGATED_MESSAGES,
    DELEGATED_PROTOCOL,
    MAX_FRAME,
    DelegatedMessage,
    Entries,
    Get,
    PackedEntry,
    Put,
    Slower,
    Stored,
    pack_entries,
)

logger = logging.getLogger(__name__)

KEYS_PER_S = 32.0
"""A peer may ask for this many keys a second in the long run: a client of a large model looks at 8 every few
seconds."""
KEYS_AT_ONCE = 512.0
"""After a rest a peer may ask for this many keys at once: one listing of every node of a few dozen models."""
BYTES_OF_KEY = 65_536
"""An answer for one key has this many bytes. A longer one counts as more keys."""
PUTS_PER_S = 1.0
PUTS_AT_ONCE = 16.0
"""A peer may store this many entries at once: a light node refreshes two every 20 s."""
LOOKUPS = GateLimits(
    rate=256, at_once=1024, rate_of_peer=256, at_once_of_peer=1024, waiting=256, waiting_of_peer=8
)
"""The keys looked up in the DHT for all peers together. Each costs some ten questions to others."""
PUTS = GateLimits(rate=64, at_once=256, rate_of_peer=64, at_once_of_peer=256, waiting=256, waiting_of_peer=16)
"""The entries stored for all peers together: as many as 600 light nodes refresh."""
MAX_HELD = 4096
"""All peers together may have this many entries in the DHT through us; one owner may have
MAX_KEYS_OF_OWNER."""
STREAMS = ShareLimits(total=256, per_peer=8)
MAX_PEERS = 1024
"""The budgets of this many peers are remembered. With more peers, those silent for longest begin anew."""
IDLE_S = 60.0
"""A stream without a request ends after this many seconds."""
FRESH_S = 1.0
"""An answer of the DHT serves later requests for this many seconds."""
MAX_FRESH = 1024


async def serve_entries(transport: Transport, store: EntryStore, membership: Membership | None) -> None:
    """Serve the entries of ``store`` to peers that ask over ``transport``; in a swarm with a name or a key,
    to its members."""
    tag = "" if membership is None else membership.tag
    service = DelegatedService(store, EntryCheck(TTL_S, membership=membership), tag)
    await transport.serve(DELEGATED_PROTOCOL, service.handle)


class EntryStore(Protocol):
    """What the service needs of the DHT; HivemindDirectory has it."""

    async def entries(self, keys: Sequence[str]) -> Found: ...

    async def store(self, owner: str, key: str, expiration: float, value: bytes) -> NetworkError | None: ...


class DelegatedService:
    """``handle`` serves streams of DELEGATED_PROTOCOL. ``check``: what entries must be in this swarm;
    ``tag``: the swarm's; ``clock``: Unix time in seconds."""

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
        self._keys_of_peer = Buckets(KEYS_PER_S, KEYS_AT_ONCE, MAX_PEERS)
        self._puts_of_peer = Buckets(PUTS_PER_S, PUTS_AT_ONCE, MAX_PEERS)
        self._fresh: RecentMap[str, tuple[float, Mapping[str, Entry]]] = RecentMap(MAX_FRESH)
        self._lookups = FairGate(LOOKUPS, clock=monotonic)
        self._puts = FairGate(PUTS, clock=monotonic)
        self._held = KeptEntries(
            max_entries=MAX_HELD, max_total=MAX_HELD, clock=clock
        )  # without their values
        self._shares = Shares(STREAMS)
        self._streams: dict[Stream, Holder] = {}  # the one silent for longest is first

    async def handle(self, stream: Stream) -> None:
        """Serve one stream until it ends, or is idle for IDLE_S."""
        holder = Holder(stream.peer_id, address_group(stream.remote_maddr))
        if why := self._find_room(holder):
            logger.info("event=delegated_refused peer=%s reason=%r", stream.peer_id, why)
            return
        self._streams[stream] = holder
        try:
            await self._serve(stream, holder)
        except (NetworkError, TimeoutError) as error:
            logger.debug("event=delegated_ended peer=%s reason=%r", stream.peer_id, str(error))
        except RemoteProtocolError as error:
            logger.info("event=delegated_bad_frame peer=%s message=%r", stream.peer_id, error.message)
        finally:
            self._end(stream)

    def _find_room(self, holder: Holder) -> str:
        """Count a stream for the holder, or say which limit it exceeds. If all are taken, the holder of most
        loses the stream on which it was silent for longest."""
        if not (why := self._shares.take(holder)) or self._shares.held < STREAMS.total:
            return why
        if (loser := self._shares.loser(holder)) is None:
            return why
        stream = next(stream for stream, who in self._streams.items() if who == loser)
        self._end(stream)
        stream.close()
        return self._shares.take(holder)

    def _end(self, stream: Stream) -> None:
        if (holder := self._streams.pop(stream, None)) is not None:
            self._shares.give_back(holder)

    async def _serve(self, stream: Stream, holder: Holder) -> None:
        messages: MessageStream[DelegatedMessage] = MessageStream(stream, DELEGATED_MESSAGES, MAX_FRAME)
        while stream in self._streams:
            async with asyncio.timeout(IDLE_S):
                request = await messages.receive()
            if stream in self._streams:
                self._streams[stream] = self._streams.pop(stream)
            try:
                match request:
                    case Get(keys):
                        await self._answer(messages, holder, keys)
                        continue
                    case Put():
                        answer = await self._put(holder, request)
                    case _:
                        raise RemoteProtocolError(f"{type(request).__name__} is not a request")
            except TurnedAwayError:
                answer = Slower(_ms(1.0))
            async with asyncio.timeout(IDLE_S):
                await messages.send(answer)

    async def _answer(
        self, stream: MessageStream[DelegatedMessage], holder: Holder, keys: Sequence[str]
    ) -> None:
        now = self._now()
        budget = self._keys_of_peer.of(holder.peer_id, now)
        if wait := budget.take(len(keys), now):
            async with asyncio.timeout(IDLE_S):
                await stream.send(Slower(_ms(wait)))
            return
        found, alone = await self._entries(keys, holder)
        packed = (
            PackedEntry(index, entry.expiration, entry.owner.encode(), entry.value)
            for index, key in enumerate(keys)
            for entry in found[key].values()
        )
        payloads = list(pack_entries(packed))
        budget.owe(max(0.0, sum(map(len, payloads)) / BYTES_OF_KEY - len(keys)))
        async with asyncio.timeout(IDLE_S):
            for index, payload in enumerate(payloads):
                await stream.send(Entries(self._clock(), index == len(payloads) - 1, payload, alone))

    async def _entries(
        self, keys: Sequence[str], holder: Holder
    ) -> tuple[Mapping[str, Mapping[str, Entry]], bool]:
        """What the DHT has, or had a moment ago, and whether no other node was reached. Raises NetworkError,
        TurnedAwayError."""
        now = self._now()
        fresh = {key: self._fresh[key] for key in keys if key in self._fresh}
        found = {key: entries for key, (at, entries) in fresh.items() if now - at < FRESH_S}
        alone = False
        if missing := [key for key in dict.fromkeys(keys) if key not in found]:
            await self._lookups.enter(holder, len(missing))
            new = await self._store.entries(missing)
            alone, at = new.is_alone, self._now()
            for key in missing:
                found[key] = new.entries[key]
                if not alone:
                    self._fresh[key] = (at, found[key])
        return found, alone

    async def _put(self, holder: Holder, request: Put) -> Stored | Slower:
        """Raises TurnedAwayError."""
        owner, key = holder.peer_id, key_hash(request.key, self._tag)
        now = self._now()
        if wait := self._puts_of_peer.of(owner, now).take(1, now):
            return Slower(_ms(wait))
        if request.expiration <= self._clock():
            return Stored("the entry has expired already: compare the clocks")
        if not self._held.has_room(key, owner, holder.group):
            return Stored(
                f"one peer may store entries under {MAX_KEYS_OF_OWNER} keys, all peers together {MAX_HELD}"
            )
        await self._puts.enter(holder, 1)
        try:
            value = bytes(request.payload)
            self._check.check(key, subkey_of(owner.encode()), request.expiration, value)
        except RemoteProtocolError as error:
            return Stored(error.message)
        problem = await self._store.store(owner, request.key, request.expiration, value)
        if problem is not None:
            return Stored(problem.message)
        self._held.put(key, owner, b"", request.expiration, holder.group, b"", by_owner=True)
        self._fresh.pop(request.key, None)
        return Stored()


def _ms(seconds: float) -> int:
    return min(3_600_000, int(seconds * 1000) + 1)
