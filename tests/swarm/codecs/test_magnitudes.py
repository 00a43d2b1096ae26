from __future__ import annotations

import math
import struct

import numpy as np
import pytest

from swarm_node.swarm.codecs.activations import CODECS, encode
from swarm_node.swarm.codecs.magnitudes import SMALLEST_MAGNITUDE, magnitudes


def int8_row(scale: float, outlier: float) -> bytes:
    return struct.pack("<f4H4f8b", scale, 0, 1, 2, 3, *[outlier] * 4, *[1] * 8)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("tokens", [0, 1, 3])
@pytest.mark.parametrize("hidden", [2, 64, 576])
def test_magnitudes_of_rows_without_decoding_them(codec: str, tokens: int, hidden: int) -> None:
    rows = np.random.default_rng(1).standard_normal((tokens, hidden), np.float32) * np.float32(3)
    rows[1:, 0] = 1000.0
    rows[2:] = 0.0
    found = magnitudes(codec, encode(codec, rows), tokens, hidden)
    true = np.sqrt(np.square(rows).mean(axis=1)).tolist()
    assert len(found) == tokens
    for magnitude, rms in zip(found, true, strict=True):
        assert rms * 0.99 <= magnitude <= rms * (6 if codec == "int8" else 1.01) + SMALLEST_MAGNITUDE


def test_magnitudes_of_what_is_not_finite_are_not() -> None:
    for bad in (math.nan, math.inf):
        (magnitude,) = magnitudes("none", struct.pack("<8f", *[bad] * 8), 1, 8)
        assert not math.isfinite(magnitude)
        for row in (int8_row(bad, 1.0), int8_row(1.0, bad)):
            for count in (1, 2):
                assert not math.isfinite(magnitudes("int8", row * count, count, 8)[-1])
