"""Rotary position embedding by ``mx.fast.rope``, with the frequencies of ``shards.layers.rope``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ..layers.kv_pool import BatchSlice
from ..layers.rope import dynamic_inv_freq, frequencies
from .device import evaluated

if TYPE_CHECKING:
    from ..formats.rope_config import RopeConfig


class MlxRope:
    """For one model. ``attention_factor``: what scores are multiplied by, for the factor that YaRN puts on
    queries and on keys."""

    def __init__(self, rope: RopeConfig) -> None:
        inv_freq, factor = frequencies(rope)
        self._settings = rope
        self._dim = rope.rotary_dim
        self._wavelengths = _wavelengths(inv_freq)
        self.attention_factor = factor**2

    def plan(self, slices: Sequence[BatchSlice]) -> Rotation:
        """For slices whose rows follow each other."""
        positions = np.concatenate(
            [np.arange(part.start, part.start + part.count, dtype=np.int32) for part in slices]
        )
        runs = [(len(positions), self._wavelengths)]
        if self._settings.type == "dynamic":
            runs = [(part.count, self._of_length(part.start + part.count)) for part in slices]
        return Rotation(self._dim, mx.array(positions), runs)

    def _of_length(self, length: int) -> mx.array:
        """NTK-aware scaling goes by how long the sequence is by now."""
        if length <= self._settings.original_max_position_embeddings:
            return self._wavelengths
        return _wavelengths(dynamic_inv_freq(self._settings, length))


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
    return evaluated((1 / inv_freq.astype(np.float64)).astype(np.float32), "float32")
