"""Announcements of simulated nodes on the way that they take through the DHT: bytes, signed, and back."""

from __future__ import annotations

from collections.abc import Callable
from time import process_time

from swarm_node.dht.directory import TTL_S
from swarm_node.dht.records.bodies import decode, encode_node
from swarm_node.dht.records.envelope import is_signed, seal, subkey_of, unseal
from swarm_node.dht.records.keys import key_hash, node_key
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.types import NodeInfo


class Records:
    """``costs``: processor seconds of "announce" (an owner's) and "read" (a replica's and a reader's)."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.costs: dict[str, list[float]] = {}
        self._now = now
        self._identities: dict[str, Identity] = {}

    def know(self, identity: Identity) -> None:
        self._identities[identity.peer_id] = identity

    def forget(self, peer_id: str) -> None:
        self._identities.pop(peer_id, None)

    def publish(self, info: NodeInfo) -> NodeInfo:
        """What readers make of the announcement. Raises SwarmError where they would refuse it."""
        identity = self._identities[info.peer_id]
        key = key_hash(node_key(info.model, info.span))
        began = process_time()
        expiration = self._now() + TTL_S
        value = seal(identity, key, expiration, encode_node(info))
        sent = process_time()
        sealed = unseal(key, subkey_of(identity.peer_id.encode()), expiration, value)
        if not is_signed(key, expiration, sealed):
            raise ValueError("an announcement of our own with a bad signature")
        read = decode(sealed.owner, sealed.body)
        self.costs.setdefault("announce", []).append(sent - began)
        self.costs.setdefault("read", []).append(process_time() - sent)
        if not isinstance(read, NodeInfo):
            raise TypeError(f"a node's announcement was read as {read}")
        return read
