"""What a wire codec is: how the rows of activations (tokens, width) that pass a boundary travel.

All numbers are little-endian, rows follow each other without padding, and every row (token) stands alone:
the payloads of two steps, joined, are the payload of both, and a payload cut at a row is one of fewer
tokens. ``kinds`` has all codecs, and the module of each kind its format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from ..errors import ErrorCode, LocalProtocolError, RemoteProtocolError, UsageError
from ..types import MAX_ROW
from .names import COARSE_KINDS

MAX_MAGNITUDE = 2.0**40
"""The largest magnitude of a value that is accepted. The largest known in any model's blocks is about 2^20.
The squares of a row of values up to this have a finite sum in float32, so an accepted row makes no next block
overflow."""
SMALLEST_MAGNITUDE = 1e-29
"""``Codec.magnitudes`` gives at most this for a row of zeros, because some formats scale such a row too."""

Payload = bytes | bytearray | memoryview
FLOATS = np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class Codec(ABC):
    """``name``: as OPEN has it; two codecs of one name write and read the same bytes. ``kind``: as HELLO and
    announcements have it. ``exponents``: the table of scales that both sides of an edge need, for
    ``scales.ScaleTable``; empty: none."""

    name: str
    kind: str
    exponents: bytes = b""

    @property
    def scale_bytes(self) -> int:
        """The first bytes of a row that may differ when its values are encoded again: those of a scale."""
        return 0

    @property
    def is_coarse(self) -> bool:
        """Whether what it loses is worth measuring."""
        return self.kind in COARSE_KINDS

    def noise(self, payload: Payload, width: int) -> np.ndarray | None:
        """The mean square (tokens, width) of what rounding did to each value of a payload that decodes, of
        all its rows; None where it is too little to count."""
        return None

    def row_bytes(self, width: int) -> int:
        """The exact size of one encoded row. Raises UsageError for a width that no row has."""
        return self.payload_bytes(1, width)

    def payload_bytes(self, tokens: int, width: int) -> int:
        """The exact size of the encoded rows of ``tokens``. Raises UsageError."""
        if tokens < 0 or not 0 < width <= MAX_ROW:
            raise UsageError(f"{tokens} rows of {width} values are not possible")
        return tokens * self._row_bytes(width)

    def encode(self, rows: np.ndarray) -> bytes | memoryview:
        """The payload of ``rows`` (tokens, width) float32; it shares no memory with them.

        Raises LocalProtocolError for values that the codec cannot hold. Where they are not finite our own
        computation failed, and no peer may get it.
        """
        if rows.ndim != 2 or (rows.dtype is not FLOATS and rows.dtype != FLOATS):
            raise UsageError(f"activations are float32 of (tokens, width), not {rows.dtype} of {rows.shape}")
        tokens, width = rows.shape
        size = self.payload_bytes(tokens, width)
        return self._encode(rows, size) if size else b""

    def decode(self, payload: Payload, tokens: int, width: int, limit: float = MAX_MAGNITUDE) -> np.ndarray:
        """The rows (tokens, width) float32 of a peer's payload, in memory of their own.

        ``limit``: the largest magnitude that the reader can take, at most MAX_MAGNITUDE. Raises
        RemoteProtocolError (BAD_TENSOR) for a wrong size, for values that are not finite or beyond ``limit``,
        and for whatever the format does not allow.
        """
        size = self.payload_bytes(tokens, width)
        got = len(payload) if isinstance(payload, bytes) else memoryview(payload).nbytes
        if got != size:
            raise bad_tensor(
                f"{tokens} tokens of {width} values take {size} bytes in codec {self.name}, not {got}"
            )
        return self._decode(payload, tokens, width, limit) if size else np.empty((tokens, width), FLOATS)

    @abstractmethod
    def magnitudes(self, payload: Payload, tokens: int, width: int) -> list[float]:
        """The root mean square of each row of a payload of the right size, or a little more, without decoding
        it; NaN or infinite where a value is."""

    @abstractmethod
    def _row_bytes(self, width: int) -> int: ...

    @abstractmethod
    def _encode(self, rows: np.ndarray, size: int) -> bytes | memoryview: ...

    @abstractmethod
    def _decode(self, payload: Payload, tokens: int, width: int, limit: float) -> np.ndarray: ...


def not_finite() -> LocalProtocolError:
    return LocalProtocolError(
        "the computed activations hold values that are not finite",
        hint="With float16 activations the model may overflow: try bfloat16 or float32.",
    )


def bad_tensor(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(message, code=ErrorCode.BAD_TENSOR)
