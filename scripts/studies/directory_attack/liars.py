"""Hostile DHT nodes: those that answer with their own kind, with inventions, with nothing, or with junk."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from heapq import nsmallest
from typing import Any

from hivemind.p2p import PeerID
from hivemind.proto import dht_pb2

from swarm_node.dht.kademlia.contacts import Contact, contact_of, id_bytes
from swarm_node.swarm.identity import peer_id_of

from ...lab.memory_dht import CallNetwork

KINDS = ("eclipse", "inventions", "silence", "junk")
NAMES = 20


def invented(rng: random.Random, number: int) -> list[Contact]:
    """Contacts that nobody has the keys of: enough of them lie near any key."""
    return [contact_of(peer_id_of(rng.randbytes(32))) for _ in range(number)]


class Crowd:
    """Contacts, of which the nearest to a key are named."""

    def __init__(self, contacts: Sequence[Contact]) -> None:
        self._contacts = contacts
        self._nearest: dict[int, list[Contact]] = {}

    def nearest(self, key: int) -> list[Contact]:
        if key not in self._nearest:
            self._nearest[key] = nsmallest(NAMES, self._contacts, key=lambda contact: contact.node_id ^ key)
        return self._nearest[key]


class Liar:
    """Its PeerID is its own, for the transport proves that; all else it may say."""

    def __init__(self, network: CallNetwork, contact: Contact, host: str, kind: str, crowd: Crowd) -> None:
        """``crowd``: whom it names: other liars, or inventions."""
        self.contact = contact
        self.kind = kind
        self._p2p = network.join(contact.peer_id, host)
        self._rng = network.rng
        self._crowd = crowd
        self._info = dht_pb2.NodeInfo(node_id=id_bytes(contact.node_id))

    async def start(self) -> None:
        for name, handler in (("ping", self._ping), ("store", self._store), ("find", self._find)):
            await self._p2p.add_protobuf_handler(f"DHTProtocol.rpc_{name}", handler, None)

    async def call_on(self, peers: Sequence[str]) -> None:
        """Ask to be in the tables of ``peers``."""
        request = dht_pb2.PingRequest(peer=self._info)
        await asyncio.gather(
            *(
                self._p2p.call_protobuf_handler(
                    PeerID.from_base58(peer_id), "DHTProtocol.rpc_ping", request, None
                )
                for peer_id in peers
            ),
            return_exceptions=True,
        )

    async def _ping(self, request: Any, context: Any) -> Any:
        # Even the silent answer a ping: so they get into tables.
        return dht_pb2.PingResponse(peer=self._info, dht_time=0.0, available=True)

    async def _store(self, request: Any, context: Any) -> Any:
        await self._mute()
        return dht_pb2.StoreResponse(peer=self._info, store_ok=[True] * len(request.keys))

    async def _find(self, request: Any, context: Any) -> Any:
        await self._mute()
        key = int.from_bytes(request.keys[0])
        result = dht_pb2.FindResult(type=dht_pb2.NOT_FOUND)
        if self.kind == "junk":
            result = dht_pb2.FindResult(type=dht_pb2.FOUND_DICTIONARY, value=self._rng.randbytes(400))
            result.nearest_node_ids.extend(id_bytes(key ^ n) for n in range(NAMES))
            result.nearest_peer_ids.extend(self.contact.raw for _ in range(NAMES))
        else:
            for contact in self._crowd.nearest(key):
                result.nearest_node_ids.append(id_bytes(contact.node_id))
                result.nearest_peer_ids.append(contact.raw)
        return dht_pb2.FindResponse(peer=self._info, results=[result])

    async def _mute(self) -> None:
        if self.kind == "silence":
            await asyncio.sleep(3600)
