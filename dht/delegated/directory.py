"""The directory for peers that are not in the DHT: nodes of the swarm are asked for its signed entries.

Several are asked each time and their answers merged. An entry counts if its owner has signed it, for this key
and until this time, so that a node that lies can leave others out, while another speaks of them, but neither
invent nor alter one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from ...swarm.errors import (
    NetworkError,
    NotAdmittedError,
    NotSpokenError,
    PeerUnreachableError,
    RemoteProtocolError,
    SwarmError,
)
from ...swarm.fairness.recent import RecentMap
from ...swarm.faults import Faults
from ...swarm.identity import Identity
from ...swarm.links.guarded_dials import GuardedDials
from ...swarm.links.message_stream import MessageStream
from ...swarm.membership.membership import Membership
from ...swarm.runtime.tasks import cancel_all, in_thread
from ...swarm.transport.interface import Stream, Transport
from ...swarm.types import ModelRef, NodeInfo, short_peer_id
from ..address_book import AddressBook
from ..directory import TTL_S
from ..records.directory import Clock, RecordDirectory
from ..records.entry_check import ClockReading, Entry, EntryCheck, clock_problem
from ..records.envelope import subkey_of
from ..records.keys import MAX_ENTRIES, key_hash, model_keys
from ..records.told_entries import ToldEntries
from .messages import (
    DELEGATED_MESSAGES,
    DELEGATED_PROTOCOL,
    MAX_FRAME,
    MAX_KEYS,
    DelegatedMessage,
    Entries,
    Get,
    Put,
    Slower,
    Stored,
    unpack_entries,
)
from .side_by_side import ask_side_by_side
from .sources import Sources, without_daemon

ASKED = 3
"""A lookup takes the answers of this many nodes: all of them must lie to hide a peer."""
DIAL_S = 5.0
"""Seconds to open a stream to a node; others are asked long before."""
SILENT_S = 2.5
"""An answer of which no byte came for this many seconds is given up."""
ANSWER_S = 30.0
"""Seconds for one node's whole answer, dialling it included: 4 MB on a line of 1 Mbit/s."""
MAX_REFUSALS = 64
"""The refusals of this many peers are remembered."""
MAX_ANSWER = MAX_ENTRIES * 4200
"""A node may answer with this many bytes for one key: as many entries as a key holds, of the largest size."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class LookupAnswers:
    """What the asked peers know, which of them answered, and which of these reach no other peer."""

    told: dict[str, ToldEntries]
    clocks: dict[str, ClockReading] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)

    @property
    def is_alone(self) -> bool:
        return self.clocks.keys() <= self.alone

    @property
    def entries(self) -> Mapping[str, Mapping[str, Entry]]:
        return {key: told.entries for key, told in self.told.items()}


class DelegatedDirectory(RecordDirectory[LookupAnswers]):
    """Implements Directory. ``join`` meets the swarm."""

    def __init__(
        self,
        transport: Transport,
        identity: Identity,
        initial_peers: Sequence[str],
        ttl: float = TTL_S,
        clock: Clock = time.time,
        membership: Membership | None = None,
        rng: random.Random | None = None,
        book: AddressBook | None = None,
        serves: bool = False,
    ) -> None:
        """``book``: peers that answered before. ``serves``: this is a node, which dials fewer of the places
        that strangers announce than a client. Raises UsageError for malformed addresses."""
        super().__init__(identity, ttl, clock, membership)
        self._transport = transport
        self._dials = GuardedDials(transport, for_client=not serves)
        self._tag = "" if membership is None else membership.tag
        self._check = EntryCheck(ttl, clock, membership)
        self._book = AddressBook(clock=clock) if book is None else book
        self._sources = Sources(
            identity.peer_id, initial_peers, self._book, clock, rng or random.SystemRandom()
        )
        self._refusals: RecentMap[str, NotAdmittedError] = RecentMap(MAX_REFUSALS)
        self._greeting: set[asyncio.Task[None]] = set()  # peers that have not answered yet since the start
        self.reached = False  # some peer let us open a stream, whether or not it answered
        self._closed = False
        self._faults = Faults("asking for entries")

    async def join(self) -> None:
        """Meet the swarm: ask all initial peers side by side. Returns with the first good answer. The others
        go on, and are asked again once they have answered.

        Raises PeerUnreachableError or another NetworkError if none answers, NotAdmittedError if they are of
        another swarm, NetworkError if all their clocks differ from ours by more than 3 s.
        """
        found = LookupAnswers({key: ToldEntries() for key in model_keys()})
        asked = {
            asyncio.create_task(self._ask(peer_id, list(found.told), found)): peer_id
            for peer_id in self._sources.at_start()
        }
        if not asked:
            return
        self._greeting.update(asked)
        for task, peer_id in asked.items():
            self._sources.failed(peer_id)  # until it has answered
            task.add_done_callback(partial(self._greeted, peer_id))
        pending = set(asked)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if any(task.exception() is None for task in done) and clock_problem(found.clocks) is None:
                return
        self._check_clocks(found)
        raise self._nobody({peer_id: _error_of(peer_id, task) for task, peer_id in asked.items()})

    def _greeted(self, peer_id: str, task: asyncio.Task[None]) -> None:
        self._greeting.discard(task)
        if not task.cancelled() and task.exception() is None:
            self._sources.answered(peer_id)

    def add_peers(self, addresses: Iterable[str]) -> None:
        """Ask these too from now on: multiaddresses that end in /p2p/PEER. Raises UsageError."""
        self._sources.add(addresses)

    async def meet(self, peer_id: str, maddrs: Sequence[str]) -> bool:
        """Whether a peer that was found answers, and belongs to this swarm; it is asked from now on.
        ``maddrs``: without /p2p/."""
        if peer_id == self._identity.peer_id or self._closed:
            return False
        self._sources.put(peer_id, maddrs)
        self._refusals.pop(peer_id, None)
        keys = model_keys()
        try:
            await self._ask(peer_id, keys, LookupAnswers({key: ToldEntries() for key in keys}))
        except SwarmError as error:
            logger.debug("peer %s tells nothing of the swarm: %s", peer_id, error.message)
            self.forget(peer_id)
            if isinstance(error, NotAdmittedError):
                self._refusals[peer_id] = error
            return False
        return True

    def forget(self, peer_id: str) -> None:
        """A peer that was met is lost, as far as its finder knows."""
        self._sources.remove(peer_id)

    @property
    def refusals(self) -> list[NotAdmittedError]:
        """Why peers that were found are not in this swarm, or why we are not in theirs."""
        return list(self._refusals.values())

    async def nodes(self, model: ModelRef) -> list[NodeInfo]:
        return self._meet(await super().nodes(model))

    async def nodes_of(self, models: Sequence[ModelRef]) -> list[NodeInfo]:
        return self._meet(await super().nodes_of(models))

    async def close(self) -> None:
        self._closed = True
        await cancel_all(self._greeting)
        await in_thread(self._book.save)

    # RecordDirectory

    async def _lookup(self, keys: Sequence[str]) -> LookupAnswers:
        found = LookupAnswers({key: ToldEntries() for key in keys})
        for start in range(0, len(keys), MAX_KEYS):
            await self._ask_several(keys[start : start + MAX_KEYS], found)
        for told in found.told.values():
            told.entries = told.bounded(self._identity.peer_id)
        return found

    async def _store(
        self, key: str, expiration: float, value: bytes, found: LookupAnswers
    ) -> NetworkError | None:
        """Give our entry to the peers that answered the lookup: each stores it in the DHT."""

        said: dict[str, str] = {}

        async def give(peer_id: str) -> None:
            stream = await self._open(peer_id)
            try:
                await stream.send(Put(key, expiration, value))
                answer = await stream.receive_within(SILENT_S)
            finally:
                stream.close()
            match answer:
                case Stored(reason):
                    said[peer_id] = reason
                case Slower(retry_after_ms):
                    seconds = retry_after_ms / 1000
                    said[peer_id] = f"peer {short_peer_id(peer_id)} takes no announcement for {seconds:.1f} s"
                case _:
                    raise RemoteProtocolError(
                        f"peer {short_peer_id(peer_id)} answered PUT with {type(answer).__name__}"
                    )

        outcomes = await ask_side_by_side(lambda _: list(found.clocks), give, ASKED)
        for error in outcomes.values():
            if error is not None and not isinstance(error, SwarmError):
                raise error
        if "" in said.values():
            return None
        reason = next(iter(said.values()), "nobody answers")
        return NetworkError(f"our announcement was not stored: {reason}")

    # Asking.

    async def _ask_several(self, keys: Sequence[str], found: LookupAnswers) -> None:
        if self._closed:
            raise NetworkError("the directory is closed")
        errors: dict[str, SwarmError] = {}
        outcomes = await ask_side_by_side(
            self._sources.in_turn, lambda peer_id: self._ask(peer_id, keys, found), ASKED
        )
        if None not in outcomes.values():
            outcomes |= await ask_side_by_side(
                lambda _: self._sources.by_daemon(), lambda peer_id: self._ask(peer_id, keys, found), ASKED
            )
        for peer_id, error in outcomes.items():
            if error is None:
                self._sources.answered(peer_id)
                continue
            if not isinstance(error, SwarmError):  # what one answers must not cost us what the others say
                self._faults.note(error, peer_id)
                error = _unreadable(peer_id)
            logger.debug("peer %s tells nothing of the swarm: %s", peer_id, error.message)
            errors[peer_id] = error
            self._sources.failed(peer_id)
        if len(errors) == len(outcomes):
            raise self._nobody(errors)
        self._check_clocks(found)

    def _check_clocks(self, found: LookupAnswers) -> None:
        if (problem := clock_problem(found.clocks)) is not None:
            raise NetworkError(problem, hint="Set both clocks by network time (NTP), then start again.")

    async def _ask(self, peer_id: str, keys: Sequence[str], found: LookupAnswers) -> None:
        """Add what this peer knows. Raises SwarmError."""
        try:
            async with asyncio.timeout(ANSWER_S):
                stream = await self._open(peer_id)
                try:
                    sent = self._clock()
                    await stream.send(Get(tuple(keys)))
                    size = 0
                    while True:
                        answer = await stream.receive_within(SILENT_S)
                        if isinstance(answer, Slower):
                            raise NetworkError(
                                f"peer {short_peer_id(peer_id)} refused the request: it was asked too often"
                            )
                        if not isinstance(answer, Entries):
                            raise RemoteProtocolError(f"{type(answer).__name__} is not an answer to GET")
                        half = (self._clock() - sent) / 2
                        found.clocks.setdefault(peer_id, ClockReading(answer.time - sent - half, half))
                        if answer.alone:
                            found.alone.add(peer_id)
                        size += len(answer.payload)
                        if size > MAX_ANSWER * len(keys):
                            raise RemoteProtocolError("ENTRIES: more bytes than the keys may hold")
                        self._take(peer_id, keys, answer, found)
                        if answer.last:
                            return
                finally:
                    stream.close()
        except TimeoutError:
            raise PeerUnreachableError(f"peer {peer_id} did not answer in time") from None

    def _take(self, teller: str, keys: Sequence[str], answer: Entries, found: LookupAnswers) -> None:
        now = self._clock()
        for packed in unpack_entries(keys, answer.payload):
            key = keys[packed.key]
            told = found.told[key]
            try:
                if packed.expiration <= now:
                    continue
                entry = told.entries.get(packed.owner.decode("latin-1"))
                if entry is not None and entry.expiration > packed.expiration:
                    continue
                if entry is None or (entry.expiration, entry.value) != (packed.expiration, packed.value):
                    entry = self._check.check(
                        key_hash(key, self._tag), subkey_of(packed.owner), packed.expiration, packed.value
                    )
            except RemoteProtocolError as error:
                logger.debug("skipped an entry: %s", error.message)
                continue
            told.add(teller, [entry], now)

    async def _open(self, peer_id: str) -> MessageStream[DelegatedMessage]:
        maddrs = self._sources.maddrs(peer_id)

        async def dial(chosen: Sequence[str]) -> Stream:
            return await self._transport.open_stream(
                peer_id, DELEGATED_PROTOCOL, chosen, timeout=DIAL_S, lazy=True
            )

        async def dial_announced(chosen: Sequence[str]) -> Stream:
            if not self._sources.needs_daemon(peer_id):
                chosen = without_daemon(peer_id, chosen)
            return await dial(chosen)

        try:
            if self._sources.is_announced(peer_id):
                stream = await self._dials.dial(peer_id, maddrs, dial_announced)
            else:
                stream = await dial(maddrs)
        except NotSpokenError:
            self.reached = True
            raise
        self.reached = True
        return MessageStream(stream, DELEGATED_MESSAGES, MAX_FRAME)

    def _meet(self, nodes: list[NodeInfo]) -> list[NodeInfo]:
        """Remember further nodes to ask."""
        self._sources.learn(nodes)
        return nodes

    def _nobody(self, errors: Mapping[str, SwarmError]) -> NetworkError:
        if not self._sources:
            return PeerUnreachableError(
                "no node of the swarm is known that could be asked who serves what",
                hint="Check this computer's network, and that a node with p2pd runs.",
            )
        if len(errors) == 1 and isinstance(error := next(iter(errors.values())), NetworkError):
            return error
        for error in errors.values():
            if isinstance(error, NotAdmittedError):
                raise error
        return PeerUnreachableError(
            f"no peer answers at {', '.join(self._sources.addresses)}",
            hint="Check that the nodes there run, and the addresses, ports and PeerIDs that they print.",
        )


def _error_of(peer_id: str, task: asyncio.Task[None]) -> SwarmError:
    error = task.exception()
    return error if isinstance(error, SwarmError) else _unreadable(peer_id)


def _unreadable(peer_id: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"peer {short_peer_id(peer_id)} sent an answer that cannot be read")
