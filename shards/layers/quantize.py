"""Weights to integers: what the packed kernels hold, made from files' own groups or by rounding.

Scales made here are bfloat16 values from the start, because the packed CPU kernels take bfloat16 scales: the
rounding of a scale is then part of the choice of integers and costs nothing afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..formats.hf.mlx_affine import AffineTensor
from ..formats.qtypes import AFFINE_GROUPS, affine_qtype

if TYPE_CHECKING:
    from ..formats.raw_tensor import RawTensor

GROUP = 32
"""This many values share a scale in int4, as in GGUF's Q4_0 and Q4_1."""


INT4_SOURCES = (
    *("Q4_0", "Q4_1", "Q4_K"),
    *(affine_qtype(4, group, wide) for group in AFFINE_GROUPS for wide in (False, True)),
)
"""File types that are four-bit integers with scale and minimum for 32 of them or more: held as they are."""


INT8_SOURCES = ("Q8_0",)
"""File types that are groups of 32 eight-bit integers with a scale."""


class Int4Groups(NamedTuple):
    """``weight = q * scale + minimum``. ``q`` uint8 0..15 (rows, cols), others float32 (rows, cols // 32)."""

    q: Tensor
    scale: Tensor
    minimum: Tensor

    def dequantize(self) -> Tensor:
        """(rows, cols) float32."""
        grouped = self.q.view(self.q.shape[0], -1, GROUP).float()
        return (grouped * self.scale[..., None] + self.minimum[..., None]).view(self.q.shape)


class Int8Rows(NamedTuple):
    """``weight = q * scale``. ``q`` int8 (rows, cols), ``scale`` float32 (rows,), exact in bfloat16."""

    q: Tensor
    scale: Tensor

    def dequantize(self) -> Tensor:
        """(rows, cols) float32."""
        return self.q.float() * self.scale[:, None]


class Int8Groups(NamedTuple):
    """``weight = q * scale``. ``q`` int8 (rows, cols), ``scale`` float32 (rows, cols // 32)."""

    q: Tensor
    scale: Tensor

    def dequantize(self) -> Tensor:
        """(rows, cols) float32."""
        grouped = self.q.view(self.q.shape[0], -1, GROUP).float()
        return (grouped * self.scale[..., None]).view(self.q.shape)


def to_int4(weight: Tensor) -> Int4Groups:
    """Round to nearest between each group's minimum and maximum. ``weight`` (rows, cols), cols % 32 == 0."""
    rows, cols = weight.shape
    if cols % GROUP:
        raise ValueError(f"{cols} columns do not divide into groups of {GROUP}")
    groups = weight.float().view(rows, cols // GROUP, GROUP)
    low, high = groups.aminmax(dim=-1)
    scale = _bf16((high - low) / 15).clamp_(min=torch.finfo(torch.bfloat16).tiny)
    # The kernel's form is (q - 8) * scale + centre, with a bfloat16 centre.
    centre = _bf16(low + 8 * scale)
    q = ((groups - centre[..., None]) / scale[..., None]).round_().add_(8).clamp_(0, 15).to(torch.uint8)
    return Int4Groups(q.view(rows, cols), scale, centre - 8 * scale)


def as_torch_holds(groups: Int4Groups) -> Int4Groups:
    """``groups`` with the scales and centres of torch's packed kernel, which are bfloat16."""
    scale = _bf16(groups.scale)
    return Int4Groups(groups.q, scale, _bf16(groups.minimum + 8 * groups.scale) - 8 * scale)


def to_int8(weight: Tensor) -> Int8Rows:
    """Round to nearest, symmetric, one scale a row. ``weight`` (rows, cols)."""
    weight = weight.float()
    largest = weight.abs().amax(dim=-1)
    scale = _bf16(largest / 127)
    # Rounding to nearest may land up to 2**-9 short, which would clip the row's largest values.
    scale = torch.where(scale * 127 < largest, _bf16(scale * (1 + 2.0**-7)), scale)
    scale.clamp_(min=torch.finfo(torch.bfloat16).tiny)
    q = (weight / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return Int8Rows(q, scale)


def to_int8_groups(weight: Tensor) -> Int8Groups:
    """Round to nearest, symmetric, float16 scales: as GGUF's Q8_0. ``weight`` as for ``to_int4``."""
    rows, cols = weight.shape
    if cols % GROUP:
        raise ValueError(f"{cols} columns do not divide into groups of {GROUP}")
    groups = weight.float().view(rows, cols // GROUP, GROUP)
    scale = (groups.abs().amax(dim=-1) / 127).to(torch.float16).float()
    # A group too small for float16 becomes zeros, one whose scale was rounded down keeps 127 for its largest.
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    q = (groups * inverse[..., None]).round_().clamp_(-127, 127).to(torch.int8)
    return Int8Groups(q.view(rows, cols), scale)


def _bf16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).float()


def file_groups(raw: RawTensor) -> Int4Groups:
    """The file's own integers and scales, for a ``raw`` matrix whose ``qtype`` is in INT4_SOURCES."""
    if isinstance(raw, AffineTensor):
        parts = raw.scales.values(slice(None)), raw.biases.values(slice(None))
        scale, minimum = (torch.from_numpy(part.repeat(raw.group // GROUP, 1)) for part in parts)
        return Int4Groups(torch.from_numpy(raw.integers()), scale, minimum)
    if raw.qtype == "Q4_K":
        return q4_k_groups(raw.data)
    return Int4Groups(*map(torch.from_numpy, raw.blocks()))


def file_int8_groups(raw: RawTensor) -> Int8Groups:
    """The file's own integers and scales, for a ``raw`` matrix in INT8_SOURCES."""
    q, scale, _ = raw.blocks()
    return Int8Groups(torch.from_numpy(q), torch.from_numpy(scale))


def q4_k_groups(data: np.ndarray) -> Int4Groups:
    """Q4_K rows, uint8 (rows, bytes), taken apart (layout: ``block_q4_K`` of ggml).

    A super-block of 256 values has 8 groups of 32, with 6-bit scales and minima times a float16 each; their
    products are exact in float32.
    """
    rows = data.shape[0]
    blocks = np.ascontiguousarray(data).reshape(rows, -1, 144)
    count = blocks.shape[1]
    factors = np.ascontiguousarray(blocks[..., :4]).view(np.float16).astype(np.float32)  # (rows, blocks, 2)
    packed = blocks[..., 4:16].reshape(
        rows, count, 3, 4
    )  # four scales, four minima, their upper and lower rests
    first, second, rest = packed[:, :, 0], packed[:, :, 1], packed[:, :, 2]
    scale = np.concatenate((first & 63, (rest & 15) | (first >> 6 << 4)), -1).astype(np.float32)
    minimum = np.concatenate((second & 63, (rest >> 4) | (second >> 6 << 4)), -1).astype(np.float32)
    nibbles = blocks[..., 16:].reshape(rows, count, 4, 1, 32)
    q = np.concatenate((nibbles & 15, nibbles >> 4), axis=3)  # (rows, blocks, 4, 2, 32): groups in order
    return Int4Groups(
        torch.from_numpy(q.reshape(rows, -1)),
        torch.from_numpy((scale * factors[..., :1]).reshape(rows, -1)),
        torch.from_numpy((minimum * -factors[..., 1:]).reshape(rows, -1)),
    )
