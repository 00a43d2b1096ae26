"""Noise_XX_25519_ChaChaPoly_SHA256, without doing any I/O: messages in, messages out.

     → e                    each side makes a key for this connection alone,
    ← e, ee, s, es          and shows, encrypted, the static key that its payload vouches for;
     → s, se                after the third message both have two keys, one for each direction

Specification: https://noiseprotocol.org/noise.html (revision 34). What a payload holds: ``noise_payload``.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ...errors import LocalProtocolError, RemoteProtocolError
from ..interface import Buffer

KEY_BYTES = 32
TAG_BYTES = 16
"""Bytes by which an encrypted message is longer than what it says."""

_NAME = b"Noise_XX_25519_ChaChaPoly_SHA256"  # of 32 bytes, as a hash has: it is not hashed
_NONCE = struct.Struct("<4xQ")
_OVER = 3  # the turn that nobody takes


class Cipher:
    """One direction: the n-th message is encrypted under the nonce n, so none can be dropped, repeated or
    moved. A connection ends long before 2^64 of them."""

    __slots__ = ("_aead", "_count")

    def __init__(self, key: bytes) -> None:
        self._aead = ChaCha20Poly1305(key)
        self._count = 0

    def encrypt(self, plaintext: Buffer, associated: bytes | None = None) -> bytes:
        nonce = _NONCE.pack(self._count)
        self._count += 1
        return self._aead.encrypt(nonce, plaintext, associated)

    def decrypt(self, message: Buffer, associated: bytes | None = None) -> bytes:
        """Raises RemoteProtocolError for anything but the peer's next message."""
        nonce = _NONCE.pack(self._count)
        self._count += 1
        try:
            return self._aead.decrypt(nonce, message, associated)
        except InvalidTag:
            raise RemoteProtocolError("bytes that the peer did not encrypt") from None


class XXHandshake:
    """One side. Three messages are written and read in turn, beginning with the initiator's; then ``split``.

    ``static``: our key, whose public half the peer learns. ``remote_static``: the peer's, once its message
    with it was read; nobody vouches for it but the payload. A message that cannot be read ends the handshake.
    """

    def __init__(
        self,
        static: X25519PrivateKey,
        *,
        initiator: bool,
        prologue: bytes = b"",
        ephemeral: X25519PrivateKey | None = None,
    ) -> None:
        """``prologue``: what both sides must agree on; libp2p's is empty. ``ephemeral``: only in tests."""
        self.remote_static = b""
        self._static = static
        self._ephemeral = ephemeral or X25519PrivateKey.generate()
        self._remote_ephemeral = b""
        self._initiator = initiator
        self._turn = 0
        self._chaining = self.hash = _NAME
        self._cipher: Cipher | None = None
        self._mix_hash(prologue)

    def write_message(self, payload: bytes = b"") -> bytes:
        turn = self._begin_turn(writing=True)
        message = b""
        if turn < 2:
            message = self._ephemeral.public_key().public_bytes_raw()
            self._mix_hash(message)
        if turn == 1:
            self._mix_key(self._ephemeral, self._remote_ephemeral)
        if turn > 0:
            message += self._encrypt(self._static.public_key().public_bytes_raw())
            self._mix_key(self._static, self._remote_ephemeral)
        message += self._encrypt(payload)
        self._turn = turn + 1
        return message

    def read_message(self, message: bytes) -> bytes:
        """Its payload. Raises RemoteProtocolError."""
        turn = self._begin_turn(writing=False)
        if turn < 2:
            self._remote_ephemeral, message = _cut(message, KEY_BYTES)
            self._mix_hash(self._remote_ephemeral)
        if turn == 1:
            self._mix_key(self._ephemeral, self._remote_ephemeral)
        if turn > 0:
            static, message = _cut(message, KEY_BYTES + TAG_BYTES)
            self.remote_static = self._decrypt(static)
            self._mix_key(self._ephemeral, self.remote_static)
        payload = self._decrypt(message)
        self._turn = turn + 1
        return payload

    def split(self) -> tuple[Cipher, Cipher]:
        """The ciphers for what we send and what we receive, after the third message."""
        if self._turn != _OVER or self._cipher is None:
            raise LocalProtocolError("the Noise handshake is not done")
        first, second = map(Cipher, _hkdf(self._chaining, b""))
        self._cipher = None
        return (first, second) if self._initiator else (second, first)

    def _begin_turn(self, *, writing: bool) -> int:
        """The turn, 0 to 2. Until it is done well the handshake counts as failed."""
        turn = self._turn
        if turn >= _OVER or writing != ((turn % 2 == 0) == self._initiator):
            raise LocalProtocolError(f"message {turn + 1} of a Noise handshake is not this side's")
        self._turn = _OVER + 1
        return turn

    def _mix_hash(self, data: bytes) -> None:
        self.hash = hashlib.sha256(self.hash + data).digest()

    def _mix_key(self, ours: X25519PrivateKey, theirs: bytes) -> None:
        try:
            shared = ours.exchange(X25519PublicKey.from_public_bytes(theirs))
        except ValueError:  # of low order: the result would be known to everybody
            raise RemoteProtocolError("a key that is good for nothing") from None
        self._chaining, key = _hkdf(self._chaining, shared)
        self._cipher = Cipher(key)

    def _encrypt(self, plaintext: bytes) -> bytes:
        message = plaintext if self._cipher is None else self._cipher.encrypt(plaintext, self.hash)
        self._mix_hash(message)
        return message

    def _decrypt(self, message: bytes) -> bytes:
        plaintext = message if self._cipher is None else self._cipher.decrypt(message, self.hash)
        self._mix_hash(message)
        return plaintext


def _cut(message: bytes, size: int) -> tuple[bytes, bytes]:
    if len(message) < size:
        raise RemoteProtocolError(f"a message of a Noise handshake that ends after {len(message)} bytes")
    return message[:size], message[size:]


def _hkdf(chaining: bytes, material: bytes) -> tuple[bytes, bytes]:
    secret = hmac.digest(chaining, material, "sha256")
    first = hmac.digest(secret, b"\x01", "sha256")
    return first, hmac.digest(secret, first + b"\x02", "sha256")
