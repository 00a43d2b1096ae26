"""The signed wrapping of every DHT entry: owner, place and expiration are proven, the content is opaque.

    value     = msgpack [1, body: bin, signature: bin of 64 bytes]
    signature = Ed25519 of the owner over
                "swarm-node dht record 1\\n" + key hash (20) + expiration (8, big-endian double)
                + owner's PeerID (base58, 52) + body

In a swarm with a name or a key the owner shows that it is a member:

    value     = msgpack [2, body, signature, credential: bin]
    signature = over "swarm-node dht record 2\\n" + key hash + expiration + PeerID
                + length of the credential (2 bytes) + credential + body

The expiration is the DHT's own for the entry, so a peer cannot prolong another's entry. Replicas check only
the wrapping; what is inside is its readers' business, so that different versions can share a DHT.
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import msgpack

from ...swarm.errors import LocalProtocolError, RemoteProtocolError
from ...swarm.identity import SIGNATURE_BYTES, Identity, is_peer_id, verify
from ...swarm.membership.membership import MAX_CREDENTIAL_BYTES
from ...swarm.protocol.wire import refuse_extension
from ...swarm.types import MAX_RECORD_BYTES

ENVELOPE_VERSION = 1
MEMBERS_VERSION = 2
"""The version of entries that carry a credential."""

_CONTEXT = b"swarm-node dht record 1\n"
_MEMBERS_CONTEXT = b"swarm-node dht record 2\n"
_LENGTH = struct.Struct("!H")
_KEY_BYTES = 20
_SUBKEY_HEAD = b"\xd9\x34"  # msgpack str8 of 52 bytes: every Ed25519 PeerID has 52 characters


class Sealed(NamedTuple):
    """``credential`` None: an entry of a swarm that has neither name nor key."""

    owner: str
    body: bytes
    signature: bytes
    credential: bytes | None = None


def seal(
    identity: Identity, key: bytes, expiration: float, body: bytes, credential: bytes | None = None
) -> bytes:
    """The value to store. ``key``: the key's hash, ``expiration``: seconds of Unix time.

    Raises LocalProtocolError if it would be larger than readers accept.
    """
    signature = identity.sign(_message(key, expiration, identity.peer_id, body, credential))
    parts: list[object] = [ENVELOPE_VERSION, body, signature]
    if credential is not None:
        parts = [MEMBERS_VERSION, body, signature, credential]
    value: bytes = msgpack.packb(parts)
    if len(value) > MAX_RECORD_BYTES:
        raise LocalProtocolError(f"an announcement of {len(value)} bytes, more than {MAX_RECORD_BYTES}")
    return value


def unseal(key: bytes, subkey: bytes, expiration: float, value: bytes) -> Sealed:
    """What an entry is made of as it lies in the DHT; neither signature nor credential is checked yet.

    ``subkey`` is msgpack, as the DHT carries it. Raises RemoteProtocolError.
    """
    if len(value) > MAX_RECORD_BYTES:
        raise RemoteProtocolError(f"a DHT entry of {len(value)} bytes, more than {MAX_RECORD_BYTES}")
    if len(key) != _KEY_BYTES or type(expiration) is not float or not math.isfinite(expiration):
        raise RemoteProtocolError("a DHT entry without a proper key or expiration")
    owner = owner_of(subkey)
    try:
        parts = msgpack.unpackb(value, ext_hook=refuse_extension, max_array_len=4, max_map_len=0)
    except (ValueError, msgpack.UnpackException) as error:
        raise RemoteProtocolError("a DHT entry that is not msgpack") from error
    if type(parts) is not list or len(parts) < 3 or type(parts[0]) is not int:
        raise RemoteProtocolError("a DHT entry that is not signed")
    version, body, signature, *more = parts
    if version != (MEMBERS_VERSION if more else ENVELOPE_VERSION):
        raise RemoteProtocolError(f"a DHT entry of version {version} with {len(parts)} parts")
    if type(body) is not bytes or type(signature) is not bytes or len(signature) != SIGNATURE_BYTES:
        raise RemoteProtocolError("a DHT entry that is not signed")
    if more and (type(more[0]) is not bytes or len(more[0]) > MAX_CREDENTIAL_BYTES):
        raise RemoteProtocolError("a DHT entry with a malformed credential")
    return Sealed(owner, body, signature, *more)


def is_signed(key: bytes, expiration: float, sealed: Sealed) -> bool:
    """Whether the owner signed this for this key and expiration."""
    message = _message(key, expiration, sealed.owner, sealed.body, sealed.credential)
    return verify(sealed.owner, message, sealed.signature)


def subkey_of(owner: bytes) -> bytes:
    """The subkey of a PeerID in base58, as the DHT carries it."""
    return _SUBKEY_HEAD + owner


def owner_of(subkey: bytes) -> str:
    """The PeerID that a subkey names. Raises RemoteProtocolError for plain values and foreign subkeys."""
    if len(subkey) == len(_SUBKEY_HEAD) + 52 and subkey.startswith(_SUBKEY_HEAD):
        owner = subkey[len(_SUBKEY_HEAD) :].decode("latin-1")
        if is_peer_id(owner):
            return owner
    raise RemoteProtocolError("a DHT entry whose subkey is not a node's PeerID")


def _message(key: bytes, expiration: float, owner: str, body: bytes, credential: bytes | None) -> bytes:
    place = b"".join((key, struct.pack("!d", expiration), owner.encode()))
    if credential is None:
        return _CONTEXT + place + body
    return b"".join((_MEMBERS_CONTEXT, place, _LENGTH.pack(len(credential)), credential, body))
