"""The names of KV pages: a client asks a hop for pages by these names, and no other client can know them.

A page is PAGE_TOKENS tokens. A hop's keys and values of a page depend on every token up to its end, on the
model, on the hop itself, and on each hop before it: any of them may compute something else than it says. So
a name covers all of that. It is keyed with the client's salt, which never leaves the client, and each hop is
told names of its own: a node that knows the names for one hop can neither make those for another, nor find
out which tokens they stand for.

    field(x) = length of x as uint32, x                                       (integers little-endian)
    d_(-1)   = BLAKE2b-256(key: salt, personalisation: "swarm-node text")
    d_i      = BLAKE2b-256(d_(i-1), token ids of page i as uint32)            (secret)
    key_k    = BLAKE2b-256(key: salt, personalisation: "swarm-node kv 1", data:
               field(digest), then for each hop j < k: field(peer_j) field(blocks_j) field(weights_j)
               field(codec_j), then field(peer_k) field(blocks_k) field(codec_k))
    name_k,i = BLAKE2b-256(key: key_k, data: d_i)

``digest`` is the model's in hexadecimal, ``peer`` the hop's PeerID, ``blocks`` as people write them ("0-20"),
``weights`` and ``codec`` names as announced and negotiated, all in UTF-8. OPEN and CLOSE to hop k carry
name_k,0, name_k,1, ... of whole pages.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from ...swarm.errors import UsageError
from ...swarm.protocol.field_types import MAX_PREFIX_PAGES, PAGE_TOKENS
from ...swarm.types import Span

SALT_BYTES = 32
"""A salt that we draw has this many bytes."""
MIN_SALT_BYTES = 16
"""A salt of fewer bytes could be found by trying."""
MAX_SALT_BYTES = 64
"""BLAKE2b takes no longer key."""

_NAMES = b"swarm-node kv 1"
_TEXT = b"swarm-node text"
_PAGE = struct.Struct(f"<{PAGE_TOKENS}I")


@dataclass(frozen=True, slots=True)
class HopPlace:
    """What one hop of a route does to activations, and its peer id."""

    peer_id: str
    span: Span
    weights: str
    codec: str


@dataclass(frozen=True, slots=True)
class PrefixKey:
    """What the names of all pages of one session have in common."""

    salt: bytes
    digest: str


class PageChain:
    """A digest of all tokens up to the end of each page of a sequence. Never leaves the process."""

    __slots__ = ("_digests", "_seed")

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._digests: list[bytes] = []

    def digests(self, ids: Sequence[int]) -> tuple[bytes, ...]:
        """32 bytes for each whole page of ``ids``, at most MAX_PREFIX_PAGES.

        ``ids`` must begin with what was given before, up to where it was rolled back: pages hashed once are
        not looked at again.
        """
        pages = min(len(ids) // PAGE_TOKENS, MAX_PREFIX_PAGES)
        digests = self._digests
        for page in range(len(digests), pages):
            tokens = _PAGE.pack(*ids[page * PAGE_TOKENS : (page + 1) * PAGE_TOKENS])
            digests.append(
                blake2b((digests[-1] if digests else self._seed) + tokens, digest_size=32).digest()
            )
        return tuple(digests[:pages])

    def rollback(self, length: int) -> None:
        """The ids from ``length`` on are going to be others."""
        del self._digests[length // PAGE_TOKENS :]


class PageNames:
    """What one hop is told of a session's pages. The hops of a session share its ``chain``."""

    def __init__(self, chain: PageChain, key: bytes) -> None:
        self._chain = chain
        self._keyed = blake2b(key=key, digest_size=32)
        self._names: list[bytes] = []

    def of(self, ids: Sequence[int]) -> tuple[bytes, ...]:
        """A name for each whole page of ``ids``, as ``PageChain.digests`` says."""
        digests = self._chain.digests(ids)
        names = self._names
        for digest in digests[len(names) :]:
            keyed = self._keyed.copy()
            keyed.update(digest)
            names.append(keyed.digest())
        return tuple(names[: len(digests)])

    def rollback(self, length: int) -> None:
        """The ids from ``length`` on are going to be others."""
        self._chain.rollback(length)
        del self._names[length // PAGE_TOKENS :]


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


def page_names(key: PrefixKey, hops: Sequence[HopPlace]) -> list[PageNames]:
    """The names of one session's pages for each of its hops, in the route's order."""
    chain = PageChain(blake2b(key=key.salt, person=_TEXT, digest_size=32).digest())
    upstream = blake2b(key=key.salt, person=_NAMES, digest_size=32)
    _put(upstream, key.digest)
    names = []
    for hop in hops:
        own = upstream.copy()
        _put(own, hop.peer_id, str(hop.span), hop.codec)
        names.append(PageNames(chain, own.digest()))
        _put(upstream, hop.peer_id, str(hop.span), hop.weights, hop.codec)
    return names


def _put(hash_: blake2b, *fields: str) -> None:
    for field in fields:
        data = field.encode()
        hash_.update(struct.pack("<I", len(data)) + data)
