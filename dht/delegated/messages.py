"""The messages of /swarm-node/snapshot/1: the directory for peers that are not in the DHT.

    reader                              node of the DHT
    GET keys                 →
                             ←          ENTRIES time, last, alone; as many as needed, the last with ``last``
    PUT key, entry           →
                             ←          STORED reason ("": it is stored)
                             ←          SLOWER retry_after_ms, in place of either answer

Entries are as they lie in the DHT, with the signatures of their owners. The reader checks them and need not
trust the peer that passes them on. In a payload they follow each other:

    index of its key in GET (2 bytes) ‖ expiration (8, big-endian double) ‖ owner's PeerID (52) ‖
    length (2) ‖ value
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from ...swarm.errors import RemoteProtocolError
from ...swarm.protocol.fields import Boolean, Integer, Prose, Real, Word
from ...swarm.protocol.fields import Sequence as SequenceField
from ...swarm.protocol.schema import MessageSet
from ...swarm.protocol.wire import FIXED_HEADER, MAX_HEADER, Payload
from ...swarm.types import MAX_RECORD_BYTES

DELEGATED_PROTOCOL = "/swarm-node/snapshot/1"
MAX_KEYS = 64
"""One GET has at most this many keys: all groups of a model of 1024 blocks."""
MAX_PAYLOAD = 256 * 1024
"""One ENTRIES holds at most this many bytes of entries."""
MAX_FRAME = MAX_PAYLOAD + MAX_HEADER + FIXED_HEADER.size
MAX_KEY_CHARS = 200

_ENTRY = struct.Struct("!Hd52sH")
_Key = Word(re.compile(rf"swarm-node/[\x21-\x7e]{{1,{MAX_KEY_CHARS}}}"), "a key that begins with swarm-node/")


class DelegatedKind(IntEnum):
    GET = 1
    ENTRIES = 2
    PUT = 3
    STORED = 4
    SLOWER = 5


@dataclass(frozen=True, slots=True)
class Get:
    keys: Annotated[tuple[str, ...], SequenceField(_Key, 1, MAX_KEYS)]


@dataclass(frozen=True, slots=True)
class Entries:
    """``time``: the node's clock, seconds of Unix time. ``alone``: it reaches no other node of the DHT,
    and started or lost the last one a moment ago, so what it lacks may be there."""

    time: Annotated[float, Real(0, 1e12)]
    last: Annotated[bool, Boolean()]
    payload: Payload = b""
    alone: Annotated[bool, Boolean()] = False


@dataclass(frozen=True, slots=True)
class Put:
    """An entry of the sender's own; the payload is its value."""

    key: Annotated[str, _Key]
    expiration: Annotated[float, Real(0, 1e12)]
    payload: Payload = b""


@dataclass(frozen=True, slots=True)
class Stored:
    reason: Annotated[str, Prose(300)] = ""


@dataclass(frozen=True, slots=True)
class Slower:
    retry_after_ms: Annotated[int, Integer(0, 3_600_000)]


DelegatedMessage = Get | Entries | Put | Stored | Slower

DELEGATED_MESSAGES = MessageSet(
    {
        DelegatedKind.GET: Get,
        DelegatedKind.ENTRIES: Entries,
        DelegatedKind.PUT: Put,
        DelegatedKind.STORED: Stored,
        DelegatedKind.SLOWER: Slower,
    }
)


@dataclass(frozen=True, slots=True)
class PackedEntry:
    """An entry that a peer passes on, not checked yet. ``key``: index in the keys that were asked."""

    key: int
    expiration: float
    owner: bytes
    value: bytes


def pack_entries(entries: Iterable[PackedEntry]) -> Iterator[bytes]:
    """Payloads of at most MAX_PAYLOAD bytes that hold the entries; at least one, which may be empty."""
    payload = bytearray()
    for entry in entries:
        packed = _ENTRY.pack(entry.key, entry.expiration, entry.owner, len(entry.value)) + entry.value
        if len(payload) + len(packed) > MAX_PAYLOAD:
            yield bytes(payload)
            payload.clear()
        payload += packed
    yield bytes(payload)


def unpack_entries(keys: Sequence[str], payload: Payload) -> Iterator[PackedEntry]:
    """The entries in a payload, for ``keys`` that were asked for. Raises RemoteProtocolError."""
    view, at = memoryview(payload), 0
    while at < len(view):
        if len(view) - at < _ENTRY.size:
            raise RemoteProtocolError("ENTRIES: the payload ends in the middle of an entry")
        key, expiration, owner, size = _ENTRY.unpack_from(view, at)
        at += _ENTRY.size
        if key >= len(keys) or size > MAX_RECORD_BYTES or len(view) - at < size:
            raise RemoteProtocolError(f"ENTRIES: an entry of {size} bytes for key {key} of {len(keys)}")
        yield PackedEntry(key, expiration, owner, bytes(view[at : at + size]))
        at += size
