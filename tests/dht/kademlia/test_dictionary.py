"""A key's entries on the wire: hivemind's form, and nothing else is read."""

from __future__ import annotations

import msgpack
import pytest
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.utils import MSGPackSerializer
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.dht.kademlia.dictionary import pack_dictionary, unpack_dictionary
from swarm_node.swarm.errors import RemoteProtocolError


def test_it_is_hiveminds_form() -> None:
    entries = DictionaryDHTValue()
    entries.store("owner", b"value", 2e9)
    packed = pack_dictionary([("owner", b"value", 2e9)])
    assert packed == MSGPackSerializer.dumps(entries)
    assert list(unpack_dictionary(packed)) == [(msgpack.packb("owner"), b"value", 2e9)]


def ext(content: object, code: int = 0x50) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(code, msgpack.packb(content)))
    return packed


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        msgpack.packb([1, 2, 3]),
        ext([1.0, 2.0, []], code=0x51),
        ext([1.0, 2.0]),
        ext([1.0, 2.0, [[1, b"v", 2.0]]]),
        ext([1.0, 2.0, [["o", b"v", "soon"]]]),
        ext([1.0, 2.0, [["o", b"v"]]]),
        ext([1.0, 2.0, [["o", b"v", 1.0]] * 513]),
        ext([1.0, 2.0, {}]),
        ext([1.0, 2.0, [msgpack.ExtType(0x50, b"")]]),
        bytes(10_000_000),
    ],
)
def test_other_forms_are_refused(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        list(unpack_dictionary(raw))


@given(st.binary(max_size=300))
def test_garbage_is_refused_without_another_exception(raw: bytes) -> None:
    for junk in (raw, ext(0)[:-1] + raw, b"\xc7" + bytes([min(255, len(raw)), 0x50]) + raw[:255]):
        try:
            list(unpack_dictionary(junk))
        except RemoteProtocolError:
            continue
