"""GGUF's quantized types back to float32, bit for bit as ggml's own package computes them.

A block has 32 or 256 values, and its layout is that of the structs in ``ggml-common.h``. Several small
integers lie in one byte, the first of them lowest; ``_unpacked`` takes them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CODEBOOK = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)
"""What IQ4's integers stand for."""
_FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.float32)
"""Twice what the four bits of a float of type E2M1 stand for (OCP Microscaling Formats 1.0)."""


def _unpacked(packed: np.ndarray, bits: int, run: int) -> np.ndarray:
    """Integers of ``bits`` (blocks, values), of uint8 (blocks, bytes): the lowest bits of ``run`` bytes are
    the first values, the bits above them the next ones, and so on."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    parts = packed.reshape(len(packed), -1, 1, run) >> shifts  # (blocks, runs, in a byte, run)
    return (parts & np.uint8((1 << bits) - 1)).reshape(len(packed), -1)


def _fifth_bits(block: np.ndarray) -> np.ndarray:
    """16 for each of the 32 values of Q5_0 and Q5_1 that has the bit, else 0."""
    return np.unpackbits(block["high"], axis=1, bitorder="little") << 4


def _scaled(scale: np.ndarray, q: np.ndarray) -> np.ndarray:
    """``q`` (blocks, values) times ``scale`` (blocks, groups), of which each is for as many values."""
    groups = q.reshape(*scale.shape, -1).astype(np.float32)
    groups *= scale[..., None]
    return groups


def _floats(half: np.ndarray) -> np.ndarray:
    """float16 (blocks,) → float32 (blocks, 1)."""
    return half.astype(np.float32)[:, None]


def _q4_0(block: np.ndarray) -> np.ndarray:
    return _scaled(_floats(block["d"]), _unpacked(block["q"], 4, 16).view(np.int8) - np.int8(8))


def _q4_1(block: np.ndarray) -> np.ndarray:
    return _scaled(_floats(block["d"]), _unpacked(block["q"], 4, 16)) + _floats(block["m"])[..., None]


def _q5_0(block: np.ndarray) -> np.ndarray:
    q = _unpacked(block["q"], 4, 16) | _fifth_bits(block)
    return _scaled(_floats(block["d"]), q.view(np.int8) - np.int8(16))


def _q5_1(block: np.ndarray) -> np.ndarray:
    q = _unpacked(block["q"], 4, 16) | _fifth_bits(block)
    return _scaled(_floats(block["d"]), q) + _floats(block["m"])[..., None]


def _q8_0(block: np.ndarray) -> np.ndarray:
    return _scaled(_floats(block["d"]), block["q"])


def _q2_k(block: np.ndarray) -> np.ndarray:
    scale = _floats(block["d"]) * (block["scales"] & 15).astype(np.float32)
    minimum = _floats(block["m"]) * (block["scales"] >> 4).astype(np.float32)
    return _scaled(scale, _unpacked(block["q"], 2, 32)) - minimum[..., None]


def _q3_k(block: np.ndarray) -> np.ndarray:
    low, high = np.split(block["scales"], [8], axis=1)
    scales = _unpacked(low, 4, 8) | _unpacked(high, 2, 4) << 4
    scale = _floats(block["d"]) * (scales.view(np.int8) - np.int8(32)).astype(np.float32)
    missing = (_unpacked(block["high"], 1, 32) ^ 1) << 2  # a set bit means that nothing is taken off
    return _scaled(scale, _unpacked(block["q"], 2, 32).view(np.int8) - missing.view(np.int8))


def _k_scales(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima (blocks, 8) of Q4_K and Q5_K: four of each in the lower six bits of a byte, the rest
    in nibbles and in the upper two bits."""
    first, second, rest = np.split(block["scales"], 3, axis=1)
    scales = np.concatenate((first & 63, (rest & 15) | (first >> 6 << 4)), axis=1)
    minima = np.concatenate((second & 63, (rest >> 4) | (second >> 6 << 4)), axis=1)
    return _floats(block["d"]) * scales.astype(np.float32), _floats(block["m"]) * minima.astype(np.float32)


def _q4_k(block: np.ndarray) -> np.ndarray:
    scale, minimum = _k_scales(block)
    return _scaled(scale, _unpacked(block["q"], 4, 32)) - minimum[..., None]


def _q5_k(block: np.ndarray) -> np.ndarray:
    scale, minimum = _k_scales(block)
    q = _unpacked(block["q"], 4, 32) | _unpacked(block["high"], 1, 32) << 4
    return _scaled(scale, q) - minimum[..., None]


def _q6_k(block: np.ndarray) -> np.ndarray:
    q = _unpacked(block["q"], 4, 64) | _unpacked(block["high"], 2, 32) << 4
    scale = _floats(block["d"]) * block["scales"].astype(np.float32)
    return _scaled(scale, q.view(np.int8) - np.int8(32))


def _iq4_nl(block: np.ndarray) -> np.ndarray:
    return _scaled(_floats(block["d"]), _CODEBOOK[_unpacked(block["q"], 4, 16)])


def _iq4_xs(block: np.ndarray) -> np.ndarray:
    high = block["high"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = _unpacked(block["scales"], 4, 1) | high.astype(np.uint8) << 4
    scale = _floats(block["d"]) * (scales.view(np.int8) - np.int8(32)).astype(np.float32)
    return _scaled(scale, _CODEBOOK[_unpacked(block["q"], 4, 16)])


def _mxfp4(block: np.ndarray) -> np.ndarray:
    scale = np.ldexp(np.float32(1), block["e"].astype(np.int32) - 128)  # half of it: _FP4 is doubled
    return _scaled(scale[:, None], _FP4[_unpacked(block["q"], 4, 16)])


_D, _M = ("d", "<f2"), ("m", "<f2")
_WAYS: dict[str, tuple[int, list[Any], Callable[[np.ndarray], np.ndarray]]] = {
    "Q4_0": (32, [_D, ("q", "u1", 16)], _q4_0),
    "Q4_1": (32, [_D, _M, ("q", "u1", 16)], _q4_1),
    "Q5_0": (32, [_D, ("high", "u1", 4), ("q", "u1", 16)], _q5_0),
    "Q5_1": (32, [_D, _M, ("high", "u1", 4), ("q", "u1", 16)], _q5_1),
    "Q8_0": (32, [_D, ("q", "i1", 32)], _q8_0),
    "Q2_K": (256, [("scales", "u1", 16), ("q", "u1", 64), _D, _M], _q2_k),
    "Q3_K": (256, [("high", "u1", 32), ("q", "u1", 64), ("scales", "u1", 12), _D], _q3_k),
    "Q4_K": (256, [_D, _M, ("scales", "u1", 12), ("q", "u1", 128)], _q4_k),
    "Q5_K": (256, [_D, _M, ("scales", "u1", 12), ("high", "u1", 32), ("q", "u1", 128)], _q5_k),
    "Q6_K": (256, [("q", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), _D], _q6_k),
    "IQ4_NL": (32, [_D, ("q", "u1", 16)], _iq4_nl),
    "MXFP4": (32, [("e", "u1"), ("q", "u1", 16)], _mxfp4),
    "IQ4_XS": (256, [_D, ("high", "<u2"), ("scales", "u1", 4), ("q", "u1", 128)], _iq4_xs),
}
"""np.ndarray of a block, its struct, and what its values are."""
_LAYOUTS = {qtype: np.dtype(fields) for qtype, (_, fields, _) in _WAYS.items()}


def dequantize_rows(data: NDArray[np.uint8], qtype: str) -> NDArray[np.float32]:
    """uint8 (rows, bytes of a row) → float32 (rows, cols)."""
    layout = _LAYOUTS[qtype]
    values, _, dequantize = _WAYS[qtype]
    rows, cols = len(data), data.shape[1] // layout.itemsize * values
    if not rows:
        return np.empty((0, cols), np.float32)
    blocks = np.ascontiguousarray(data).reshape(-1).view(layout)
    with np.errstate(invalid="ignore"):  # of scales that are not finite, as some file may have them
        return np.asarray(dequantize(blocks).reshape(rows, cols), np.float32)
