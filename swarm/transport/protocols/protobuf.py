"""The little of protobuf that libp2p's messages need: varints and bytes in fields. Reads nothing beyond its
input and trusts no length in it. Specification: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from ...errors import RemoteProtocolError

_VARINT, _BYTES = 0, 2  # wire types


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, data: bytes) -> bytes:
    """A field of bytes, a string or a message. ``number``: below 16."""
    return bytes([number << 3 | _BYTES]) + varint(len(data)) + data


def fields_of(data: bytes, most: int = 64) -> list[tuple[int, int | bytes]]:
    """(field number, value) of a message, in order. Raises RemoteProtocolError, also beyond ``most``
    fields and for wire types that libp2p does not use."""
    found: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        value, at = _read_varint(data, at)
        if tag & 7 == _VARINT:
            found.append((tag >> 3, value))
        elif tag & 7 == _BYTES and value <= len(data) - at:
            found.append((tag >> 3, data[at : at + value]))
            at += value
        else:
            raise RemoteProtocolError(f"a protobuf field of type {tag & 7} that cannot be read")
        if len(found) > most:
            raise RemoteProtocolError(f"a protobuf message of more than {most} fields")
    return found


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, where it ends)"""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at
    raise RemoteProtocolError("a number in a protobuf message that does not end")
