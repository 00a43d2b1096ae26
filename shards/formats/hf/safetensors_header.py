"""The header of a safetensors file, checked before anything trusts it.

Format: 8 bytes little-endian length, that many bytes of JSON, then the tensors without gaps
(https://huggingface.co/docs/safetensors#format). Parsed here, not by the ``safetensors`` package, because
the same code reads headers fetched from the hub by range requests.
"""

from __future__ import annotations

import re
from typing import Any, TypeGuard

from ....swarm.errors import CheckpointError, UnsupportedModelError
from ..bounded_json import JsonBounds, parse_json
from ..files.tensor_files import StoredTensor
from ..not_a_model import download_hint, is_pointer
from ..values.shown import shown

MAX_TENSORS = 1 << 16
"""One file has at most this many tensors. The largest models have some 100,000 tensors, in dozens of
files."""
BOUNDS = JsonBounds(nbytes=16 << 20, values=16 * MAX_TENSORS)
"""The bounds of the header: 256 bytes and 16 values for each tensor; 120 and 9 are usual."""
MAX_NAME = 1024
"""A tensor's name has at most this many characters; 100 are many."""
MAX_DIMENSIONS = 8
"""A tensor has at most this many dimensions; weights have four at most."""
_MAX_SIZE = 2**63
"""A dimension or an offset is below this, which is beyond any file."""
_DTYPE = re.compile(r"[A-Z][A-Z0-9_]{0,23}")
_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16,
    "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


def header_length(first: bytes, file_size: int, where: str) -> int:
    """Length of the JSON part, from the file's first 8 bytes. CheckpointError where it cannot be."""
    if len(first) < 8:
        raise _damaged(where, f"it has only {file_size} bytes")
    length = int.from_bytes(first[:8], "little")
    if length > BOUNDS.nbytes or 8 + length > file_size:
        claim = f"it claims a header of {length} bytes in a file of {file_size}"
        raise _damaged(where, "it is a pointer" if is_pointer(first) else claim, download_hint(first))
    return length


def parse_header(header: bytes, file_size: int, where: str) -> dict[str, StoredTensor]:
    """The tensors by name, in time linear in the header. CheckpointError unless they fill the rest of the
    file exactly, without overlap; UnsupportedModelError for a type that the format does not have."""
    try:
        document = parse_json(header, BOUNDS, _no_duplicates)
    except ValueError as error:
        raise _damaged(where, f"its header is not JSON ({error})") from None
    if not isinstance(document, dict):
        raise _damaged(where, "its header is not a JSON object")
    if len(document) > MAX_TENSORS + 1:
        raise _damaged(where, f"it has {len(document)} tensors, at most {MAX_TENSORS} are possible")
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
    if not name.isprintable() or len(name) > MAX_NAME:  # it goes into messages
        raise _damaged(where, f"a tensor's name is {shown(name)}")
    if not isinstance(entry, dict):
        raise _damaged(where, f"tensor {name} is not described")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if (
        not _is_dtype(dtype)
        or not _counts(shape)
        or len(shape) > MAX_DIMENSIONS
        or not _counts(offsets)
        or len(offsets) != 2
    ):
        raise _damaged(where, f"tensor {name} has no proper dtype, shape and data_offsets")
    begin, end = offsets
    if end < begin:
        raise _damaged(where, f"tensor {name} ends before it begins")
    if dtype not in _BITS:  # another format's, or a later version's: nothing here could check its size
        raise UnsupportedModelError(f"tensor {name} of {where} has the unknown type {dtype}")
    expected = _BITS[dtype]
    for size in shape:
        expected *= size
    if expected != 8 * (end - begin):
        raise _damaged(
            where, f"tensor {name} has {end - begin} bytes, its shape and type need {expected / 8:g}"
        )
    return StoredTensor(name, tuple(shape), dtype, start + begin, end - begin)


def _is_dtype(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and _DTYPE.fullmatch(value) is not None


def _counts(value: Any) -> TypeGuard[list[int]]:
    """A list of whole numbers of zero or more, each within 64 bits."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < _MAX_SIZE for item in value)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _damaged(where: str, what: str, hint: str = "Download it again.") -> CheckpointError:
    return CheckpointError(f"{where} is not a usable safetensors file: {what}", hint=hint)
