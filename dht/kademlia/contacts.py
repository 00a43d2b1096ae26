"""A peer in the DHT: a PeerID that the transport has proven, and the id that follows from it.

Ids are computed here and nowhere else. What a message says about ids is only compared with that. So a peer
can choose its place in the DHT only by inventing identities until one fits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...swarm.errors import RemoteProtocolError
from ...swarm.identity import peer_id_bytes, peer_id_of
from ...swarm.types import short_peer_id

ID_BYTES = 20
"""Bytes of a DHT id, which is a SHA-1."""

MAX_NAMES = 20
"""One answer may name this many peers. Kademlia's k."""

KEPT_CONTACTS = 1024
"""This many contacts are cached, each 0.5 kB: those of a table and of some look-ups. The bound is needed
because names can be invented."""

_ED25519 = bytes.fromhex("002408011220")  # what each binary PeerID of an Ed25519 key begins with


@dataclass(frozen=True, slots=True)
class Contact:
    """A peer in the DHT. Made by ``contact_of``. ``node_id``: its DHT id as a number; ``raw``: its PeerID in
    binary, as messages name it."""

    node_id: int
    peer_id: str
    raw: bytes = b""


@lru_cache(maxsize=KEPT_CONTACTS)
def contact_of(peer_id: str) -> Contact:
    """The contact that a PeerID (base58) is: its id is the SHA-1 of the PeerID's text. Raises
    RemoteProtocolError for a text that is not a PeerID."""
    digest = hashlib.sha1(peer_id.encode(), usedforsecurity=False).digest()
    return Contact(int.from_bytes(digest), peer_id, peer_id_bytes(peer_id))


def id_bytes(node_id: int) -> bytes:
    return node_id.to_bytes(ID_BYTES)


def proven(claimed: bytes, peer_id: str) -> Contact | None:
    """The contact of an authenticated peer whose message names ``claimed`` as its DHT id.

    None: it names none, since it takes no part (a client). Raises RemoteProtocolError for an id that is not
    its own.
    """
    if not claimed:
        return None
    contact = contact_of(peer_id)
    if not contact.raw.startswith(_ED25519):
        raise RemoteProtocolError("a DHT node whose PeerID is not of an Ed25519 key")
    if claimed != id_bytes(contact.node_id):
        raise RemoteProtocolError(
            f"peer {short_peer_id(peer_id)} claims a DHT id that is not the hash of its PeerID"
        )
    return contact


def named(ids: Sequence[bytes], peer_ids: Sequence[bytes]) -> tuple[list[Contact], int]:
    """The peers that an answer names, in its order, and how many of its names are lies.

    A name is a lie if its id is not that of its PeerID, or if there are more names than MAX_NAMES.
    """
    contacts: dict[str, Contact] = {}
    lies = abs(len(ids) - len(peer_ids)) + max(0, min(len(ids), len(peer_ids)) - MAX_NAMES)
    for claimed, raw in zip(ids[:MAX_NAMES], peer_ids, strict=False):
        contact = _named(raw)
        if contact is None or claimed != id_bytes(contact.node_id):
            lies += 1
        else:
            contacts[contact.peer_id] = contact
    return list(contacts.values()), lies


@lru_cache(maxsize=KEPT_CONTACTS)
def _named(raw: bytes) -> Contact | None:
    if len(raw) != len(_ED25519) + 32 or not raw.startswith(_ED25519):
        return None
    return contact_of(peer_id_of(raw[len(_ED25519) :]))
