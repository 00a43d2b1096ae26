"""The packed wire codecs in C, once ``warm_up`` has loaded them; ``packed`` takes its plain path until then.

Loading compiles where the cache has no library for this machine, which takes seconds: programs call
``warm_up`` in a thread as they start.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from pathlib import Path

import numpy as np

from ..runtime.c_build import NativeUnavailableError, is_built, load_library

logger = logging.getLogger(__name__)

GIL_ROWS = 16
"""Up to this many rows are done without releasing the interpreter lock. They take a few microseconds, while
getting the lock back from a busy thread takes milliseconds at worst."""

_first_byte = ctypes.c_char.from_buffer
_reference = ctypes.byref
_FLOAT_BYTES = 4
_FARTHEST = 2**31
"""Rows that lie this many bytes apart are copied: sizes are C ints."""
NOT_FINITE, BAD_SCALE, BAD_VALUE, BAD_CHANNEL = 1, 2, 3, 4
"""The kernels return one of these instead of 0 for an input that they refuse."""
INT8, F8 = 0, 1
"""What the kernels call the formats of codes."""


class NativeCodec:
    """Encodes and decodes as ``packed`` documents. Formats, pointers and sizes are the caller's to get right.
    ``exponents``: of each channel, as many bytes as a row has values, or none.

    What the kernels take are ints, references and bytes, which ctypes passes as they are: to convert them to
    declared types would take longer than a row.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        brief = ctypes.PyDLL(library._name, handle=library._handle)  # the same functions, keeping the lock
        self._encode, self._encode_brief = library.swarm_rows_encode, brief.swarm_rows_encode
        self._decode, self._decode_brief = library.swarm_rows_decode, brief.swarm_rows_decode

    def encode(self, format_: int, rows: np.ndarray, size: int, exponents: bytes = b"") -> memoryview | None:
        """The payload of ``size`` bytes of ``rows`` (tokens, width) float32, or None if a value is not
        finite."""
        tokens, width = rows.shape
        source: object
        try:
            source, step = _reference(_first_byte(rows)), width  # type: ignore[arg-type]
        except TypeError:  # its rows lie apart, or it is only for reading
            if rows.strides[1] != _FLOAT_BYTES or rows.strides[0] not in range(0, _FARTHEST, _FLOAT_BYTES):
                rows = np.ascontiguousarray(rows)
            source, step = ctypes.c_void_p(rows.ctypes.data), rows.strides[0] // _FLOAT_BYTES
        payload = bytearray(size)
        function = self._encode_brief if tokens <= GIL_ROWS else self._encode
        place = _reference(_first_byte(payload))
        verdict = function(format_, source, step, tokens, width, exponents or None, place)
        return None if verdict else memoryview(payload)

    def decode(
        self,
        format_: int,
        payload: bytes | bytearray | memoryview,
        tokens: int,
        width: int,
        limit: float,
        exponents: bytes = b"",
    ) -> np.ndarray | int:
        """(tokens, width) float32, every magnitude at most ``limit``, or the first complaint. ``payload``
        has the size of ``tokens`` tokens."""
        rows = np.empty((tokens, width), np.float32)
        function = self._decode_brief if tokens <= GIL_ROWS else self._decode
        if isinstance(payload, bytes):
            source: object = payload
        elif isinstance(payload, bytearray) or not payload.readonly:
            source = _reference(_first_byte(payload))
        else:
            source = ctypes.c_void_p(np.frombuffer(payload, np.uint8).ctypes.data)
        place, most = _reference(_first_byte(rows)), ctypes.c_float(limit)  # type: ignore[arg-type]
        return function(format_, source, tokens, width, most, exponents or None, place) or rows


_FLAGS = ("-ffp-contract=off",)
_codec: NativeCodec | None = None


def is_ready() -> bool:
    """Whether ``warm_up`` would answer without compiling."""
    return _codec is not None or is_built("swarm", _sources(), _FLAGS)


def _sources() -> list[Path]:
    return sorted((Path(__file__).parent / "csrc").glob("*.c"))


def loaded() -> NativeCodec | None:
    """The kernels, if ``warm_up`` has loaded them."""
    return _codec


def warm_up() -> bool:
    """Load the kernels, compiling them first if need be: blocks for seconds then. False, with a line in the
    log, where there are none. Idempotent, from any thread."""
    global _codec
    if _codec is None and sys.byteorder == "little":
        try:
            _codec = NativeCodec(load_library("swarm", _sources(), _FLAGS))
        except NativeUnavailableError as error:
            logger.debug("event=plain_codec reason=%r", str(error))
    return _codec is not None
