"""A key's entries as hivemind's messages carry them: a dictionary in msgpack, of bounded size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import msgpack

from ...swarm.errors import RemoteProtocolError
from ...swarm.protocol.wire import refuse_extension
from ...swarm.types import MAX_RECORD_BYTES
from ..records.keys import MAX_ENTRIES

_EXT = 0x50  # hivemind's DictionaryDHTValue
_MAX_BYTES = MAX_ENTRIES * (MAX_RECORD_BYTES + 100)


def pack_dictionary(entries: Iterable[tuple[str, bytes, float]]) -> bytes:
    """``entries``: owners, values and expirations."""
    items = list(entries)  # msgpack writes a tuple as a list
    latest = max((expiration for _, _, expiration in items), default=-math.inf)
    packed: bytes = msgpack.packb(msgpack.ExtType(_EXT, msgpack.packb([math.inf, latest, items])))
    return packed


def unpack_dictionary(raw: bytes) -> Iterator[tuple[bytes, bytes, float]]:
    """Subkeys (msgpack), values and expirations. Raises RemoteProtocolError for bytes of another form."""
    if len(raw) > _MAX_BYTES:
        raise RemoteProtocolError(f"a DHT dictionary of {len(raw)} bytes")
    try:
        outer = msgpack.unpackb(raw)
        if type(outer) is not msgpack.ExtType or outer.code != _EXT:
            raise RemoteProtocolError("a DHT value that is not a dictionary")
        parts = msgpack.unpackb(
            outer.data, ext_hook=refuse_extension, max_array_len=MAX_ENTRIES, max_map_len=0
        )
    except (ValueError, TypeError, msgpack.UnpackException, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError("a DHT dictionary that is not msgpack") from error
    if type(parts) is not list or len(parts) != 3 or type(parts[2]) is not list:
        raise RemoteProtocolError("a DHT dictionary of another form")
    for item in parts[2]:
        if type(item) is not list or len(item) != 3:
            raise RemoteProtocolError("a DHT dictionary with an entry of another form")
        subkey, value, expiration = item
        if type(subkey) is not str or type(value) is not bytes or type(expiration) is not float:
            raise RemoteProtocolError("a DHT dictionary with an entry of another type")
        yield msgpack.packb(subkey), value, expiration
