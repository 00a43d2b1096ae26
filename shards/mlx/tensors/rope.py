"""Rotary position embedding by ``mx.fast.rope``, with the frequencies of ``shards.layers.rope``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ...layers.kv_pool import BatchSlice
from ...layers.rope import dynamic_inv_freq, frequencies
from .device import evaluated

if TYPE_CHECKING:
    from ...formats.blocks.attention import QueryScale
    from ...formats.blocks.rope import RopeConfig


_SLOWEST = 1e-30
"""A dimension that never turns has this frequency: one over it is finite, and an angle too small to show."""


class MlxRope:
    """One kind of rotation, of the first ``dim`` dimensions of a head. ``factor``: what YaRN and LongRoPE
    multiply these by; whoever asks for a rotation does that first (``scaled``)."""

    def __init__(self, rope: RopeConfig) -> None:
        inv_freq, self.factor = frequencies(rope)
        self.dim = 2 * len(inv_freq)
        self._settings = rope
        self._short = _wavelengths(inv_freq)
        self._long = _wavelengths(frequencies(rope, long=True)[0]) if rope.type == "longrope" else self._short

    def plan(self, slices: Sequence[BatchSlice], positions: mx.array) -> Rotation:
        """For slices whose rows follow each other, at ``positions`` (T)."""
        runs: list[tuple[int, mx.array]] = []
        for part in slices:
            wavelengths = self._of_session(part)
            if runs and runs[-1][1] is wavelengths:
                runs[-1] = runs[-1][0] + part.count, wavelengths
            else:
                runs.append((part.count, wavelengths))
        return Rotation(self.dim, positions, runs)

    def scaled(self, x: mx.array) -> mx.array:
        """``x`` (..., head_dim) times the factor."""
        if self.factor == 1.0:
            return x
        if x.shape[-1] == self.dim:
            return x * self.factor
        return mx.concatenate([x[..., : self.dim] * self.factor, x[..., self.dim :]], axis=-1)

    def _of_session(self, part: BatchSlice) -> mx.array:
        """NTK-aware scaling goes by how long the sequence is by now, LongRoPE by how long it may become."""
        if self._settings.type == "longrope":
            return self._long if part.long_context else self._short
        length = part.start + part.count
        if self._settings.type != "dynamic" or length <= self._settings.original_max_position_embeddings:
            return self._short
        return _wavelengths(dynamic_inv_freq(self._settings, length))


class Positions:
    """Where the rows of a batch stand, whose ``slices`` follow each other. What depends on that alone is made
    once for all blocks."""

    def __init__(self, slices: Sequence[BatchSlice]) -> None:
        self._slices = slices
        self._numbers = np.concatenate(
            [np.arange(part.start, part.start + part.count, dtype=np.int32) for part in slices]
        )
        self._array = mx.array(self._numbers)
        self._rotations: dict[MlxRope, Rotation] = {}
        self._scales: dict[QueryScale, mx.array] = {}

    def rotation(self, rope: MlxRope) -> Rotation:
        if rope not in self._rotations:
            self._rotations[rope] = rope.plan(self._slices, self._array)
        return self._rotations[rope]

    def query_scale(self, scale: QueryScale, dtype: mx.Dtype) -> mx.array:
        """What q is multiplied by: (T, 1, 1)."""
        if scale not in self._scales:
            periods = (self._numbers.astype(np.float64) + scale.offset) // scale.period
            rows = 1 + scale.beta * np.log1p(periods)
            self._scales[scale] = mx.array(rows.astype(np.float32)).astype(dtype)[:, None, None]
        return self._scales[scale]


class Rotation:
    """``rotation(x)``: x (T, heads, head_dim) turned by rows' positions. ``runs``: (rows, wavelengths)."""

    def __init__(self, dim: int, positions: mx.array, runs: Sequence[tuple[int, mx.array]]) -> None:
        self._dim = dim
        self._positions = positions
        self._runs = runs

    def __call__(self, x: mx.array) -> mx.array:
        x = x[:, :, None]  # rows as a batch of sequences of one token, each with an offset of its own
        parts, first = [], 0
        for count, wavelengths in self._runs:
            rows = slice(first, first + count)
            parts.append(
                mx.fast.rope(
                    x[rows],
                    self._dim,
                    traditional=False,
                    base=None,
                    scale=1.0,
                    offset=self._positions[rows],
                    freqs=wavelengths,
                )
            )
            first += count
        return (parts[0] if len(parts) == 1 else mx.concatenate(parts))[:, :, 0]


def _wavelengths(inv_freq: np.ndarray) -> mx.array:
    """As ``mx.fast.rope`` takes frequencies: one over what they are elsewhere."""
    return evaluated((1 / np.maximum(inv_freq.astype(np.float64), _SLOWEST)).astype(np.float32), "float32")
