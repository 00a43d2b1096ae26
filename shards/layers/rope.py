"""Rotary position embedding: frequencies of every scaling variant, and the cos/sin rows of packed tokens.

The formulas are those of transformers (``modeling_rope_utils``), so that logits agree to float32 rounding.
Only "dynamic" depends on how long a sequence is by now. All others have one table for ever; "longrope" has
two, of which the second is for ``long`` sessions: those of more than ``original_max_position_embeddings``
tokens, from their first token on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..formats.values.bounds import MAX_CONTEXT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..formats.blocks.block import BlockConfig
    from ..formats.blocks.rope import RopeConfig

    Floats = NDArray[np.float32]

_FIRST_TABLE = 512
"""A new table has this many positions; it doubles when a longer sequence comes."""
_KEPT_LENGTHS = 64
"""Dynamic NTK: the frequencies of this many sequence lengths are remembered (batched sessions repeat
theirs)."""
_ONE = np.float32(1)


class Rope:
    """float32 rows of cos and sin for one kind of rotation.

    The half-rotation's minus sign is folded into sin: with ``half = rotary_dim // 2``,
    ``x * cos + x.roll(half, -1) * sin`` equals the usual ``x * cos + rotate_half(x) * sin``.
    """

    def __init__(self, rope: RopeConfig, *, rowwise: bool = False) -> None:
        """``rowwise``: for "dynamic", each row's end is its own, as if tokens came one by one."""
        self._settings = rope
        self._rowwise = rowwise
        _, self.attention_factor = frequencies(rope)
        self._tables: dict[bool, tuple[Floats, Floats]] = {}
        self._dynamic: dict[int, Floats] | None = {} if rope.type == "dynamic" else None

    def rows(self, slices: Sequence[tuple[int, int] | tuple[int, int, bool]]) -> tuple[Floats, Floats]:
        """``slices``: (start position, tokens, whether it is long) of each packed session → cos, sin, both
        (T, rotary_dim).

        T is the sum of tokens. May be views: read only.
        """
        tables = [self.slice_rows(*part) for part in slices]
        if len(tables) == 1:
            return tables[0]
        return np.concatenate([cos for cos, _ in tables]), np.concatenate([sin for _, sin in tables])

    def slice_rows(self, start: int, count: int, long: bool = False) -> tuple[Floats, Floats]:
        """``rows`` of one session: (count, rotary_dim), C-contiguous."""
        if self._dynamic is not None:
            return self._dynamic_rows(start, count, self._dynamic)
        cos, sin = self._whole(start + count, long)
        return cos[start : start + count], sin[start : start + count]

    def table(self, positions: int, long: bool = False) -> tuple[Floats, Floats] | None:
        """``slice_rows`` of position 0 and at least ``positions`` tokens; None where there is no one table.

        Read only, and replaced by a longer one in time.
        """
        return None if self._dynamic is not None else self._whole(positions, long)

    def _whole(self, positions: int, long: bool) -> tuple[Floats, Floats]:
        long = long and self._settings.type == "longrope"
        table = self._tables.get(long)
        if table is None or positions > len(table[0]):
            size = _FIRST_TABLE
            while size < positions:
                size *= 2
            inv_freq, _ = frequencies(self._settings, long=long)
            self._tables[long] = table = self._cos_sin(0, size, inv_freq)
        return table

    def _dynamic_rows(self, start: int, count: int, known: dict[int, Floats]) -> tuple[Floats, Floats]:
        """Each slice's end is its sequence length, as transformers has it for each forward pass."""
        length = max(start + count, self._settings.original_max_position_embeddings)
        if self._rowwise and count > 1 and start + count > self._settings.original_max_position_embeddings:
            rows = [self._dynamic_rows(position, 1, known) for position in range(start, start + count)]
            return np.concatenate([cos for cos, _ in rows]), np.concatenate([sin for _, sin in rows])
        if length not in known:
            if len(known) >= _KEPT_LENGTHS:
                known.pop(next(iter(known)))
            known[length] = dynamic_inv_freq(self._settings, length)
        return self._cos_sin(start, start + count, known[length])

    def _cos_sin(self, start: int, end: int, inv_freq: Floats) -> tuple[Floats, Floats]:
        # In float64, so that after rounding to float32 no CPU's way to compute a cosine shows.
        positions = np.arange(start, end, dtype=np.float32)
        angles = (positions[:, None] * inv_freq).astype(np.float64)  # (positions, rotary_dim / 2)
        cos, sin = np.cos(angles) * self.attention_factor, np.sin(angles) * self.attention_factor
        return (
            np.concatenate((cos, cos), -1).astype(np.float32),
            np.concatenate((-sin, sin), -1).astype(np.float32),
        )


def frequencies(rope: RopeConfig, *, long: bool = False) -> tuple[Floats, float]:
    """Inverse frequencies (rotary_dim / 2,) float32, and the factor on cos and sin."""
    dim = rope.rotary_dim
    base = _base_inv_freq(rope.theta, dim)
    factor = 1.0 if rope.attention_factor is None else rope.attention_factor
    if rope.type == "linear":
        base = base / rope.factor
    elif rope.type == "llama3":
        base = _llama3(rope, base)
    elif rope.type == "yarn":
        base, factor = _yarn(rope)
    elif rope.type == "longrope":
        base, factor = _longrope(rope, long)
    elif rope.type == "proportional":
        base = base * (np.arange(dim // 2) < rope.turned_dim // 2) / np.float32(rope.factor)
    if rope.frequency_factors:
        factors: Floats = np.array(rope.frequency_factors, dtype=np.float32)
        base = base / factors
    return base, factor


def longest_short_context(blocks: Iterable[BlockConfig]) -> int:
    """Sessions for more tokens than this have ``long_context``; more than any session has, where no block
    tells them apart."""
    ropes = {block.rope for block in blocks}
    return min(
        (rope.original_max_position_embeddings for rope in ropes if rope and rope.type == "longrope"),
        default=MAX_CONTEXT,
    )


def dynamic_inv_freq(rope: RopeConfig, length: int) -> Floats:
    """NTK-aware scaling for a sequence of ``length`` tokens, at least as many as the model was trained on."""
    dim = rope.rotary_dim
    stretch = rope.factor * length / rope.original_max_position_embeddings - (rope.factor - 1)
    # A two-dimensional rotation has one frequency, theta**0, which no base changes.
    theta = rope.theta * stretch ** (dim / (dim - 2)) if dim > 2 else rope.theta
    return _base_inv_freq(theta, dim)


def _base_inv_freq(theta: float, dim: int) -> Floats:
    return _ONE / _powers(theta, dim)


def _powers(theta: float, dim: int) -> Floats:
    """theta ** (2 i / dim), of float32 numbers and rounded to float32, but in float64: see ``_cos_sin``."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (np.float64(np.float32(theta)) ** exponents.astype(np.float64)).astype(np.float32)


def _llama3(rope: RopeConfig, inv_freq: Floats) -> Floats:
    """Llama 3.1: long wavelengths are stretched by ``factor``, short ones kept, a smooth blend between, which
    Llama 4 has none of."""
    context = rope.original_max_position_embeddings
    # A number over a tensor is, in torch, the number times one over the tensor: rounded twice, here too.
    wavelength = 2 * math.pi * (_ONE / inv_freq)
    if rope.low_freq_factor == rope.high_freq_factor:
        return np.where(wavelength > context / rope.low_freq_factor, inv_freq / rope.factor, inv_freq)
    blend = context * (_ONE / wavelength) - rope.low_freq_factor
    blend = blend / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - blend) * inv_freq / rope.factor + blend * inv_freq
    scaled = np.where(wavelength > context / rope.low_freq_factor, inv_freq / rope.factor, blended)
    return np.where(wavelength < context / rope.high_freq_factor, inv_freq, scaled)


def _yarn(rope: RopeConfig) -> tuple[Floats, float]:
    """YaRN (arXiv 2309.00071): interpolate slow dimensions, extrapolate fast ones, and scale attention."""
    dim = rope.rotary_dim

    def mscale(scale: float, by: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * by * math.log(scale) + 1.0

    attention_factor = rope.attention_factor
    if attention_factor is None:
        if rope.mscale and rope.mscale_all_dim:
            attention_factor = mscale(rope.factor, rope.mscale) / mscale(rope.factor, rope.mscale_all_dim)
        else:
            attention_factor = mscale(rope.factor)

    def correction_dim(rotations: float) -> float:
        context = rope.original_max_position_embeddings
        return dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = correction_dim(rope.beta_fast), correction_dim(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # the ramp needs a width
    ramp = ((np.arange(dim // 2, dtype=np.float32) - low) / (high - low)).clip(0, 1)
    # Rounded in the order transformers rounds: at position 10,000 the last bit of a frequency is visible.
    wavelengths = _powers(rope.theta, dim)
    kept = 1 - ramp
    return _ONE / (rope.factor * wavelengths) * (1 - kept) + _ONE / wavelengths * kept, attention_factor


def _longrope(rope: RopeConfig, long: bool) -> tuple[Floats, float]:
    """LongRoPE (arXiv 2402.13753): a divisor for each frequency, found by search; attention is scaled."""
    factors: Floats = np.array(rope.long_factors if long else rope.short_factors, np.float32)
    attention_factor = rope.attention_factor
    if attention_factor is None:
        attention_factor, context = 1.0, rope.original_max_position_embeddings
        if rope.factor > 1 and context > 1:
            attention_factor = math.sqrt(1 + math.log(rope.factor) / math.log(context))
    return _ONE / (factors * _powers(rope.theta, rope.rotary_dim)), attention_factor
