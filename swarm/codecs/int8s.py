"""The codec int8s: int8, behind a power of two for each channel of a boundary.

A row is as in ``int8``, but the value of a channel c that is no outlier is q · scale · 2^e(c), with the
exponents e of a table that both sides of the edge have. The writer divides by 2^e(c) first, which is exact,
and chooses outliers and scale of what that gives; the values of outliers are written as they are. A reader
refuses rows whose values do not stay below its limit.

Its name is ``int8s.`` and the first 16 hex digits of the SHA-256 of the table's bytes, so a session's rows,
pages and journals name the table that they were made with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import RemoteProtocolError, UsageError
from .codec import Payload
from .int8 import Int8Codec
from .scales import ScaleTable

KIND = "int8s"


@dataclass(frozen=True, slots=True)
class Int8sCodec(Int8Codec):
    """Made by ``of``."""

    @classmethod
    def of(cls, table: ScaleTable) -> Int8sCodec:
        """The codec of a boundary whose rows ``table`` fits."""
        return cls(f"{KIND}.{table.digest}", KIND, table.exponents)

    def magnitudes(self, payload: Payload, tokens: int, width: int) -> list[float]:
        """Of the decoded rows: the head of one does not tell which powers of two its values have. Infinite
        for a row that cannot be decoded."""
        try:
            rows = self.decode(payload, tokens, width)
        except RemoteProtocolError:
            if tokens == 1:
                return [math.inf]
            size, view = self.row_bytes(width), memoryview(payload)
            alone = (view[row * size : (row + 1) * size] for row in range(tokens))
            return [magnitude for row in alone for magnitude in self.magnitudes(row, 1, width)]
        return [math.sqrt(float(np.dot(row, row)) / width) for row in rows]

    def _row_bytes(self, width: int) -> int:
        if width != len(self.exponents):
            raise UsageError(f"rows of {width} values are not those of {len(self.exponents)} scales")
        return Int8Codec._row_bytes(self, width)
