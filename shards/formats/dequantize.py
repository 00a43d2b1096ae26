"""GGUF's quantized types back to float32, bit for bit as ggml's own package computes them.

A block has 32 to 256 values, and its layout is that of the structs in ``ggml-common.h``. Several small
integers lie in one byte, the first of them lowest; ``_unpacked`` takes them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import grids

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CODEBOOK = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)
"""What IQ4's integers stand for."""
_CHECKED = 1 << 24
"""Bytes whose scales are looked at together."""
_EXPONENT = np.uint16(0x7C00)
"""All bits of the exponent of a float16: of infinities, and of what is no number."""
_FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.int8)
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


_Integers = tuple[np.ndarray, np.ndarray]
"""Scales float32 (blocks, groups) and integers int8 (blocks, values), whose exact products are the values."""


def _signed(values: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """``values`` int8 (blocks, ...), negative where ``signs``, uint8, have a bit, the lowest one first."""
    bits = np.unpackbits(signs.reshape(len(signs), -1), axis=1, bitorder="little").view(np.int8)
    return values.reshape(len(values), -1) * (1 - 2 * bits)


_EVEN_SIGNS = np.arange(128, dtype=np.uint8)
for _bit in range(7):
    _EVEN_SIGNS ^= (_EVEN_SIGNS >> _bit & 1) << 7
"""Eight signs of seven bits: an even number of them is negative."""


def _shifted(words: np.ndarray, *shifts: int) -> np.ndarray:
    """(blocks, words) → (blocks, words * shifts): each word to the right by each of ``shifts``."""
    return (words[..., None] >> np.array(shifts, words.dtype)).reshape(len(words), -1)


def _iq2_xxs(block: np.ndarray) -> _Integers:
    signs = block["groups"]["signs"]
    scale = _floats(block["d"]) * (np.float32(0.5) + (signs >> 28).astype(np.float32)) * np.float32(0.25)
    values = grids.IQ2_XXS[block["groups"]["index"]]
    return scale, _signed(values, _EVEN_SIGNS[_shifted(signs, 0, 7, 14, 21) & 127])


def _iq3_xxs(block: np.ndarray) -> _Integers:
    signs = block["signs"]
    scale = _floats(block["d"]) * (np.float32(0.5) + (signs >> 28).astype(np.float32)) * np.float32(0.5)
    return scale, _signed(grids.IQ3_XXS[block["index"]], _EVEN_SIGNS[_shifted(signs, 0, 7, 14, 21) & 127])


def _nibble_scales(block: np.ndarray) -> np.ndarray:
    scales = _unpacked(block["scales"], 4, 1).astype(np.float32)
    return _floats(block["d"]) * (np.float32(0.5) + scales) * np.float32(0.25)


def _iq2_xs(block: np.ndarray) -> _Integers:
    return _nibble_scales(block), _signed(grids.IQ2_XS[block["q"] & 511], _EVEN_SIGNS[block["q"] >> 9])


def _iq2_s(block: np.ndarray) -> _Integers:
    index = block["index"] | _unpacked(block["high"], 2, 1).astype(np.uint16) << 8
    return _nibble_scales(block), _signed(grids.IQ2_S[index], block["signs"])


def _iq3_s(block: np.ndarray) -> _Integers:
    index = block["index"] | np.unpackbits(block["high"], axis=1, bitorder="little").astype(np.uint16) << 8
    scale = _floats(block["d"]) * (1 + 2 * _unpacked(block["scales"], 4, 1)).astype(np.float32)
    return scale, _signed(grids.IQ3_S[index], block["signs"])


def _iq1(d: np.ndarray, scales: np.ndarray, index: np.ndarray, lower: np.ndarray) -> _Integers:
    """Points moved by an eighth, down where ``lower`` (blocks, points): in eighths they are integers."""
    scale = _floats(d) * (2 * scales + 1).astype(np.float32) * np.float32(0.125)
    eighths = 8 * grids.IQ1[index] + np.where(lower, -1, 1).astype(np.int8)[..., None]
    return scale, eighths.reshape(len(d), -1)


def _iq1_s(block: np.ndarray) -> _Integers:
    high = block["high"]
    index = block["index"] | (_shifted(high, 0, 3, 6, 9) & 7) << 8
    return _iq1(block["d"], high >> 12 & 7, index, np.repeat(high >> 15, 4, axis=1))


def _iq1_m(block: np.ndarray) -> _Integers:
    """The float16 scale lies in the upper four bits of the four words with scales."""
    parts = block["scales"] >> 12
    d = parts[:, 0] | parts[:, 1] << 4 | parts[:, 2] << 8 | parts[:, 3] << 12
    high = _unpacked(block["high"], 4, 1)
    index = block["index"] | (high & 7).astype(np.uint16) << 8
    return _iq1(d.view(np.float16), _shifted(block["scales"], 0, 3, 6, 9) & 7, index, high >> 3)


def _ternary(packed: np.ndarray, digits: int) -> np.ndarray:
    """Bytes (blocks, run) that are fractions of 256 in base 3: their first digits, one after the other."""
    moved = (
        packed[:, None] * 3 ** np.arange(digits, dtype=np.uint8)[:, None]
    )  # without what is before the point
    return (moved.astype(np.uint16) * 3 >> 8).reshape(len(packed), -1)


def _tq1_0(block: np.ndarray) -> _Integers:
    first, second = np.split(block["q"], [32], axis=1)
    digits = np.concatenate((_ternary(first, 5), _ternary(second, 5), _ternary(block["rest"], 4)), axis=1)
    return _floats(block["d"]), digits.astype(np.int8) - np.int8(1)


def _tq2_0(block: np.ndarray) -> _Integers:
    return _floats(block["d"]), _unpacked(block["q"], 2, 32).view(np.int8) - np.int8(1)


def _q1_0(block: np.ndarray) -> _Integers:
    return _floats(block["d"]), 2 * _unpacked(block["q"], 1, 1).view(np.int8) - np.int8(1)


def _q2_0(block: np.ndarray) -> _Integers:
    return _floats(block["d"]), _unpacked(block["q"], 2, 1).view(np.int8) - np.int8(1)


_UE4M3 = (np.arange(256, dtype=np.uint16) << 7 & 0x3F80).view(np.float16).astype(np.float32) * 128
_UE4M3[0x7F] = 0
"""Half of what a scale of NVFP4 stands for, as ``_FP4`` is doubled: a float of four bits of exponent and
three of fraction, whose sign does not count."""


def _nvfp4(block: np.ndarray) -> _Integers:
    return _UE4M3[block["scales"]], _FP4[_unpacked(block["q"], 4, 8)]


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
"""Values of a block, its struct, and what they are."""
_INTEGERS: dict[str, tuple[int, list[Any], Callable[[np.ndarray], _Integers]]] = {
    "IQ2_XXS": (256, [_D, ("groups", [("index", "u1", 4), ("signs", "<u4")], 8)], _iq2_xxs),
    "IQ2_XS": (256, [_D, ("q", "<u2", 32), ("scales", "u1", 8)], _iq2_xs),
    "IQ2_S": (
        256,
        [_D, ("index", "u1", 32), ("signs", "u1", 32), ("high", "u1", 8), ("scales", "u1", 8)],
        _iq2_s,
    ),
    "IQ3_XXS": (256, [_D, ("index", "u1", 64), ("signs", "<u4", 8)], _iq3_xxs),
    "IQ3_S": (
        256,
        [_D, ("index", "u1", 64), ("high", "u1", 8), ("signs", "u1", 32), ("scales", "u1", 4)],
        _iq3_s,
    ),
    "IQ1_S": (256, [_D, ("index", "u1", 32), ("high", "<u2", 8)], _iq1_s),
    "IQ1_M": (256, [("index", "u1", 32), ("high", "u1", 16), ("scales", "<u2", 4)], _iq1_m),
    "TQ1_0": (256, [("q", "u1", 48), ("rest", "u1", 4), _D], _tq1_0),
    "TQ2_0": (256, [("q", "u1", 64), _D], _tq2_0),
    "Q1_0": (128, [_D, ("q", "u1", 16)], _q1_0),
    "Q2_0": (64, [_D, ("q", "u1", 16)], _q2_0),
    "NVFP4": (64, [("scales", "u1", 4), ("q", "u1", 32)], _nvfp4),
}
"""The same of types that are integers with scales."""
INTEGER_QTYPES = tuple(_INTEGERS)
_LAYOUTS = {qtype: (np.dtype(way[1]), way[0]) for qtype, way in (*_WAYS.items(), *_INTEGERS.items())}
"""A block, and how many values it has."""


def dequantize_rows(data: NDArray[np.uint8], qtype: str) -> NDArray[np.float32]:
    """uint8 (rows, bytes of a row) → float32 (rows, cols)."""
    blocks, cols = _blocks(data, qtype)
    if not len(blocks):
        return np.empty((len(data), cols), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # of scales that are damaged, or at their end
        values = _WAYS[qtype][2](blocks) if qtype in _WAYS else _scaled(*_INTEGERS[qtype][2](blocks))
    return np.asarray(values.reshape(len(data), cols), np.float32)


def integer_rows(data: NDArray[np.uint8], qtype: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """uint8 (rows, bytes of a row) of a type in INTEGER_QTYPES → integers int8 (rows, cols), and scales
    float32 (rows, groups), each for as many columns: their products are the values, exactly."""
    blocks, cols = _blocks(data, qtype)
    with np.errstate(invalid="ignore", over="ignore"):
        scale, q = _INTEGERS[qtype][2](blocks)
    return q.reshape(len(data), cols), scale.reshape(len(data), -1)


def _blocks(data: NDArray[np.uint8], qtype: str) -> tuple[np.ndarray, int]:
    """All blocks, and the columns of a row."""
    layout, values = _LAYOUTS[qtype]
    return np.ascontiguousarray(data).reshape(-1).view(layout), data.shape[1] // layout.itemsize * values


def has_finite_scales(data: np.ndarray, qtype: str) -> bool:
    """Whether all float16 scales and minima in ``data``, uint8 (rows, bytes of a row), are numbers. Reads
    nothing else; True for types that have none as such, MXFP4 and IQ1_M among them."""
    layout: np.dtype[np.void] = _LAYOUTS[qtype][0] if qtype in _LAYOUTS else np.dtype([])
    halves = [name for name in layout.names or () if layout[name].base == np.float16]
    step = max(1, _CHECKED // max(1, data.shape[-1]))
    for start in range(0, len(data) if halves else 0, step):
        blocks: NDArray[np.void] = data[start : start + step].view(layout)
        for name in halves:
            if np.bitwise_and(blocks[name].view(np.uint16), _EXPONENT).max(initial=0) == _EXPONENT:
                return False
    return True
