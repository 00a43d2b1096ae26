"""Entries that DHT nodes must not store or believe, without a network."""

from __future__ import annotations

import math

import msgpack
import pytest
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord
from hivemind.utils import MSGPackSerializer
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.dht.records.entry_check import EXPIRATION_SLACK_S, EntryCheck
from swarm_node.dht.records.envelope import seal
from swarm_node.dht.records.keys import key_hash
from swarm_node.swarm.errors import LocalProtocolError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.types import MAX_RECORD_BYTES
from tests.dht.checked import accepts

NOW = 1_700_000_000.0
TTL = 60.0
OWNER, THIEF = Identity(bytes(32)), Identity(b"t" * 32)
KEY = key_hash("swarm-node/1/nodes/x/0")
PLAIN = MSGPackSerializer.dumps(None)  # how hivemind marks a value without a subkey


def subkey(identity: Identity) -> bytes:
    return MSGPackSerializer.dumps(identity.peer_id)


def record(
    *,
    signer: Identity = OWNER,
    under: bytes | None = None,
    key: bytes = KEY,
    signed_key: bytes = KEY,
    life: float = TTL,
    signed_life: float | None = None,
    body: bytes = b"body",
) -> DHTRecord:
    value = seal(signer, signed_key, NOW + (life if signed_life is None else signed_life), body)
    return DHTRecord(key, subkey(signer) if under is None else under, value, NOW + life)


@pytest.fixture
def check() -> EntryCheck:
    return EntryCheck(TTL, lambda: NOW)


def test_key_hash_is_hiveminds() -> None:
    assert DHTID.generate(source=b"some key").to_bytes() == key_hash("some key")


def test_own_entry_is_accepted_again_and_again(check: EntryCheck) -> None:
    assert all(accepts(check, record()) for _ in range(3))
    assert accepts(check, record(life=TTL + EXPIRATION_SLACK_S))
    assert accepts(check, record(life=-5))  # expired: the DHT's business


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(record(under=PLAIN), id="plain value"),
        pytest.param(record(under=b""), id="whole dictionary"),
        pytest.param(record(under=MSGPackSerializer.dumps("x" * 52)), id="subkey that is no PeerID"),
        pytest.param(record(under=b"\xda\x00\x34" + OWNER.peer_id.encode()), id="subkey spelt otherwise"),
        pytest.param(record(signer=THIEF, under=subkey(OWNER)), id="signed by somebody else"),
        pytest.param(record(under=subkey(THIEF)), id="copied under another subkey"),
        pytest.param(record(signed_key=key_hash("elsewhere")), id="copied from another key"),
        pytest.param(record(life=50, signed_life=40), id="prolonged"),
        pytest.param(record(life=TTL + EXPIRATION_SLACK_S + 1), id="expires too late"),
        pytest.param(record(life=1e12), id="expires never"),
        pytest.param(DHTRecord(KEY, subkey(OWNER), record().value, math.inf), id="expires at infinity"),
        pytest.param(DHTRecord(KEY, subkey(OWNER), record().value, math.nan), id="expires at not-a-number"),
        pytest.param(
            DHTRecord(KEY, subkey(OWNER), record().value, int(NOW + 60)), id="expiration of another type"
        ),
        pytest.param(DHTRecord(KEY[:-1], subkey(OWNER), record().value, NOW + TTL), id="short key"),
        pytest.param(DHTRecord(KEY, subkey(OWNER), record().value + b"\0", NOW + TTL), id="trailing byte"),
        pytest.param(DHTRecord(KEY, subkey(OWNER), b"", NOW + TTL), id="empty"),
        pytest.param(
            DHTRecord(KEY, subkey(OWNER), msgpack.packb([1, b"body", b""]), NOW + TTL), id="unsigned"
        ),
        pytest.param(
            DHTRecord(KEY, subkey(OWNER), msgpack.packb([1, b"body", bytes(64)]), NOW + TTL), id="forged"
        ),
        pytest.param(
            DHTRecord(KEY, subkey(OWNER), msgpack.packb([2, b"b", bytes(64)]), NOW + TTL), id="version"
        ),
        pytest.param(DHTRecord(KEY, subkey(OWNER), msgpack.packb({"a": 1}), NOW + TTL), id="map"),
        pytest.param(
            DHTRecord(KEY, subkey(OWNER), msgpack.packb([1, bytes(20_000), bytes(64)]), NOW + TTL),
            id="too large",
        ),
    ],
)
def test_refused(check: EntryCheck, bad: DHTRecord) -> None:
    accepts(check, record())  # a good one before must not make the bad one pass
    assert not accepts(check, bad)


@given(st.binary(max_size=200), st.binary(max_size=80), st.binary(max_size=30), st.floats())
def test_garbage_is_refused_without_an_exception(
    value: bytes, sub: bytes, key: bytes, expiration: float
) -> None:
    assert not accepts(EntryCheck(TTL, lambda: NOW), DHTRecord(key, sub, value, expiration))


@given(st.integers(0, 1000), st.integers(1, 255))
def test_every_changed_byte_counts(position: int, difference: int) -> None:
    good = record()
    value = bytearray(good.value)
    value[position % len(value)] ^= difference
    changed = DHTRecord(good.key, good.subkey, bytes(value), good.expiration_time)
    assert not accepts(EntryCheck(TTL, lambda: NOW), changed)


def test_largest_entry() -> None:
    room = MAX_RECORD_BYTES - len(record(body=b"x" * 300).value) + 300
    assert len(record(body=b"x" * room).value) == MAX_RECORD_BYTES
    with pytest.raises(LocalProtocolError, match=str(MAX_RECORD_BYTES)):
        record(body=b"x" * (room + 1))
