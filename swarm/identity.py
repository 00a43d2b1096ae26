"""A node's Ed25519 identity: the key file, the libp2p PeerID it gives, and signatures that name a PeerID.

A PeerID of an Ed25519 key *contains* the public key (identity multihash of its protobuf form), so every peer
can check a signature with only the PeerID of the signer. Specification:
https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md

    public key protobuf    08 01 12 20 + 32 bytes            (KeyType 1 = Ed25519, then the data field)
    PeerID                 base58btc(00 24 + the 36 bytes above), always "12D3KooW…"
    key file               08 01 12 40 + seed (32) + public key (32), mode 0600, as go-libp2p's p2pd reads it
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from .errors import RemoteProtocolError, UsageError
from .runtime.given_files import read_given
from .runtime.state_files import create_file

SIGNATURE_BYTES = 64

_PUBLIC_PREFIX = bytes.fromhex("08011220")
_PRIVATE_PREFIX = bytes.fromhex("08011240")
_MULTIHASH_PREFIX = bytes.fromhex("0024")  # identity "hash" of 0x24 = 36 bytes
_FILE_BYTES = len(_PRIVATE_PREFIX) + 64

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"  # base58btc
_DIGITS = {character: value for value, character in enumerate(_ALPHABET)}
_MAX_PEER_ID_CHARS = 64  # an Ed25519 PeerID has 52; the bound keeps decoding (quadratic) cheap


class Identity:
    """An Ed25519 key pair, in memory only. Immutable; equal keys give equal PeerIDs."""

    def __init__(self, seed: bytes) -> None:
        """``seed``: the 32 secret bytes."""
        if len(seed) != 32:
            raise UsageError(f"an Ed25519 seed has 32 bytes, not {len(seed)}")
        self.seed = seed
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_bytes: bytes = self._private.public_key().public_bytes_raw()  # 32 bytes
        self.peer_id: str = peer_id_of(self.public_bytes)

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"  # never the seed

    @classmethod
    def generate(cls) -> Identity:
        """A fresh identity that is kept nowhere."""
        return cls(secrets.token_bytes(32))

    @classmethod
    def load_or_create(cls, path: str | os.PathLike[str]) -> Identity:
        """Read the key file at ``path``, or create one (mode 0600, missing folders included).

        Raises UsageError if the file is damaged, holds another kind of key, or cannot be read or written.
        """
        file = Path(path).expanduser()
        try:
            if not file.exists():
                _create(file, _file_bytes(secrets.token_bytes(32)))
            identity = cls(_seed_from(read_given(file, _FILE_BYTES + 1), file))
            if file.stat().st_mode & 0o077:
                file.chmod(0o600)  # a copy made with a lax umask: its reader can pose as this node
        except OSError as error:
            raise UsageError(
                f"cannot use the key file {file}: {error.strerror or error}",
                hint="Name a file that this user can read and write.",
            ) from error
        return identity

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Identity:
        """Read the key file at ``path``. Raises FileNotFoundError, or UsageError as ``load_or_create``."""
        file = Path(path).expanduser()
        if not file.exists():
            raise FileNotFoundError(file)
        return cls.load_or_create(file)

    def key_file(self) -> bytes:
        """What a key file of it holds, for p2pd. Secret: not for the disk."""
        return _file_bytes(self.seed)

    def sign(self, data: bytes) -> bytes:
        """64 bytes of Ed25519 signature. Callers put a context string in front of ``data``."""
        return self._private.sign(data)


def peer_id_of(public_bytes: bytes) -> str:
    """The libp2p PeerID (base58) of a raw 32-byte Ed25519 public key."""
    if len(public_bytes) != 32:
        raise UsageError(f"an Ed25519 public key has 32 bytes, not {len(public_bytes)}")
    return _base58(_MULTIHASH_PREFIX + _PUBLIC_PREFIX + public_bytes)


def public_key_of(peer_id: str) -> bytes:
    """The raw public key inside a PeerID. Raises RemoteProtocolError for anything but an Ed25519 PeerID."""
    raw = _unbase58(peer_id) if len(peer_id) <= _MAX_PEER_ID_CHARS else None
    prefix = _MULTIHASH_PREFIX + _PUBLIC_PREFIX
    if raw is None or len(raw) != len(prefix) + 32 or not raw.startswith(prefix):
        raise RemoteProtocolError(
            f"{peer_id[:_MAX_PEER_ID_CHARS]!r} is not the PeerID of an Ed25519 key",
            hint="Nodes are identified by Ed25519 keys; their PeerIDs begin with 12D3KooW.",
        )
    return raw[len(prefix) :]


def peer_id_bytes(peer_id: str) -> bytes:
    """A PeerID in binary, for any kind of key. Raises RemoteProtocolError."""
    raw = _unbase58(peer_id) if 0 < len(peer_id) <= _MAX_PEER_ID_CHARS else None
    if raw is None:
        raise RemoteProtocolError(f"{peer_id[:_MAX_PEER_ID_CHARS]!r} is not a PeerID")
    return raw


def is_peer_id(text: str) -> bool:
    """Whether ``text`` is a well-formed Ed25519 PeerID."""
    try:
        public_key_of(text)
    except RemoteProtocolError:
        return False
    return True


def verify(peer_id: str, data: bytes, signature: bytes) -> bool:
    """Whether ``signature`` over ``data`` was made by the key inside ``peer_id``. Never raises."""
    try:
        return verify_key(public_key_of(peer_id), data, signature)
    except RemoteProtocolError:
        return False


def verify_key(public_bytes: bytes, data: bytes, signature: bytes) -> bool:
    """Whether ``signature`` over ``data`` was made by the key whose raw public half this is. Never raises."""
    try:
        Ed25519PublicKey.from_public_bytes(public_bytes).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _file_bytes(seed: bytes) -> bytes:
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    return _PRIVATE_PREFIX + seed + public


def _seed_from(data: bytes, file: Path) -> bytes:
    if len(data) != _FILE_BYTES or not data.startswith(_PRIVATE_PREFIX):
        what = f"{len(data)} bytes that are not an Ed25519 key file ({_FILE_BYTES} bytes)"
    elif _file_bytes(data[4:36]) != data:
        what = "a secret key and a public key that do not belong together"
    else:
        return data[4:36]
    raise UsageError(
        f"the key file {file} is damaged: it holds {what}",
        hint="Restore it from a copy; without one rename it, and the next start makes another key.",
    )


def _create(file: Path, data: bytes) -> None:
    """Write ``data`` at once and only if the file does not exist: a crash or a race never leaves half a
    key."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    create_file(file, data)  # where another process was first, its key counts


def _base58(data: bytes) -> str:
    number, text = int.from_bytes(data), ""
    while number:
        number, digit = divmod(number, 58)
        text = _ALPHABET[digit] + text
    zeros = len(data) - len(data.lstrip(b"\0"))
    return "1" * zeros + text


def _unbase58(text: str) -> bytes | None:
    number = 0
    for character in text:
        if (digit := _DIGITS.get(character)) is None:
            return None
        number = number * 58 + digit
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8)
