"""Who a peer is in a Noise handshake: proven, or refused, whatever it says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.errors import RemoteProtocolError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.transport.protocols.noise_payload import MAX_MUXERS, read_payload, write_payload
from swarm_node.swarm.transport.protocols.protobuf import field, fields_of, varint

ME, STATIC = Identity(b"m" * 32), b"k" * 32
PAYLOAD = write_payload(ME, STATIC, ("/yamux/1.0.0",))
KEY = bytes.fromhex("08011220") + ME.public_bytes
SIGNATURE = ME.sign(b"noise-libp2p-static-key:" + STATIC)


def test_a_payload_proves_whose_the_key_is() -> None:
    proof = read_payload(PAYLOAD, STATIC)
    assert (proof.peer_id, proof.muxers) == (ME.peer_id, ("/yamux/1.0.0",))
    assert read_payload(field(1, KEY) + field(2, SIGNATURE), STATIC).muxers == ()  # older peers name none


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        field(1, KEY),
        field(2, SIGNATURE),
        field(1, KEY) + field(2, bytes(64)),
        field(1, KEY) + field(2, SIGNATURE[:-1]),
        field(1, KEY[:-1]) + field(2, SIGNATURE),
        field(1, KEY.replace(b"\x08\x01", b"\x08\x00")) + field(2, SIGNATURE),  # an RSA key's kind
        field(1, bytes.fromhex("08011220") + Identity(b"o" * 32).public_bytes) + field(2, SIGNATURE),
        field(1, KEY) + bytes([2 << 3, 5]),
        field(1, KEY) + field(2, ME.sign(STATIC)),
        PAYLOAD + b"\x08",
        PAYLOAD + bytes([5 << 3 | 5, 0, 0, 0, 0]),
        PAYLOAD + bytes([15 << 3, 0]) * 100,
    ],
)
def test_anything_else_proves_nothing(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read_payload(payload, STATIC)


def test_a_signature_is_for_one_key() -> None:
    with pytest.raises(RemoteProtocolError):
        read_payload(PAYLOAD, b"K" * 32)


def test_muxers_are_bounded() -> None:
    many = write_payload(ME, STATIC, tuple(f"/m/{i}" for i in range(MAX_MUXERS + 5)))
    assert len(read_payload(many, STATIC).muxers) == MAX_MUXERS


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read_payload(data, STATIC)


@given(st.binary(max_size=60))
def test_any_bytes_are_fields_or_an_error(data: bytes) -> None:
    try:
        found = fields_of(data)
    except RemoteProtocolError:
        return
    assert all(value < 2**64 if isinstance(value, int) else len(value) < 60 for _, value in found)


@given(st.lists(st.tuples(st.integers(1, 15), st.one_of(st.binary(max_size=300), st.integers(0, 2**64 - 1)))))
def test_fields_are_read_as_they_were_written(fields: list[tuple[int, bytes | int]]) -> None:
    data = b"".join(
        field(number, value) if isinstance(value, bytes) else bytes([number << 3]) + varint(value)
        for number, value in fields
    )
    assert fields_of(data, most=len(fields) or 1) == fields
