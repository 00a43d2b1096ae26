"""How large a boundary's channels are beside each other, as one power of two for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np

from ..errors import ErrorCode, RemoteProtocolError, UsageError
from ..types import MAX_SCALES

MAX_EXPONENT = 32
"""The largest exponent, and its negative the smallest. The channels of a model's rows lie within 2^20 of each
other, and values of up to ``codec.MAX_MAGNITUDE`` stay far within float32 whichever is divided by which."""


@dataclass(frozen=True, slots=True)
class ScaleTable:
    """``exponents``: an int8 for each channel. Raises UsageError for a table that cannot be."""

    exponents: bytes
    digest: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if problem := _problem(self.exponents):
            raise UsageError(f"the table of scales {problem}")
        object.__setattr__(self, "digest", scale_digest(self.exponents))

    @classmethod
    def from_peer(cls, exponents: bytes, width: int) -> ScaleTable:
        """A table for rows of ``width`` values. Raises RemoteProtocolError (UNSUPPORTED_CODEC) for bytes that
        are none."""
        try:
            table = cls(exponents)
            if table.width != width:
                raise UsageError(f"the table of scales has {table.width} channels, not the {width} of a row")
        except UsageError as error:
            raise RemoteProtocolError(error.message, code=ErrorCode.UNSUPPORTED_CODEC) from None
        return table

    @classmethod
    def from_rms(cls, rms: np.ndarray) -> ScaleTable:
        """``rms`` (width,): the root mean square of each channel. Relative to the median of those that are
        not 0; a channel that is 0 counts as usual. Raises UsageError for values that are not finite."""
        rms = np.asarray(rms, np.float64)
        if rms.ndim != 1 or not np.isfinite(rms).all() or (rms < 0).any():
            raise UsageError("root mean squares of channels are finite and not negative, one for each")
        used = rms > 0
        exponents = np.zeros(len(rms))
        if used.any():
            exponents[used] = np.rint(np.log2(rms[used]) - np.log2(np.median(rms[used])))
        return cls(exponents.clip(-MAX_EXPONENT, MAX_EXPONENT).astype(np.int8).tobytes())

    @property
    def width(self) -> int:
        return len(self.exponents)


def scale_digest(exponents: bytes) -> str:
    """What names a table: 16 hex digits."""
    return sha256(exponents).hexdigest()[:16]


def powers_of_two(exponents: bytes, sign: int = 1) -> np.ndarray:
    """(width,) float32: 2 to the power of each int8, or of its negative."""
    return np.ldexp(np.float32(1), sign * np.frombuffer(exponents, np.int8).astype(np.int32))


def _problem(exponents: bytes) -> str:
    """What is wrong with a table; "" if nothing."""
    if not 0 < len(exponents) <= MAX_SCALES:
        return f"has {len(exponents)} channels, not 1 to {MAX_SCALES}"
    largest = int(np.abs(np.frombuffer(exponents, np.int8).astype(np.int16)).max())
    return f"has an exponent of {largest}, above {MAX_EXPONENT}" if largest > MAX_EXPONENT else ""
