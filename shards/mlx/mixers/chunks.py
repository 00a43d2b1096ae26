"""What a recurrence's matrices become over chunks of rows, by products of matrices in place of a step a row.

With S the matrix before a chunk, D_t the product of the decays of its rows up to t, and D_ti that of those
after i up to t, both rules say

    S_t = D_t S + sum over i <= t of D_ti k_i (outer product) u_i;   o_t = q_t S_t

so that all rows are products with S and with the chunk's u. Of the delta rule, u_t takes what rows before it
wrote: (1 + B) u = beta (v - k D S) with B_ti = beta_t (k_t D_ti k_i) below the diagonal, which is solved for
all values at once by the inverse of 1 + B. Decays are summed as logarithms from where a product begins and
never divided, so nothing overflows, however small they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx
import numpy as np

from ..tensors.device import fused

if TYPE_CHECKING:
    from ...formats.blocks.state import RecurrenceConfig


class ChunkRows(NamedTuple):
    """Rows of chunks, float32; (C, ...) are chunks and value heads, as key heads and those of each, or, where
    they are tiled, the other way round. ``q``, ``k`` (C, ..., L, key_dim), where heads that share a key are
    1; ``v`` (C, ..., L, value_dim); ``log`` (C, ..., L, 1 or key_dim): of the decays; ``added`` (C, ..., L,
    1): beta or step. A row of padding has k 0 and log 0."""

    q: mx.array
    k: mx.array
    v: mx.array
    log: mx.array
    added: mx.array


class _Chunk(NamedTuple):
    """``read`` (..., rows, key_dim): products with S that are wanted, for u first if it needs them; ``fade``:
    what they are multiplied by. u is ``values`` or, of the delta rule, ``solve`` @ (values - what is read).
    S becomes S * ``last`` + ``write`` @ (u * ``rest``). None: nothing, or ones."""

    read: mx.array
    fade: mx.array | None
    values: mx.array
    solve: mx.array | None
    write: mx.array
    rest: mx.array | None
    last: mx.array


def advance(
    settings: RecurrenceConfig, counts: Sequence[int], rows: ChunkRows, begun: Sequence[mx.array]
) -> tuple[mx.array, list[mx.array]]:
    """``rows`` of chunks, ``counts`` of each slice, and each slice's matrices before them, (1, ..., key_dim,
    value_dim) → o (C, ..., L, value_dim) and the matrices after each chunk."""
    size = rows.v.shape[-2]
    mix, whole = _within(settings, rows)
    chunks = _each(whole, sum(counts))
    asked, used, after = [], [], []
    for count, state in zip(counts, begun, strict=True):
        for _ in range(count):
            chunk = next(chunks)
            found, u = chunk.read @ state, chunk.values
            if chunk.solve is not None:
                u = _product(chunk.solve, u - _times(found[..., :size, :], chunk.fade))
                found = found[..., size:, :]
            if size == 1:
                state = fused(_stepped)(state, chunk.last, chunk.write, u)
            else:
                state = mx.addmm(state * chunk.last, chunk.write, _times(u, chunk.rest))
            asked.append(found)
            used.append(u)
            after.append(state)
    return _times(_joined(asked), whole.fade) + _product(mix, _joined(used)), after


def _within(settings: RecurrenceConfig, rows: ChunkRows) -> tuple[mx.array, _Chunk]:
    """What of u comes to o within a chunk, (C, ..., L, L), and the chunks' parts for ``_each``."""
    q, k, v, log, added = rows
    size, delta = v.shape[-2], settings.rule == "delta"
    since, rest = mx.exp(log), None
    if size > 1:
        since = mx.exp(mx.cumsum(log, axis=-2))
        rest = mx.exp(mx.cumsum(log, axis=-2, reverse=True, inclusive=False))
    last = since[..., -1:, :].swapaxes(-1, -2)
    asking = mx.stack([k, q] if delta else [q], axis=-3)  # (C, ..., 1 or 2, L, key_dim)
    if settings.decay == "channel":
        pairs = _channel_pairs(asking, k, log)
        read, fade = _flat(asking * since[..., None, :, :]), None
        k, rest = _times(k, rest), None
    else:
        pairs = asking @ k.swapaxes(-1, -2)[..., None, :, :]
        pairs = pairs if size == 1 else pairs * _between(log)[..., None, :, :]
        read, fade = _flat(asking), since
    write, mix = k.swapaxes(-1, -2), pairs[..., -1, :, :]
    if not delta:
        return mix, _Chunk(read, fade, v * added, None, write, rest, last)
    solve = _inverse(added * pairs[..., 0, :, :]) * added.swapaxes(-1, -2)
    return mix, _Chunk(read, fade, v, solve, write, rest, last)


def _between(log: mx.array) -> mx.array:
    """``log`` (..., L, 1) → (..., L, L): at t, i the product of the decays after i up to t; 0 where i > t."""
    lower, below = _triangles(log.shape[-2])
    sums = mx.cumsum(mx.where(below, log, 0.0), axis=-2)
    return mx.where(lower, mx.exp(sums), 0.0)


def _channel_pairs(asking: mx.array, k: mx.array, log: mx.array) -> mx.array:
    """Products of ``asking`` (..., n, L, key_dim) with ``k`` (..., L, key_dim), channel by channel times the
    decays after i up to t: (..., n, L, L), 0 where i > t.

    Rows t and i in two halves of a part meet at the border of these: each is multiplied by the decays from
    there to itself. Parts are halved until they have two rows.
    """
    size, dim = k.shape[-2:]
    own = (asking * k[..., None, :, :]).sum(-1, keepdims=True)
    found = mx.where(mx.eye(size, dtype=mx.bool_), own, 0.0)
    for half, meets in _halves(size):
        parts = log.reshape(*log.shape[:-2], size // half, half, dim)
        since = mx.exp(mx.cumsum(parts, axis=-2)).reshape(log.shape)
        until = mx.exp(mx.cumsum(parts, axis=-2, reverse=True, inclusive=False)).reshape(log.shape)
        pairs = (asking * since[..., None, :, :]) @ (k * until).swapaxes(-1, -2)[..., None, :, :]
        found = found + mx.where(meets, pairs, 0.0)
    return found


def _inverse(lower: mx.array) -> mx.array:
    """Of 1 + what ``lower`` (..., L, L) has below its diagonal. The inverse of two blocks is made of those of
    each: from one row on, they double."""
    inverse = mx.eye(lower.shape[-1])
    for _, meets in _halves(lower.shape[-1]):
        inverse = inverse - inverse @ mx.where(meets, lower, 0.0) @ inverse
    return inverse


def _halves(size: int) -> Iterator[tuple[int, mx.array]]:
    """Halves of 1, 2, 4 rows and so on, and (L, L) where a row of the second half meets one of the first."""
    half = 1
    while half < size:
        yield half, _meets(size, half)
        half *= 2


@cache
def _meets(size: int, half: int) -> mx.array:
    at = np.arange(size) // half
    return _evaluated((at[:, None] % 2 == 1) & (at[:, None] - 1 == at))


@cache
def _triangles(size: int) -> tuple[mx.array, mx.array]:
    """(L, L), with the diagonal and without."""
    ones = np.ones((size, size), bool)
    return _evaluated(np.tril(ones)), _evaluated(np.tril(ones, -1))


def _evaluated(mask: np.ndarray) -> mx.array:
    array = mx.array(mask)
    mx.eval(array)
    return array


def _stepped(state: mx.array, last: mx.array, write: mx.array, u: mx.array) -> mx.array:
    return state * last + write * u


def _each(whole: _Chunk, count: int) -> Iterator[_Chunk]:
    if count == 1:
        return iter([whole])
    parts = ([None] * count if part is None else mx.split(part, count) for part in whole)
    return map(_Chunk._make, zip(*parts, strict=True))


def _joined(parts: list[mx.array]) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts)


def _flat(x: mx.array) -> mx.array:
    """(..., n, L, dim) → (..., n * L, dim)."""
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def _times(x: mx.array, factor: mx.array | None) -> mx.array:
    return x if factor is None else x * factor


def _product(a: mx.array, b: mx.array) -> mx.array:
    """``a`` (..., n, L) @ ``b`` (..., L, m), where L may be 1."""
    return a * b if a.shape[-1] == 1 else a @ b
