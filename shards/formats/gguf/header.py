"""The header of a GGUF file: metadata and tensor table, without reading vocabulary or weights.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The reader of the ``gguf`` package makes
numpy objects for each of 100,000 vocabulary strings at opening (4 s for a 135M model). Here arrays are
skipped, and decoded at their first use.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ....swarm.errors import CheckpointError, UnsupportedModelError
from ..files.mapped_file import MappedFile
from ..files.tensor_files import StoredTensor
from ..not_a_model import not_gguf_hint
from ..qtypes import qtype_of_number, row_bytes
from ..values.shown import shown

_BYTES, _STRING, _ARRAY = 0, 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_DEFAULT_ALIGNMENT = 32
# Far above any real file, so that a damaged count fails at once instead of walking through the weights.
MAX_HEADER = 128 << 20
"""The whole header has at most this many bytes; vocabulary, merges and an embedded tokenizer.json take up to
60 MB."""
MAX_KEYS = 1 << 14
MAX_TENSORS = 1 << 17
MAX_NAME = 1 << 10
"""A key or a tensor's name has at most this many bytes; 100 are many."""
MAX_DIMENSIONS = 4
MAX_ITEMS = 1 << 22
"""All arrays of texts together have at most this many texts, and an array that is read this many numbers: the
size of a large vocabulary."""
MAX_TEXTS = 8 << 20
"""All single texts that are read have at most this many bytes. The chat template is the longest. Other texts
stay in the file."""


@dataclass(frozen=True, slots=True, repr=False)
class GGUFArray:
    """An array of the metadata that is still in the file: ``count`` items from ``offset`` on. A text that is
    too long for us is also one, of bytes."""

    item_type: int
    count: int
    offset: int

    def __repr__(self) -> str:
        return f"<{self.count} {'bytes' if self.item_type == _BYTES else 'items'}>"


class GGUFHeader:
    """``metadata``: scalars and strings as they are, arrays as ``GGUFArray``; ``tensors`` by file's names.
    ``length``: bytes before the first tensor may begin.

    CheckpointError for a damaged or truncated file, UnsupportedModelError for a version or type we cannot
    read.
    """

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self._items = self._texts = 0  # of arrays of texts, of single texts in bytes
        try:
            self._parse()
        except (struct.error, UnicodeDecodeError, OverflowError, MemoryError):
            raise self._damaged("its header breaks off or is garbled") from None

    def strings(self, key: str) -> list[str]:
        """The whole of an array of strings; empty where the key is missing."""
        array = self._array(key)
        if array is None:
            return []
        if array.item_type != _STRING:
            raise self._damaged(f"{key} is not an array of strings")
        items, position, buffer = [], array.offset, self._head()
        length_at = struct.Struct("<Q").unpack_from
        for _ in range(array.count):
            (length,) = length_at(buffer, position)
            begins = position + 8
            position = begins + length
            # A few vocabularies hold bytes that are not UTF-8; such a token can never match text anyway.
            items.append(str(buffer[begins:position], "utf-8", "replace"))
        return items

    def count(self, key: str) -> int:
        """Items of an array, which is not read; 0 where the key is missing."""
        array = self._array(key)
        return 0 if array is None else array.count

    def numbers(self, key: str) -> list[Any]:
        """The whole of an array of numbers; empty where the key is missing."""
        array = self._array(key)
        if array is None:
            return []
        if array.item_type not in _SCALARS:
            raise self._damaged(f"{key} is not an array of numbers")
        if array.count > MAX_ITEMS:
            raise self._damaged(f"{key} has {array.count} numbers")
        dtype = np.dtype("<" + _SCALARS[array.item_type])
        end = array.offset + array.count * dtype.itemsize
        return self.file.slice(array.offset, end - array.offset).copy().view(dtype).tolist()

    def _array(self, key: str) -> GGUFArray | None:
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, GGUFArray):
            raise self._damaged(f"{key} is not an array")
        return value

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.file.path} is not a usable GGUF file: {what}",
            hint="It may be truncated: download it again.",
        )

    def _head(self) -> memoryview:
        return self.file.head()[:MAX_HEADER]

    def _parse(self) -> None:
        buffer = self._head()
        if bytes(buffer[:4]) != b"GGUF":
            raise CheckpointError(
                f"{self.file.path} is not a GGUF file: it does not begin with the letters GGUF",
                hint=not_gguf_hint(self.file.path, bytes(buffer[:8])),
            )
        (version,) = struct.unpack_from("<I", buffer, 4)
        if version not in (2, 3):
            raise UnsupportedModelError(
                f"{self.file.path} is GGUF version {version}, not 2 or 3 (little-endian)",
                hint="Convert it again with a current llama.cpp.",
            )
        n_tensors, n_keys = struct.unpack_from("<QQ", buffer, 8)
        if n_tensors > MAX_TENSORS or n_keys > MAX_KEYS:
            raise self._damaged(f"it claims {n_tensors} tensors and {n_keys} keys")
        position = 24
        self.metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key, position = self._name(position)
            (kind,) = struct.unpack_from("<I", buffer, position)
            if key in self.metadata:
                raise self._damaged(f"key {key} occurs twice")
            self.metadata[key], position = self._value(position + 4, kind)
        table: list[tuple[str, tuple[int, ...], int, int]] = []
        for _ in range(n_tensors):
            name, position = self._name(position)
            (dimensions,) = struct.unpack_from("<I", buffer, position)
            if not 1 <= dimensions <= MAX_DIMENSIONS:
                raise self._damaged(f"tensor {name} has {dimensions} dimensions")
            shape = struct.unpack_from(f"<{dimensions}Q", buffer, position + 4)[::-1]
            number, offset = struct.unpack_from("<IQ", buffer, position + 4 + 8 * dimensions)
            position += 16 + 8 * dimensions
            table.append((name, shape, number, offset))
        alignment = self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise self._damaged(f"its alignment is {shown(alignment)}")
        self.length = -(-position // alignment) * alignment
        self._place(table, self.length, alignment)

    def _name(self, position: int) -> tuple[str, int]:
        buffer = self._head()
        (length,) = struct.unpack_from("<Q", buffer, position)
        end = position + 8 + length
        if length > MAX_NAME or end > len(buffer):
            raise self._damaged(f"a name of {length} bytes")
        name = str(buffer[position + 8 : end], "utf-8")
        if not name.isprintable():  # it goes into messages
            raise self._damaged(f"a name is {shown(name)}")
        return name, end

    def _value(self, position: int, kind: int) -> tuple[Any, int]:
        buffer = self._head()
        size = len(buffer)
        if kind in _SCALARS:
            (value,) = struct.unpack_from("<" + _SCALARS[kind], buffer, position)
            return value, position + struct.calcsize(_SCALARS[kind])
        if kind == _STRING:
            (length,) = struct.unpack_from("<Q", buffer, position)
            end = position + 8 + length
            if end > size:
                raise self._damaged(f"a text of {length} bytes")
            if self._texts + length > MAX_TEXTS:
                return GGUFArray(_BYTES, length, position + 8), end
            self._texts += length
            return str(buffer[position + 8 : end], "utf-8", "replace"), end
        if kind != _ARRAY:
            raise self._damaged(f"a value of unknown type {kind}")
        item_type, count = struct.unpack_from("<IQ", buffer, position)
        array = GGUFArray(item_type, count, position + 12)
        if item_type in _SCALARS:
            end = array.offset + count * struct.calcsize("<" + _SCALARS[item_type])
        elif item_type == _STRING:
            end = self._walk_strings(array)
        else:
            raise self._damaged(f"an array of unknown type {item_type}")
        if end > size:
            raise self._damaged(f"an array of {count} items")
        return array, end

    def _walk_strings(self, array: GGUFArray) -> int:
        """Where an array of strings ends."""
        read, buffer, position = struct.Struct("<Q").unpack_from, self._head(), array.offset
        self._items += array.count
        if self._items > MAX_ITEMS:
            raise self._damaged(f"an array of {array.count} texts")
        for _ in range(array.count):
            position += 8 + read(buffer, position)[0]
        return position

    def _size(self, name: str, shape: tuple[int, ...], number: int) -> tuple[str, int]:
        """Type and bytes of a tensor of type ``number``."""
        try:
            qtype = qtype_of_number(number, name)
            row = row_bytes(qtype, shape[-1])
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{self.file.path}: {error.message}", hint=error.hint) from None
        except CheckpointError as error:
            raise self._damaged(f"tensor {name}: {error.message}") from None
        return qtype, prod(shape[:-1]) * row

    def _place(self, table: list[tuple[str, tuple[int, ...], int, int]], start: int, alignment: int) -> None:
        """Check sizes and places of all tensors: inside the file, aligned, no two in one place."""
        self.tensors: dict[str, StoredTensor] = {}
        end_of_last = 0
        for name, shape, number, offset in sorted(table, key=lambda row: row[3]):
            qtype, nbytes = self._size(name, shape, number)
            if name in self.tensors:
                raise self._damaged(f"tensor {name} occurs twice")
            if offset % alignment or offset < end_of_last:
                raise self._damaged(f"tensor {name} overlaps another or is not aligned")
            end_of_last = offset + nbytes
            if start + end_of_last > self.file.size:
                raise CheckpointError(
                    f"{self.file.path} is truncated: tensor {name} ends at byte {start + end_of_last}, "
                    f"the file at {self.file.size}",
                    hint="Download it again.",
                )
            self.tensors[name] = StoredTensor(name, shape, qtype, start + offset, nbytes)
