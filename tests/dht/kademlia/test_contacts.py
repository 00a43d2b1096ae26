"""Ids follow from PeerIDs: what messages say about them is compared, never used."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.dht.kademlia.contacts import MAX_NAMES, contact_of, id_bytes, named, proven
from swarm_node.swarm.errors import RemoteProtocolError
from swarm_node.swarm.identity import Identity, peer_id_bytes

PEERS = [Identity(bytes([n]) * 32).peer_id for n in range(1, 30)]


def wire(peer_id: str) -> tuple[bytes, bytes]:
    return id_bytes(contact_of(peer_id).node_id), peer_id_bytes(peer_id)


def test_an_id_is_the_sha1_of_the_peer_ids_text() -> None:
    assert id_bytes(contact_of(PEERS[0]).node_id) == hashlib.sha1(PEERS[0].encode()).digest()


def test_only_the_proven_id_is_accepted() -> None:
    own, _ = wire(PEERS[0])
    contact = proven(own, PEERS[0])
    assert contact is not None
    assert contact.peer_id == PEERS[0]
    assert proven(b"", PEERS[0]) is None  # a client
    for claimed in (wire(PEERS[1])[0], own[:-1], own + b"\0", bytes(20), own[:-1] + bytes([own[-1] ^ 1])):
        with pytest.raises(RemoteProtocolError):
            proven(claimed, PEERS[0])
    with pytest.raises(RemoteProtocolError):
        proven(own, "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N")  # of an RSA key


def test_names_that_are_not_what_they_say_are_left_out_and_counted() -> None:
    ids, peers = zip(*map(wire, PEERS[:4]), strict=True)
    assert [c.peer_id for c in named(ids, peers)[0]] == PEERS[:4]
    assert named(ids, peers)[1] == 0
    swapped = named((ids[1], ids[0], *ids[2:]), peers)
    assert ([c.peer_id for c in swapped[0]], swapped[1]) == (PEERS[2:4], 2)
    assert named(ids, peers[:3])[1] == 1
    contacts, lies = named(*zip(*map(wire, PEERS), strict=True))
    assert (len(contacts), lies) == (MAX_NAMES, len(PEERS) - MAX_NAMES)


@given(st.lists(st.binary(max_size=42), max_size=40), st.lists(st.binary(max_size=42), max_size=40))
def test_any_bytes_are_names_or_lies(ids: list[bytes], peers: list[bytes]) -> None:
    contacts, lies = named(ids, peers)
    assert not contacts
    assert lies == max(len(ids), len(peers))
