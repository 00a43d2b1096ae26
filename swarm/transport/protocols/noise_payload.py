"""What libp2p says in a Noise handshake: whose key the static key is, signed, and which muxers are spoken.

    1  identity key     protobuf of the peer's public key: 1 kind (1 = Ed25519), 2 data
    2  identity sig     of "noise-libp2p-static-key:" and the static key, by the identity key
    4  extensions       2 stream muxers, repeated: both have named one, so it need not be negotiated

Specification: https://github.com/libp2p/specs/tree/master/noise
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import RemoteProtocolError
from ...identity import Identity, peer_id_of, verify_key
from .protobuf import field, fields_of

MAX_MUXERS = 16
"""A payload may name at most this many muxers."""

_PREFIX = b"noise-libp2p-static-key:"
_ED25519 = bytes.fromhex("08011220")  # the protobuf of a public key, before its 32 bytes
_IDENTITY_KEY, _IDENTITY_SIG, _EXTENSIONS, _STREAM_MUXERS = 1, 2, 4, 2


@dataclass(frozen=True, slots=True)
class Proof:
    """Who has the static key of a handshake, and what it speaks above Noise."""

    peer_id: str
    muxers: tuple[str, ...]


def write_payload(identity: Identity, static_public: bytes, muxers: tuple[str, ...]) -> bytes:
    extensions = b"".join(field(_STREAM_MUXERS, muxer.encode()) for muxer in muxers)
    return (
        field(_IDENTITY_KEY, _ED25519 + identity.public_bytes)
        + field(_IDENTITY_SIG, identity.sign(_PREFIX + static_public))
        + field(_EXTENSIONS, extensions)
    )


def read_payload(data: bytes, static_public: bytes) -> Proof:
    """Raises RemoteProtocolError for anything that does not prove whose ``static_public`` is."""
    found = dict(fields_of(data))
    key, signature, extensions = (found.get(n, b"") for n in (_IDENTITY_KEY, _IDENTITY_SIG, _EXTENSIONS))
    if not (isinstance(key, bytes) and isinstance(signature, bytes) and isinstance(extensions, bytes)):
        raise RemoteProtocolError("a Noise payload with numbers in place of bytes")
    if len(key) != len(_ED25519) + 32 or not key.startswith(_ED25519):
        raise RemoteProtocolError("a peer whose key is not one of Ed25519")
    public = key.removeprefix(_ED25519)
    if not verify_key(public, _PREFIX + static_public, signature):
        raise RemoteProtocolError("a Noise key that its owner did not sign")
    muxers = [value for number, value in fields_of(extensions) if number == _STREAM_MUXERS][:MAX_MUXERS]
    return Proof(
        peer_id_of(public),
        tuple(each.decode("ascii", "replace") for each in muxers if isinstance(each, bytes)),
    )
