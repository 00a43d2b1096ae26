"""How activations (tokens, hidden) travel: exact, in 16 bits, or in 8 with the outliers kept exact.

All numbers are little-endian, rows follow each other without padding, and every row (token) stands alone:
the payloads of two steps, joined, are the payload of both, and a payload cut at a row is one of fewer
tokens.

======  =============  ===========================================================================
codec   bytes per row  a row
======  =============  ===========================================================================
none    4 · hidden     float32 values
bf16    2 · hidden     bfloat16 values (the upper half of the float32, rounded to nearest even)
fp16    2 · hidden     IEEE binary16 values; larger than ±65504 is sent as ±65504
int8    28 + hidden    see below
======  =============  ===========================================================================

int8, with k = min(4, hidden) outliers (a row takes 4 + 6·k + hidden bytes):

======  =========  ================================================================================
offset  type       meaning
======  =========  ================================================================================
0       float32    scale, finite, >= 0
4       k uint16   outlier channels, strictly ascending, each < hidden
4+2k    k float32  the values of those channels, exact and finite
4+6k    hidden i8  q; the value of a channel that is no outlier is q · scale. Written as -127 to 127,
                   as 0 at outliers; a reader takes -128 as it is and ignores q at outliers
======  =========  ================================================================================

The writer takes the k channels of largest magnitude (the lower channel first among equals) as outliers, and
scale = (largest magnitude of the others) / 127, q = round half to even(value / scale). Any other choice
decodes as well: only the table above binds. hidden is at most 65536 here.

Why so: a few channels carry values hundreds of times the median, and the first token's reach thousands, so
one scale for all would leave nothing for the rest. ``scripts/quality`` measures what each codec costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ..errors import ErrorCode, LocalProtocolError, RemoteProtocolError, UsageError
from . import native as native_codec

CODECS = ("none", "bf16", "fp16", "int8")
DEFAULT_CODEC = "int8"
"""Of families for which its error was measured."""
UNMEASURED_CODEC = "bf16"
"""Of all other families: a channel of some is a thousand times the median, and int8 loses the rest."""
_INT8_FAMILIES = frozenset(("llama",))
OUTLIERS = 4
"""int8 keeps the values of this many channels of each token exact. Part of the format."""
MAX_HIDDEN = 65536
"""Values a row may have at most, because an outlier's channel is a uint16."""
MAX_MAGNITUDE = 2.0**40
"""The largest magnitude of a value that is accepted. The largest known in any model's blocks is about 2^20.
The squares of a row of values up to this have a finite sum in float32, so an accepted row makes no next block
overflow."""

_MORE_EXACT = {"int8": ("bf16", "none"), "bf16": ("none",), "fp16": ("none",), "none": ()}
"""What is taken instead of a codec that a side does not speak, the first that both do. Never fp16: there are
models whose activations it cannot hold."""
_SMALLEST_SCALED = 1e-30
"""A scale is made of at least this magnitude, which keeps 1 / scale finite for rows of zeros."""
_ROWS_AT_ONCE = 64
"""This many rows are encoded together, so that their float32 temporaries stay in the second-level cache."""
_LARGEST_FP16 = np.float32(65504)
_ROUNDS_TO_INFINITY = 0x7F7F8000
"""The bits of the smallest magnitude that bfloat16 rounds to infinity."""
_FLOATS = np.dtype(np.float32)


@lru_cache(maxsize=1024)  # asked several times a token, nearly always the same
def payload_bytes(codec: str, tokens: int, hidden: int) -> int:
    """The exact size of an encoded (tokens, hidden) tensor. Raises UsageError for an unknown codec."""
    if codec not in CODECS:
        raise UsageError(f"unknown wire codec {codec!r}", hint=f"Known codecs: {', '.join(CODECS)}.")
    if tokens < 0 or not 0 < hidden <= MAX_HIDDEN:
        raise UsageError(f"{tokens} tokens of {hidden} values are not possible")
    if codec == "int8":
        return tokens * (4 + 6 * min(OUTLIERS, hidden) + hidden)
    return tokens * hidden * (4 if codec == "none" else 2)


def encode(codec: str, rows: np.ndarray) -> bytes | memoryview:
    """The payload of ``rows`` (tokens, hidden) float32; it shares no memory with them.

    Raises LocalProtocolError when a value is not finite: our own computation failed, and no peer may get it.
    """
    if rows.ndim != 2 or rows.dtype != _FLOATS:
        raise UsageError(f"activations are float32 of (tokens, hidden), not {rows.dtype} of {rows.shape}")
    tokens, hidden = rows.shape
    size = payload_bytes(codec, tokens, hidden)
    if size == 0:
        return b""
    if codec == "int8":
        if (native := native_codec.loaded()) is None:
            return _encode_int8(rows)
        if (payload := native.encode_int8(rows, size)) is None:
            raise _not_finite()
        return payload
    if codec == "bf16":
        return _encode_bf16(rows)
    if codec == "fp16":
        rows = np.clip(rows, -_LARGEST_FP16, _LARGEST_FP16)  # NaN stays NaN
    if not np.isfinite(rows).all():
        raise _not_finite()
    return rows.astype("<f2" if codec == "fp16" else "<f4", copy=False).tobytes()


def decode(
    codec: str,
    payload: bytes | bytearray | memoryview,
    tokens: int,
    hidden: int,
    limit: float = MAX_MAGNITUDE,
) -> np.ndarray:
    """The rows (tokens, hidden) float32 of a peer's payload, in memory of their own.

    ``limit``: the largest magnitude that the reader can take, at most MAX_MAGNITUDE. Raises
    RemoteProtocolError (BAD_TENSOR) for a wrong size, values that are not finite or beyond ``limit``, and
    outlier channels that are out of range or order.
    """
    size = payload_bytes(codec, tokens, hidden)
    got = memoryview(payload).nbytes
    if got != size:
        raise _bad_tensor(f"{tokens} tokens of {hidden} values take {size} bytes in codec {codec}, not {got}")
    if size == 0:
        return np.empty((tokens, hidden), np.float32)
    if codec == "int8":
        if (native := native_codec.loaded()) is None:
            return _decode_int8(payload, tokens, hidden, limit)
        if isinstance(rows := native.decode_int8(payload, tokens, hidden, limit), int):
            raise _bad_row(rows, hidden)
        return rows
    values = floats(codec, payload)
    if not (values.max() <= limit and values.min() >= -limit):  # false for NaN too
        raise _bad_tensor(f"activations hold values that are not finite or larger than {limit:g}")
    return values.reshape(tokens, hidden)


def floats(codec: str, payload: bytes | bytearray | memoryview) -> np.ndarray:
    """The values of a payload of whole rows in a codec other than int8: float32, in memory of their own."""
    if codec == "bf16":
        bits = np.frombuffer(payload, "<u2").astype(np.uint32)
        return np.left_shift(bits, 16, out=bits).view(np.float32)
    return np.frombuffer(payload, "<f2" if codec == "fp16" else "<f4").astype(np.float32)


def negotiate(ours: Sequence[str], theirs: Sequence[str], wanted: str = DEFAULT_CODEC) -> str:
    """The codec for a link: ``wanted`` if both speak it, else the smallest shared one that is more exact.

    Raises UsageError when we do not know ``wanted``, RemoteProtocolError (UNSUPPORTED_CODEC) when the peer
    speaks no codec that is at least as exact. So no precision is lost without notice.
    """
    if wanted not in ours or wanted not in CODECS:
        raise UsageError(f"unknown wire codec {wanted!r}", hint=f"Known codecs: {', '.join(ours)}.")
    for codec in (wanted, *_MORE_EXACT[wanted]):
        if codec in ours and codec in theirs:
            return codec
    raise RemoteProtocolError(
        f"the peer speaks no wire codec as exact as {wanted}: {', '.join(theirs)[:100] or 'none at all'}",
        code=ErrorCode.UNSUPPORTED_CODEC,
    )


def usual_codec(family: str) -> str:
    """The codec for activations of a model of ``family`` (``ModelConfig``), unless a person asks for
    another."""
    return DEFAULT_CODEC if family in _INT8_FAMILIES else UNMEASURED_CODEC


@lru_cache(maxsize=16)
def row_type(hidden: int) -> np.dtype[np.void]:
    """One int8 row, packed as the module's docstring says."""
    k = min(OUTLIERS, hidden)
    return np.dtype([("scale", "<f4"), ("channel", "<u2", k), ("value", "<f4", k), ("q", "i1", hidden)])


def _encode_bf16(rows: np.ndarray) -> bytes:
    """The upper halves of the floats, rounded to nearest, or to even where both are as near."""
    bits = np.ascontiguousarray(rows).view(np.uint32)
    odd = np.right_shift(bits, 16)
    odd &= 1
    if (bits & 0x7FFFFFFF).max() >= _ROUNDS_TO_INFINITY:  # NaN too
        raise _not_finite()
    rounded = np.add(bits, 0x7FFF)
    rounded += odd
    rounded >>= 16
    return rounded.astype("<u2").tobytes()


def _encode_int8(x: np.ndarray) -> memoryview:
    """``x``: (tokens, hidden) float32, tokens >= 1."""
    tokens, hidden = x.shape
    payload = np.empty(tokens, row_type(hidden))
    for first in range(0, tokens, _ROWS_AT_ONCE):
        _encode_rows(x[first : first + _ROWS_AT_ONCE], payload[first : first + _ROWS_AT_ONCE])
    return payload.view(np.uint8).data


def _encode_rows(x: np.ndarray, out: np.ndarray) -> None:
    rows, hidden = x.shape
    x = np.ascontiguousarray(x)
    scratch = np.abs(x)  # (rows, hidden)
    flat = scratch.reshape(-1)
    row_starts = np.arange(0, rows * hidden, hidden)
    k = min(OUTLIERS, hidden)
    channels = np.empty((k, rows), np.intp)
    for i in range(k):  # a few passes over the cache beat a partial sort; argmax finds NaN first
        channels[i] = scratch.argmax(axis=1)
        flat[channels[i] + row_starts] = -1.0  # below any magnitude: never taken again
    channels.sort(axis=0)
    places = channels + row_starts  # (k, rows) into the flat rows
    values = x.reshape(-1)[places]
    scale = np.maximum(np.maximum.reduce(scratch, axis=1), _SMALLEST_SCALED) / np.float32(127)
    if not np.isfinite(values).all():  # whatever is not finite is among the largest
        raise _not_finite()
    with np.errstate(over="ignore"):  # at outliers, which are set to 0
        np.multiply(x, (np.float32(1) / scale)[:, None], out=scratch)
    flat[places] = 0.0
    np.rint(scratch, out=scratch)
    out["scale"] = scale
    out["channel"] = channels.T
    out["value"] = values.T
    out["q"] = scratch


def _decode_int8(
    payload: bytes | bytearray | memoryview, tokens: int, hidden: int, limit: float
) -> np.ndarray:
    """(tokens, hidden) float32, every magnitude at most ``limit``."""
    rows = np.frombuffer(payload, row_type(hidden))
    scale, channels, values = rows["scale"], rows["channel"], rows["value"]
    if not (np.maximum.reduce(scale) <= limit / 128 and np.minimum.reduce(scale) >= 0):  # false for NaN too
        raise _bad_row(native_codec.BAD_SCALE, hidden)
    if not np.maximum.reduce(np.abs(values), axis=None) <= limit:
        raise _bad_row(native_codec.BAD_VALUE, hidden)
    if np.maximum.reduce(channels[:, -1]) >= hidden or (channels[:, 1:] <= channels[:, :-1]).any():
        raise _bad_row(native_codec.BAD_CHANNEL, hidden)
    x = np.multiply(rows["q"], scale[:, None], dtype=np.float32)
    x.reshape(-1)[channels + np.arange(0, tokens * hidden, hidden)[:, None]] = values
    return x


def _not_finite() -> LocalProtocolError:
    return LocalProtocolError(
        "the computed activations hold values that are not finite",
        hint="With float16 activations the model may overflow: try bfloat16 or float32.",
    )


def _bad_row(complaint: int, hidden: int) -> RemoteProtocolError:
    """For one of the numbers in ``native_codec``."""
    if complaint == native_codec.BAD_SCALE:
        return _bad_tensor("an int8 row's scale is negative, not finite or too large")
    if complaint == native_codec.BAD_VALUE:
        return _bad_tensor("an int8 row's outlier is not finite or too large")
    return _bad_tensor(f"an int8 row's outlier channels are not strictly ascending below {hidden}")


def _bad_tensor(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(message, code=ErrorCode.BAD_TENSOR)
