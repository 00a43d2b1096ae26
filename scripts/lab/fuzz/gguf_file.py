"""A GGUF file taken apart as far as its header goes, to be put together wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Self

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _INTEGERS, _FLOATS, _FLAG = 8, 9, (4, 5, 10, 11), (6, 12), 7
ALIGNMENT = 32


@dataclass(slots=True)
class GGUFFile:
    """``keys``: each key with the bytes of its type and value. ``tensors``: each one's name, dimensions as in
    the file, number of its type, and offset in ``data``."""

    keys: list[tuple[str, bytes]]
    tensors: list[tuple[str, list[int], int, int]]
    data: bytes

    @classmethod
    def parse(cls, file: bytes) -> Self:
        """Of a file that is whole."""
        n_tensors, n_keys = struct.unpack_from("<QQ", file, 8)
        at, keys, tensors = 24, [], []
        for _ in range(n_keys):
            name, at = _text(file, at)
            end = _end(file, at + 4, *struct.unpack_from("<I", file, at))
            keys.append((name, file[at:end]))
            at = end
        for _ in range(n_tensors):
            name, at = _text(file, at)
            (count,) = struct.unpack_from("<I", file, at)
            *dims, number, offset = struct.unpack_from(f"<{count}QIQ", file, at + 4)
            tensors.append((name, dims, number, offset))
            at += 16 + 8 * count
        return cls(keys, tensors, file[-(-at // ALIGNMENT) * ALIGNMENT :])

    def encoded(self) -> bytes:
        """Numbers that do not fit lose their upper bits."""
        out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.keys)))
        for name, value in self.keys:
            out += encoded_text(name) + value
        for name, dims, number, offset in self.tensors:
            sizes = [size % 2**64 for size in dims]
            out += encoded_text(name) + struct.pack("<I", len(dims))
            out += struct.pack(f"<{len(dims)}QIQ", *sizes, number % 2**32, offset % 2**64)
        return bytes(out.ljust(-(-len(out) // ALIGNMENT) * ALIGNMENT, b"\0")) + self.data


def encoded_text(text: str) -> bytes:
    raw = text.encode(errors="replace")
    return struct.pack("<Q", len(raw)) + raw


def encoded_value(value: Any, kind: int = 0) -> bytes:
    """Its type and itself. ``kind``: chooses among the types of numbers that there are. What the format has
    no type for is its text."""
    number, body = _encoded(value, kind)
    return struct.pack("<I", number) + body


def _encoded(value: Any, kind: int) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return _FLAG, struct.pack("<?", value)
    if isinstance(value, int) and abs(value) < 2**63:
        number = _INTEGERS[kind % len(_INTEGERS)]
        size = struct.calcsize(_SCALARS[number])
        return number, (value % 256**size).to_bytes(size, "little")
    if isinstance(value, float):
        number = _FLOATS[kind % len(_FLOATS)] if abs(value) < 1e38 else _FLOATS[1]
        return number, struct.pack("<" + _SCALARS[number], value)
    if isinstance(value, list):
        items = [_encoded(each, kind) for each in value if not isinstance(each, list | dict)]
        of = items[0][0] if items else _INTEGERS[0]
        same = [body for number, body in items if number == of]
        return _ARRAY, struct.pack("<IQ", of, len(same)) + b"".join(same)
    return _STRING, encoded_text(str(value))


def _text(file: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", file, at)
    return file[at + 8 : at + 8 + length].decode(), at + 8 + length


def _end(file: bytes, at: int, kind: int) -> int:
    """Where a value ends."""
    if kind in _SCALARS:
        return at + struct.calcsize("<" + _SCALARS[kind])
    if kind == _STRING:
        return _text(file, at)[1]
    item, count = struct.unpack_from("<IQ", file, at)
    at += 12
    for _ in range(count):
        at = _end(file, at, item)
    return at
