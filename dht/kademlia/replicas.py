"""Reading and writing dictionary entries at the DHT nodes nearest to their keys.

A read asks all the nearest nodes along disjoint paths, merges entry by entry, and is over in bounded time.
A write goes to those of them that answered. Entries are signed, so of what several nodes tell all that
passes the check is true: one honest answer is enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..records.entry_check import Entry
from ..records.keys import REPLICAS, in_fair_order, key_hash
from ..records.told_entries import ToldEntries
from .contacts import Contact
from .look_up import Told
from .node import KademliaNode
from .paths import HEDGE_S

LOOKUP_TIMEOUT_S = 5.0
"""A lookup returns what it has found after this many seconds, even if peers are still silent."""
WIDTH = 16
"""A lookup asks this many nearest nodes, of different address groups if there are enough."""
WRITE_WIDTH = 12
"""An entry is kept among this many nearest nodes. A lookup asks more, so that the entry is still found after
other nodes have come nearer."""
KEYS_AT_ONCE = 16
"""This many keys are looked up side by side."""


@dataclass(slots=True)
class Lookup:
    """What a lookup found: live entries by key and owner, the nodes to store at, and how many answered."""

    entries: dict[str, dict[str, Entry]]
    nearest: dict[str, list[Contact]] = field(default_factory=dict)
    answers: int = 0  # questions answered by other nodes
    failures: int = 0  # questions that were not
    copies: int = 0  # answers that had an entry of the counted owner
    is_alone: bool = False  # one node at most has answered, ourselves included, and others may be there


@dataclass(slots=True)
class Written:
    """How the nodes nearest to a key answered one entry, other than us, and whether we keep it ourselves."""

    accepted: int = 0
    refused: int = 0
    unreachable: int = 0
    own: bool = False

    def count(self, answer: bool | None) -> None:
        if answer is None:
            self.unreachable += 1
        elif answer:
            self.accepted += 1
        else:
            self.refused += 1


class Replicas:
    """Lookups and writes through one DHT node. ``clock``: seconds of Unix time. ``tag``: of the swarm.
    ``anchors``: nodes that every lookup asks, however far from the key."""

    def __init__(
        self,
        node: KademliaNode,
        clock: Callable[[], float],
        tag: str = "",
        anchors: Callable[[], Sequence[Contact]] = tuple,
    ) -> None:
        self._tag = tag
        self._node = node
        self._clock = clock
        self._anchors = anchors
        self._slots = asyncio.Semaphore(KEYS_AT_ONCE)

    async def lookup(self, keys: Sequence[str], *, own: bool = True, count: str = "") -> Lookup:
        """All live entries of ``keys``, from the nodes nearest to them and, with ``own``, from our
        storage."""
        found = Lookup(entries={key: {} for key in keys})
        await asyncio.gather(*(self._look_up(key, found, own, count) for key in found.entries))
        answered = {contact for nearest in found.nearest.values() for contact in nearest}
        found.is_alone = len(answered) <= 1 and self._node.heard_lately
        return found

    async def _look_up(self, key: str, found: Lookup, own: bool, count: str) -> None:
        node, raw, told = self._node, key_hash(key, self._tag), ToldEntries(found.entries[key])
        key_id = int.from_bytes(raw)
        if own:
            told.add(node.contact.peer_id, node.own_entries(raw), self._clock())

        async def ask(contact: Contact) -> Told | None:
            answer = await node.find(contact, raw)
            if answer is None:
                found.failures += 1
                return None
            found.answers += 1
            found.copies += any(entry.owner == count for entry in answer.entries)
            told.add(contact.peer_id, answer.entries, self._clock())
            return Told(answer.names, answer.group)

        async with self._slots:
            paths = await node.look_up(
                key_id, ask, width=WIDTH, enough=REPLICAS, anchors=self._anchors(), limit_s=LOOKUP_TIMEOUT_S
            )
        nearest = paths.nearest()
        if not node.client_mode:
            nearer = [c for c in nearest if c.node_id ^ key_id < node.contact.node_id ^ key_id]
            nearest.insert(len(nearer), node.contact)
        found.nearest[key] = nearest
        found.entries[key] = told.bounded(node.contact.peer_id)

    async def write(
        self,
        owner: str,
        value: bytes,
        expiration: float,
        key: str,
        found: Lookup,
        also: Sequence[Contact] = (),
    ) -> Written:
        """Store ``owner``'s entry at REPLICAS nodes of those that readers ask, as ``found`` names them. If
        one does not take it, or not soon, another gets it. ``also``: further nodes to store it at."""
        node, raw = self._node, key_hash(key, self._tag)
        result, candidates = Written(), self._in_turn(owner, found.nearest[key][:WRITE_WIDTH])
        asking: dict[asyncio.Task[bool | None], bool] = {}  # and whether it is counted on

        def ask(contact: Contact, counted: bool) -> None:
            if contact == node.contact:
                result.own = node.stores.keep(raw, owner, value, expiration)
            else:
                work = node.store(contact, raw, owner, value, expiration)
                asking[asyncio.create_task(work)] = counted

        for contact in also:
            if contact not in candidates:
                ask(contact, counted=False)
        try:
            while True:
                wanted = REPLICAS - result.accepted - result.own - sum(asking.values())
                while wanted > 0 and candidates:
                    ask(candidates.pop(0), counted=True)
                    wanted -= 1
                if not asking or result.accepted + result.own >= REPLICAS + len(also):
                    return result
                done, _ = await asyncio.wait(asking, timeout=HEDGE_S, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del asking[task]
                    result.count(task.result())
                if not done:
                    if result.accepted + result.own >= REPLICAS:
                        return result
                    asking = dict.fromkeys(asking, False)
        finally:
            for task in asking:
                task.cancel()

    def _in_turn(self, owner: str, nearest: Sequence[Contact]) -> list[Contact]:
        """The nodes in the order to store at: any of those that readers ask, the same ones each time. The
        nearest of all come in no special place, since an attacker may have invented identities to be
        nearest."""
        turn = in_fair_order((contact.peer_id for contact in nearest), owner)
        return sorted(nearest, key=lambda contact: turn.index(contact.peer_id))
