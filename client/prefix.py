"""Which KV pages a hop may hold from before: hash chains that nobody but this client can make.

A page is PAGE_TOKENS tokens. What a hop's keys and values of a page are depends on every token up to its
end, on the model, on the hop's blocks, and on all that its input went through: the blocks, the weights and
the wire codec of each hop before it, and its own codec. All of that goes into the chain, and the client's
salt, so that a node can recognise a page but not guess its text, and a stranger cannot ask for it.

    field(x) = length of x as uint32, x                                       (integers little-endian)
    seed_k   = BLAKE2b-256(key: salt, personalisation: "swarm-node kv 1", data:
               field(digest), then for each hop j < k: field(blocks_j) field(weights_j) field(codec_j),
               then field(blocks_k) field(codec_k))
    h_0      = BLAKE2b-256(seed_k, token ids of page 0 as uint32)
    h_i      = BLAKE2b-256(h_(i-1), token ids of page i as uint32)

``digest`` is the model's in hexadecimal, ``blocks`` as people write them ("0-20"), ``weights`` and ``codec``
names as announced and negotiated, all in UTF-8. OPEN and CLOSE carry h_0, h_1, ... of whole pages.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from ..swarm.errors import UsageError
from ..swarm.messages import MAX_PREFIX_PAGES, PAGE_TOKENS
from ..swarm.types import Span

SALT_BYTES = 32
"""Of a salt that we draw."""
MIN_SALT_BYTES = 16
"""A shorter one could be tried out."""
MAX_SALT_BYTES = 64
"""BLAKE2b's longest key."""

_PERSONALISATION = b"swarm-node kv 1"
_PAGE = struct.Struct(f"<{PAGE_TOKENS}I")


@dataclass(frozen=True, slots=True)
class HopPlace:
    """What one hop of a route does to activations."""

    span: Span
    weights: str
    codec: str


@dataclass(frozen=True, slots=True)
class PrefixKey:
    """What all chains of one session have in common."""

    salt: bytes
    digest: str


class PageChain:
    """The chain of one session on one hop; it grows with the session's token ids."""

    __slots__ = ("_hashes", "_seed")

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._hashes: list[bytes] = []

    def hashes(self, ids: Sequence[int]) -> tuple[bytes, ...]:
        """A hash for each whole page of ``ids``, at most MAX_PREFIX_PAGES.

        ``ids`` must begin with what was given before, up to where it was rolled back: pages hashed once are
        not looked at again.
        """
        pages = min(len(ids) // PAGE_TOKENS, MAX_PREFIX_PAGES)
        hashes = self._hashes
        for page in range(len(hashes), pages):
            tokens = _PAGE.pack(*ids[page * PAGE_TOKENS : (page + 1) * PAGE_TOKENS])
            hashes.append(blake2b((hashes[-1] if hashes else self._seed) + tokens, digest_size=32).digest())
        return tuple(hashes[:pages])

    def rollback(self, length: int) -> None:
        """The ids from ``length`` on are going to be others."""
        del self._hashes[length // PAGE_TOKENS :]


def new_salt() -> bytes:
    return secrets.token_bytes(SALT_BYTES)


def check_salt(salt: bytes) -> bytes:
    """The salt itself. Raises UsageError for one that is not MIN_SALT_BYTES to MAX_SALT_BYTES of bytes."""
    if not isinstance(salt, bytes) or not MIN_SALT_BYTES <= len(salt) <= MAX_SALT_BYTES:
        raise UsageError(
            "the prefix salt is not possible",
            hint=f"Give {MIN_SALT_BYTES} to {MAX_SALT_BYTES} secret random bytes, such as "
            "secrets.token_bytes(32), or leave it out.",
        )
    return salt


def chain_seeds(salt: bytes, digest: str, hops: Sequence[HopPlace]) -> list[bytes]:
    """The seed of each hop's chain, 32 bytes; the hops in the route's order."""
    upstream = blake2b(key=salt, person=_PERSONALISATION, digest_size=32)
    _put(upstream, digest)
    seeds = []
    for hop in hops:
        own = upstream.copy()
        _put(own, str(hop.span), hop.codec)
        seeds.append(own.digest())
        _put(upstream, str(hop.span), hop.weights, hop.codec)
    return seeds


def _put(hash_: blake2b, *fields: str) -> None:
    for field in fields:
        data = field.encode()
        hash_.update(struct.pack("<I", len(data)) + data)
