"""Reading and writing dictionary entries at the DHT nodes nearest to their keys.

hivemind's own ``get`` and ``store`` sit on the same lookups, but cache, answer from the first replica that is
good enough, take the word of one replica for how long a dictionary lives, and wait for ever when one sends a
damaged one. Here a read asks all the nearest nodes, merges entry by entry, and is over in bounded time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.traverse import traverse_dht
from hivemind.p2p import PeerID

from ..swarm.errors import RemoteProtocolError
from .entry_check import Entry
from .envelope import unseal
from .layout import MAX_ENTRIES, REPLICAS, in_fair_order, key_hash

LOOKUP_TIMEOUT_S = 5.0
"""A lookup returns what it has found by then. One frozen node costs RPC_TIMEOUT_S, once."""

RPC_TIMEOUT_S = 2.0
"""One answer of one DHT node, dialling it included."""

_BEAM = 2 * REPLICAS  # nearest nodes asked: entries survive that many changes of who is nearest
_WORKERS = 16  # questions in flight

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Lookup:
    """What a lookup found: live entries by key and owner, the nodes to store at, and how many answered."""

    entries: dict[str, dict[str, Entry]]
    nearest: dict[str, list[tuple[DHTID, PeerID]]] = field(default_factory=dict)
    answers: int = 0  # questions answered by other nodes
    failures: int = 0  # questions that were not


@dataclass(slots=True)
class Written:
    """How the nodes nearest to a key answered one entry, other than us, and whether we keep it ourselves."""

    accepted: int = 0
    refused: int = 0
    unreachable: int = 0
    own: bool = False


class Replicas:
    """Lookups and writes through one DHTNode. ``clock``: seconds of Unix time. ``tag``: of the swarm."""

    def __init__(self, node: DHTNode, clock: Callable[[], float], tag: str = "") -> None:
        self._tag = tag
        self._node = node
        self._clock = clock
        self._salt = str(node.peer_id)

    async def lookup(self, keys: Sequence[str]) -> Lookup:
        """All live entries of ``keys``, from the nodes nearest to them and from our own storage."""
        node = self._node
        key_ids = {DHTID.from_bytes(key_hash(key, self._tag)): key for key in keys}
        found = Lookup(entries={key: {} for key in keys})
        peers: dict[DHTID, PeerID] = {}
        for key_id, key in key_ids.items():
            if (own := node.protocol.storage.get(key_id)) is not None:
                self._merge(found.entries[key], key_id, own.value)
            neighbours = node.protocol.routing_table.get_nearest_neighbors(
                key_id, _BEAM, exclude=node.node_id
            )
            peers.update((node_id, peer) for node_id, peer in neighbours if peer not in node.blacklist)

        async def ask(node_id: DHTID, queries: Collection[DHTID]) -> dict[DHTID, tuple[list[DHTID], bool]]:
            peer = peers[node_id]
            answer = None
            if peer not in node.blacklist:
                answer = await node.protocol.call_find(peer, list(queries))
                if answer is None:
                    node.blacklist.register_failure(peer)
                    found.failures += 1
                else:
                    node.blacklist.register_success(peer)
                    found.answers += 1
            neighbours: dict[DHTID, tuple[list[DHTID], bool]] = {query: ([], False) for query in queries}
            for query, (value, nearest) in (answer or {}).items():
                if value is not None:
                    self._merge(found.entries[key_ids[query]], query, value.value)
                known = {i: p for i, p in list(nearest.items())[:_BEAM] if p not in node.blacklist}
                for new_id, new_peer in known.items():
                    peers.setdefault(new_id, new_peer)
                neighbours[query] = (list(known), False)
            return neighbours

        nearest: Mapping[DHTID, Sequence[DHTID]] = {}
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                nearest, _ = await traverse_dht(
                    queries=list(key_ids),
                    initial_nodes=list(peers),
                    beam_size=_BEAM,
                    num_workers=_WORKERS,
                    queries_per_call=1,  # one dictionary a message, which has a bound
                    get_neighbors=ask,
                    visited_nodes={key_id: {node.node_id} for key_id in key_ids},
                )
        except TimeoutError:
            logger.warning(
                "a directory lookup took over %.0f s: going on with what was found", LOOKUP_TIMEOUT_S
            )
        for key_id, key in key_ids.items():
            ids = set(nearest.get(key_id, peers)) - {node.node_id}
            candidates = [(i, peers[i]) for i in ids if peers[i] not in node.blacklist]
            if not node.protocol.client_mode:
                candidates.append((node.node_id, node.peer_id))
            found.nearest[key] = sorted(candidates, key=lambda item: key_id.xor_distance(item[0]))
            found.entries[key] = self._bounded(found.entries[key])
        return found

    async def write(self, owner: str, value: bytes, expiration: float, key: str, found: Lookup) -> Written:
        """Store ``owner``'s entry at the REPLICAS nearest nodes that ``found`` names and that answer."""
        key_id = DHTID.from_bytes(key_hash(key, self._tag))
        result, candidates = Written(), list(found.nearest[key])
        while candidates and (wanted := REPLICAS - result.accepted - result.refused - result.own) > 0:
            batch, candidates = candidates[:wanted], candidates[wanted:]
            if (self._node.node_id, self._node.peer_id) in batch:
                batch.remove((self._node.node_id, self._node.peer_id))
                result.own = self._node.protocol.storage.store(key_id, value, expiration, subkey=owner)
            answers = await asyncio.gather(
                *(self._store_at(peer, key_id, owner, value, expiration) for _, peer in batch)
            )
            result.accepted += answers.count(True)
            result.refused += answers.count(False)
            result.unreachable += answers.count(None)
        return result

    async def _store_at(
        self, peer: PeerID, key_id: DHTID, owner: str, value: bytes, expiration: float
    ) -> bool | None:
        """Whether that node took the entry; None if it did not answer."""
        protocol = self._node.protocol
        try:
            async with asyncio.timeout(RPC_TIMEOUT_S + 1):  # hivemind has its own; a dead daemon ignores it
                answer = await protocol.call_store(peer, [key_id], [value], [expiration], subkeys=[owner])
        except TimeoutError:
            return None
        return bool(answer[0]) if answer else None

    def _merge(self, entries: dict[str, Entry], key_id: DHTID, dictionary: object) -> None:
        """Take over live entries, the longest-lived of each owner. Signatures were checked on arrival."""
        if not isinstance(dictionary, DictionaryDHTValue):
            return
        now, key = self._clock(), key_id.to_bytes()
        for owner, (value, expiration) in dictionary.data.items():
            if expiration <= now or (owner in entries and entries[owner].expiration >= expiration):
                continue
            try:
                sealed = unseal(key, self._node.protocol.serializer.dumps(owner), expiration, value)
            except RemoteProtocolError as error:
                logger.debug("skipped a DHT entry: %s", error)
                continue
            entries[owner] = Entry(owner, expiration, sealed.body, value)

    def _bounded(self, entries: dict[str, Entry]) -> dict[str, Entry]:
        if len(entries) <= MAX_ENTRIES:
            return entries
        return {owner: entries[owner] for owner in in_fair_order(entries, self._salt)[:MAX_ENTRIES]}
