"""Values of 32 and 16 bits against the written format and torch's rounding."""

from __future__ import annotations

import logging
import math
import struct

import numpy as np
import pytest
import torch

from swarm_node.swarm.codecs import plain
from swarm_node.swarm.codecs.codec import MAX_MAGNITUDE, Codec
from swarm_node.swarm.codecs.kinds import BF16, FP16, NONE
from swarm_node.swarm.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from tests.swarm.codecs.codec_cases import activations


@pytest.mark.parametrize(
    ("codec", "dtype"), [(NONE, torch.float32), (BF16, torch.bfloat16), (FP16, torch.float16)]
)
def test_values_are_exact_for_their_own_dtype(codec: Codec, dtype: torch.dtype) -> None:
    x = torch.from_numpy(activations(5, 33)).to(dtype).float().numpy()
    back = codec.decode(codec.encode(x), 5, 33)
    assert back.dtype == np.float32
    assert np.array_equal(back, x)


@pytest.mark.parametrize(("codec", "dtype"), [(BF16, torch.bfloat16), (FP16, torch.float16)])
def test_sixteen_bits_are_rounded_as_torch_does(codec: Codec, dtype: torch.dtype) -> None:
    """Every upper half of a float32, with lower halves at random, next to a half of a step and at it."""
    upper = np.arange(2**16, dtype=np.uint32) << 16
    lower = np.random.default_rng(3).integers(2**16, size=2**16, dtype=np.uint32)
    for low in (lower, *map(np.uint32, (0, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF))):
        x = (upper | low).view(np.float32)
        rounded = torch.from_numpy(x).to(dtype)
        fine = rounded.isfinite().numpy()
        bits = rounded.view(torch.int16).numpy()
        assert bytes(codec.encode(x[fine][None])) == bits[fine].tobytes()
        for value in x[~fine][::97]:
            with pytest.raises(LocalProtocolError):
                codec.encode(value[None, None])


@pytest.mark.parametrize(
    ("codec", "row"),
    [
        (NONE, struct.pack("<3f", 1.5, -2.0, 0.0)),
        (FP16, struct.pack("<3e", 1.5, -2.0, 0.0)),
        (BF16, bytes.fromhex("c03f00c00000")),
    ],
)
def test_written_as_documented(codec: Codec, row: bytes) -> None:
    x = np.array([[1.5, -2.0, 0.0]], np.float32)
    assert bytes(codec.encode(x)) == row
    assert codec.decode(row, 1, 3).tolist() == x.tolist()


@pytest.mark.parametrize(
    ("codec", "form", "bad"),
    [(c, f, b) for c, f in ((NONE, "<f"), (FP16, "<e")) for b in (math.nan, math.inf, -math.inf)]
    + [(BF16, "<H", bits) for bits in (0x7F80, 0xFF80, 0x7FC1, 0xFFFF)],
)
def test_values_that_are_not_finite(codec: Codec, form: str, bad: float) -> None:
    payload = bytearray(codec.encode(np.ones((2, 8), np.float32)))
    payload[-struct.calcsize(form) :] = struct.pack(form, bad)
    for limit in (MAX_MAGNITUDE, 65504.0):
        with pytest.raises(RemoteProtocolError) as caught:
            codec.decode(payload, 2, 8, limit)
        assert caught.value.code is ErrorCode.BAD_TENSOR


@pytest.mark.parametrize("largest", [65520.0, -103_795.0, 3e38])
def test_what_fp16_does_not_hold_is_no_other_value(largest: float) -> None:
    x = np.array([[1.0, largest, 1.0]], np.float32)
    with pytest.raises(LocalProtocolError, match="fp16 ends at 65,504") as caught:
        FP16.encode(x)
    assert "bf16" in caught.value.hint
    BF16.encode(x)


def test_values_near_the_end_of_fp16_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    plain._warn_near_overflow.cache_clear()
    with caplog.at_level(logging.WARNING, plain.__name__):
        FP16.encode(np.full((1, 4), 32768.0, np.float32))
        assert not caplog.records
        for _ in range(3):
            FP16.encode(np.full((1, 4), -32800.0, np.float32))
    (record,) = caplog.records
    assert "bf16" in record.getMessage()
