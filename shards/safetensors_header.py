"""The header of a safetensors file, checked before anything trusts it.

Format: 8 bytes little-endian length, that many bytes of JSON, then the tensors without gaps
(https://huggingface.co/docs/safetensors#format). Parsed here, not by the ``safetensors`` package, because
the same code reads headers fetched from the hub by range requests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeGuard

from ..swarm.errors import CheckpointError

MAX_HEADER = 100_000_000
"""The bound that the reference implementation has."""
_SIZES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """``offset``: first byte, from the start of the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    nbytes: int


def header_length(first: bytes, file_size: int, where: str) -> int:
    """Length of the JSON part, from the file's first 8 bytes. CheckpointError where it cannot be."""
    if len(first) < 8:
        raise _damaged(where, f"it has only {file_size} bytes")
    length = int.from_bytes(first[:8], "little")
    if length > MAX_HEADER or 8 + length > file_size:
        raise _damaged(where, f"it claims a header of {length} bytes in a file of {file_size}")
    return length


def parse_header(header: bytes, file_size: int, where: str) -> dict[str, StoredTensor]:
    """The tensors by name. CheckpointError unless they fill the rest of the file exactly, without overlap."""
    try:
        document = json.loads(header, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(where, f"its header is no JSON ({error})") from None
    if not isinstance(document, dict):
        raise _damaged(where, "its header is no JSON object")
    start = 8 + len(header)
    tensors = [
        _entry(name, entry, start, where) for name, entry in document.items() if name != "__metadata__"
    ]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    end = start
    for tensor in tensors:
        if tensor.offset < end:
            raise _damaged(where, f"tensor {tensor.name} overlaps another")
        if tensor.offset > end:
            raise _damaged(
                where, f"nothing describes the {tensor.offset - end} bytes before tensor {tensor.name}"
            )
        end = tensor.offset + tensor.nbytes
        if end > file_size:
            raise _damaged(
                where, f"it is truncated: tensor {tensor.name} ends at byte {end}, the file at {file_size}"
            )
    if end != file_size:
        raise _damaged(where, f"it has {file_size - end} bytes after its last tensor")
    return {tensor.name: tensor for tensor in tensors}


def _entry(name: str, entry: Any, start: int, where: str) -> StoredTensor:
    if not name.isprintable():  # it goes into messages
        raise _damaged(where, f"a tensor's name is {name[:40]!r}")
    if not isinstance(entry, dict):
        raise _damaged(where, f"tensor {name} is not described")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise _damaged(where, f"tensor {name} has no proper dtype, shape and data_offsets")
    begin, end = offsets
    if end < begin:
        raise _damaged(where, f"tensor {name} ends before it begins")
    if dtype in _SIZES:
        expected = _SIZES[dtype]
        for size in shape:
            expected *= size
        if expected != end - begin:
            raise _damaged(
                where, f"tensor {name} has {end - begin} bytes, its shape and type need {expected}"
            )
    return StoredTensor(name, tuple(shape), dtype, start + begin, end - begin)


def _counts(value: Any) -> TypeGuard[list[int]]:
    """A list of whole numbers of zero or more."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _damaged(where: str, what: str) -> CheckpointError:
    return CheckpointError(f"{where} is not a usable safetensors file: {what}", hint="Download it again.")
