"""Entries that others bring, without a network."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hivemind.proto import dht_pb2

from swarm_node.dht.kademlia.store_calls import MAX_STORED_AT_ONCE, StoreCalls
from swarm_node.dht.records.entry_check import EntryCheck
from swarm_node.dht.records.envelope import seal, subkey_of
from swarm_node.dht.records.kept_entries import KeptEntries
from swarm_node.dht.records.keys import MAX_KEYS_OF_OWNER
from swarm_node.swarm.fairness.shares import Holder
from swarm_node.swarm.identity import Identity

NOW = 1_700_000_000.0
OWNER, OTHER = Identity(b"s" * 32), Identity(b"o" * 32)
SENDER = Holder(OWNER.peer_id, "net 1")


@pytest.fixture
def stores() -> StoreCalls:
    clock = lambda: NOW  # noqa: E731
    return StoreCalls(KeptEntries(clock=clock), EntryCheck(clock=clock), Identity(b"k" * 32).peer_id)


def to_store(*keys: bytes, owner: Identity = OWNER, value: bytes = b"", in_cache: bool = False) -> Any:
    count, until = len(keys), NOW + 60
    return dht_pb2.StoreRequest(
        keys=keys,
        subkeys=[subkey_of(owner.peer_id.encode())] * count,
        values=[value or seal(owner, key, until, b"body") for key in keys],
        expiration_time=[until] * count,
        in_cache=[in_cache] * count,
    )


def keys(count: int) -> list[bytes]:
    return [os.urandom(20) for _ in range(count)]


def test_entries_count_for_the_network_that_they_come_from(stores: StoreCalls) -> None:
    (key,) = keys(1)
    assert stores.answer(to_store(key), SENDER) == [True]
    assert stores.answer(to_store(key, owner=OTHER), SENDER) == [True]  # brought for another
    assert {entry.group for entry in stores.kept.entries(key).values()} == {"net 1"}
    assert stores.keep(key, OTHER.peer_id, seal(OTHER, key, NOW + 61, b"x"), NOW + 61)
    assert stores.kept.entries(key)[OTHER.peer_id].value == seal(OTHER, key, NOW + 61, b"x")


def test_dictionaries_caches_and_unsigned_entries_are_refused(stores: StoreCalls) -> None:
    whole = to_store(*keys(1), value=b"whatever")
    whole.subkeys[0] = b""
    forged = to_store(*keys(1), owner=OTHER, value=seal(OWNER, bytes(20), NOW + 60, b"x"))
    for request in (whole, to_store(*keys(1), in_cache=True), forged):
        assert stores.answer(request, SENDER) == [False]
    assert len(stores.kept) == 0


def test_who_has_no_room_left_is_refused_before_a_signature_is_checked(
    stores: StoreCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = keys(MAX_KEYS_OF_OWNER)
    for start in range(0, MAX_KEYS_OF_OWNER, MAX_STORED_AT_ONCE):
        stores.answer(to_store(*many[start : start + MAX_STORED_AT_ONCE]), SENDER)
    assert len(stores.kept) == MAX_KEYS_OF_OWNER
    monkeypatch.setattr(stores._check, "check", lambda *entry: pytest.fail("checked"))
    assert stores.answer(to_store(*keys(1)), SENDER) == [False]


def test_requests_of_many_entries_or_uneven_fields_are_errors(stores: StoreCalls) -> None:
    with pytest.raises(ValueError, match="fields"):
        stores.answer(to_store(*keys(MAX_STORED_AT_ONCE + 1)), SENDER)
    uneven = to_store(*keys(2))
    del uneven.values[1]
    with pytest.raises(ValueError, match="fields"):
        stores.answer(uneven, SENDER)
