"""One DHT node: answers the three calls of hivemind's DHT protocol, makes them, and keeps its routing table.

No id is taken from a message: a peer that calls, answers or is named has the id of its PeerID, or is refused.
Only peers that have answered us are in the table; a peer that calls us is asked first. A client, which is not
in the DHT, gives no id and is in no table.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from hivemind.p2p import PeerID
from hivemind.proto import dht_pb2

from ...swarm.errors import RemoteProtocolError
from ...swarm.fairness.recent import RecentMap
from ...swarm.fairness.shares import Holder
from ..directory import ALONE_S
from ..records.entry_check import Entry, EntryCheck
from ..records.envelope import subkey_of, unseal
from ..records.kept_entries import KeptEntries
from .contacts import ID_BYTES, KEPT_CONTACTS, MAX_NAMES, Contact, contact_of, id_bytes, named, proven
from .dictionary import pack_dictionary, unpack_dictionary
from .look_up import Ask, Told, look_up
from .paths import Paths
from .peer_notes import PeerNotes
from .routing_table import RoutingTable
from .store_calls import StoreCalls

RPC_TIMEOUT_S = 2.0
"""Seconds for one answer of one DHT node, dialling it included."""
MAX_CHECKS = 32
"""At most this many peers that called us are asked at once whether they answer. Others are asked at a later
call."""
MAX_CHECKS_OF_GROUP = 8
"""The same for one address group."""
UNHEARD_S = 60.0
"""A member of the table that was not heard of for this many seconds is asked whether it is there."""
MAX_LOST = 16
"""A node whose table is empty asks this many of those that left it last, as silence may end."""
MAX_UNHEARD = 8
"""One round of ``refresh`` asks at most this many of them."""
_PREFIX = "DHTProtocol."  # hivemind's name for the calls

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Calls(Protocol):
    """The part of hivemind's ``P2P`` that is used, and MembersP2P around it."""

    @property
    def peer_id(self) -> PeerID: ...

    async def add_protobuf_handler(
        self, name: str, handler: Callable[..., Any], input_protobuf_type: Any
    ) -> None: ...

    async def remove_protobuf_handler(self, name: str) -> None: ...

    async def call_protobuf_handler(
        self, peer_id: PeerID, name: str, input: Any, output_protobuf_type: Any
    ) -> Any: ...


@dataclass(frozen=True, slots=True)
class FindReply:
    """The answer to a question for a key. ``entries`` were checked. ``names``: peers near the key."""

    entries: Sequence[Entry]
    names: Sequence[Contact]
    group: str


async def _no_address(peer_id: str) -> str:
    return ""


class KademliaNode:
    """``check``: what entries must be; ``clock``: Unix time in seconds; ``group_of``: the address group of a
    peer that is connected. ``client_mode``: ask, but neither answer nor be in another's table."""

    def __init__(
        self,
        p2p: Calls,
        kept: KeptEntries,
        check: EntryCheck,
        *,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        group_of: Callable[[str], Awaitable[str]] = _no_address,
        client_mode: bool = False,
    ) -> None:
        self.contact = contact_of(str(p2p.peer_id))
        self.table = RoutingTable(self.contact.node_id, steady)
        self.notes = PeerNotes(steady)
        self._steady = steady
        self._heard_at = steady()  # when a node answered or called last, or we began
        self._lost: RecentMap[str, Contact] = RecentMap(MAX_LOST)  # members that fell silent
        self.stores = StoreCalls(kept, check, self.contact.peer_id)
        self.client_mode = client_mode
        self._p2p = p2p
        self._check = check
        self._clock = clock
        self._group_of = group_of
        self._info = dht_pb2.NodeInfo(node_id=b"" if client_mode else id_bytes(self.contact.node_id))
        self._tasks: set[asyncio.Task[Any]] = set()
        self._checking: dict[str, str | None] = {}  # peer id -> its address group, once known
        self._handlers = {
            "rpc_ping": (self._on_ping, dht_pb2.PingRequest),
            "rpc_store": (self._on_store, dht_pb2.StoreRequest),
            "rpc_find": (self._on_find, dht_pb2.FindRequest),
        }

    async def start(self) -> None:
        """Answer others, unless in client mode."""
        if not self.client_mode:
            for name, (handler, request_type) in self._handlers.items():
                await self._p2p.add_protobuf_handler(_PREFIX + name, handler, request_type)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self.client_mode:
            await asyncio.gather(
                *(self._p2p.remove_protobuf_handler(_PREFIX + name) for name in self._handlers)
            )

    def own_entries(self, key: bytes) -> Iterator[Entry]:
        """What we keep for others under ``key``; it was checked when it came."""
        for kept in self.stores.kept.entries(key).values():
            subkey = subkey_of(kept.owner.encode())
            body = unseal(key, subkey, kept.expiration, kept.value).body
            yield Entry(kept.owner, kept.expiration, body, kept.value)

    @property
    def heard_lately(self) -> bool:
        """Whether another node answered or called, or we began, less than ALONE_S ago."""
        return self._steady() - self._heard_at < ALONE_S

    # Asking others.

    async def ping(self, peer_id: str) -> float:
        """Whether a peer takes part; it is in our table then, and asks to know us. Returns its clock: Unix
        time in seconds. Raises RemoteProtocolError, TimeoutError, or what the daemon says."""
        request = dht_pb2.PingRequest(peer=self._info)
        answer = await self._call(peer_id, "rpc_ping", request, dht_pb2.PingResponse)
        return float(answer.dht_time)

    async def find(self, contact: Contact, key: bytes) -> FindReply | None:
        """What a peer has under ``key``, and the peers near it that it knows; None if it gives no answer. It
        goes on when the caller has no more time, so that the table learns the result."""
        return await self._outlive(self._find(contact, key))

    async def store(
        self, contact: Contact, key: bytes, owner: str, value: bytes, expiration: float
    ) -> bool | None:
        """Whether a peer took an entry; None if it gives no answer."""
        request = dht_pb2.StoreRequest(
            keys=[key],
            subkeys=[subkey_of(owner.encode())],
            values=[value],
            expiration_time=[expiration],
            in_cache=[False],
            peer=self._info,
        )
        answer = await self._outlive(
            self._answer(contact.peer_id, "rpc_store", request, dht_pb2.StoreResponse)
        )
        if answer is None or len(answer.store_ok) != 1:
            return None
        return bool(answer.store_ok[0])

    async def look_up(
        self, key: int, ask: Ask, *, width: int, enough: int, anchors: Sequence[Contact] = (), limit_s: float
    ) -> Paths:
        """Ask for ``key``, beginning with those of our table that are nearest to it, and with ``anchors``.
        With an empty table, begin with those that left it and were left alone for a while."""
        known = self.table.nearest(key, MAX_NAMES) or self._lost.values()
        seeds = [contact for contact in known if not self.notes.is_silent(contact.peer_id)]
        paths = Paths(
            key,
            seeds,
            anchors,
            own_id=self.contact.peer_id,
            width=width,
            enough=enough,
            patience_s=RPC_TIMEOUT_S,
        )
        try:
            async with asyncio.timeout(limit_s):
                await look_up(paths, ask, self.notes)
        except TimeoutError:
            logger.info("event=look_up_cut seconds=%g asked=%d", limit_s, paths.asked)
        return paths

    async def meet_nearest(self, key: int, *, anchors: Sequence[Contact] = (), limit_s: float) -> None:
        """Get to know the nodes around ``key``, such as our own id."""
        raw = id_bytes(key)

        async def ask(contact: Contact) -> Told | None:
            answer = await self.find(contact, raw)
            return None if answer is None else Told(answer.names, answer.group)

        await self.look_up(key, ask, width=MAX_NAMES, enough=MAX_NAMES, anchors=anchors, limit_s=limit_s)

    async def refresh(self, limit_s: float) -> None:
        """Ask members of the table that were not heard of for UNHEARD_S, and look for others near a random
        key."""
        unheard = self.table.unheard(UNHEARD_S, MAX_UNHEARD)
        await asyncio.gather(*(self._check_on(contact.peer_id) for contact in unheard))
        await self.meet_nearest(random.getrandbits(8 * ID_BYTES), limit_s=limit_s)

    # Answering others.

    async def _on_ping(self, request: Any, context: Any) -> Any:
        self._hear(request, context)
        return dht_pb2.PingResponse(peer=self._info, dht_time=self._clock(), available=True)

    async def _on_store(self, request: Any, context: Any) -> Any:
        self._hear(request, context)
        sender = str(context.remote_id)
        stored = self.stores.answer(request, Holder(sender, await self._group_of(sender)))
        return dht_pb2.StoreResponse(peer=self._info, store_ok=stored)

    async def _on_find(self, request: Any, context: Any) -> Any:
        asker = self._hear(request, context)
        if len(request.keys) != 1 or len(request.keys[0]) != ID_BYTES:
            raise ValueError("a look-up takes one key of 20 bytes")
        (key,) = request.keys
        result = dht_pb2.FindResult(type=dht_pb2.NOT_FOUND)
        if kept := self.stores.kept.entries(key).values():
            result.type = dht_pb2.FOUND_DICTIONARY
            result.value = pack_dictionary((each.owner, each.value, each.expiration) for each in kept)
            result.expiration_time = max(each.expiration for each in kept)
        for contact in self.table.nearest(int.from_bytes(key), MAX_NAMES, exclude=asker):
            result.nearest_node_ids.append(id_bytes(contact.node_id))
            result.nearest_peer_ids.append(contact.raw)
        return dht_pb2.FindResponse(peer=self._info, results=[result])

    def _hear(self, request: Any, context: Any) -> Contact | None:
        """The contact of the caller, None for a client. Raises PermissionError, which the caller gets to
        read."""
        try:
            caller = proven(request.peer.node_id, str(context.remote_id))
        except RemoteProtocolError as error:
            logger.info("event=dht_id_refused peer=%s", context.remote_id)
            raise PermissionError(error.message) from None
        if caller is not None:
            self._heard_at = self._steady()
        if caller is not None and caller not in self.table and not self.notes.is_silent(caller.peer_id):
            self._check_soon(caller.peer_id)
        return caller

    def _check_soon(self, peer_id: str) -> None:
        """See in the background whether a peer answers, if not too many are asked already."""
        if peer_id not in self._checking and len(self._checking) < MAX_CHECKS:
            self._checking[peer_id] = None
            self._spawn(self._check_on_caller(peer_id)).add_done_callback(
                lambda _: self._checking.pop(peer_id, None)
            )

    async def _check_on_caller(self, peer_id: str) -> None:
        group = self._checking[peer_id] = await self._group_of(peer_id)
        if list(self._checking.values()).count(group) <= MAX_CHECKS_OF_GROUP:
            await self._check_on(peer_id)

    async def _check_on(self, peer_id: str) -> None:
        """It asks a question, not a ping: a peer that answers no questions has no place in the table."""
        await self._find(contact_of(peer_id), id_bytes(self.contact.node_id))

    # Calls.

    async def _find(self, contact: Contact, key: bytes) -> FindReply | None:
        request = dht_pb2.FindRequest(keys=[key], peer=self._info)
        answer = await self._answer(contact.peer_id, "rpc_find", request, dht_pb2.FindResponse)
        if answer is None:
            return None
        if len(answer.results) != 1:
            self._failed(contact.peer_id)
            return None
        (result,) = answer.results
        names, lies = named(result.nearest_node_ids, result.nearest_peer_ids)
        if lies:
            logger.info("event=dht_lies peer=%s names=%d", contact.peer_id, lies)
            self.notes.lied(contact.peer_id)
        entries: list[Entry] = []
        if result.type == dht_pb2.FOUND_DICTIONARY:
            try:
                for subkey, value, expiration in unpack_dictionary(result.value):
                    entries.append(self._check.check(key, subkey, expiration, value))
                    if len(entries) % 32 == 0:
                        await asyncio.sleep(0)  # signatures take a tenth of a millisecond each
            except RemoteProtocolError as error:
                logger.info("event=dht_junk peer=%s message=%r", contact.peer_id, error.message)
                entries = []
        return FindReply(entries, names, await self._group_of(contact.peer_id))

    async def _answer(self, peer_id: str, name: str, request: Any, answer_type: Any) -> Any:
        """None if there is no answer."""
        try:
            return await self._call(peer_id, name, request, answer_type)
        except Exception as error:  # noqa: BLE001  the daemon raises whatever there is
            logger.debug("peer %s does not answer %s: %r", peer_id, name, error)
            return None

    async def _call(self, peer_id: str, name: str, request: Any, answer_type: Any) -> Any:
        """Raises what the daemon does, TimeoutError, and RemoteProtocolError for an id that is not the
        peer's."""
        try:
            async with asyncio.timeout(RPC_TIMEOUT_S):
                answer = await self._p2p.call_protobuf_handler(
                    _hivemind_id(peer_id), _PREFIX + name, request, answer_type
                )
                contact = proven(answer.peer.node_id, peer_id)
        except Exception:
            self._failed(peer_id)
            raise
        self.notes.answered(peer_id)
        self._lost.pop(peer_id, None)
        if contact is not None:
            self._heard_at = self._steady()
            unheard = self.table.answered(contact, await self._group_of(peer_id))
            if unheard is not None and unheard in self.table.unheard(UNHEARD_S, MAX_UNHEARD):
                self._check_soon(unheard.peer_id)
        return answer

    def _failed(self, peer_id: str) -> None:
        self.notes.silent(peer_id)
        if (contact := contact_of(peer_id)) in self.table:
            self._lost[peer_id] = contact
        self.table.failed(contact)

    async def _outlive(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.shield(self._spawn(work))

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


@lru_cache(maxsize=KEPT_CONTACTS)
def _hivemind_id(peer_id: str) -> PeerID:
    return PeerID(contact_of(peer_id).raw)
