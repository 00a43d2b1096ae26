"""Recurrences and short convolutions of ``formats.blocks.state``: what a block makes of its rows before and
after they meet the state."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ...formats.blocks.state import RecurrenceConfig
from ..tensors.device import Function, compiled, evaluated, fused, optional
from ..tensors.linear import MlxLinear
from .chunks import ChunkRows, advance
from .states import PagedStates

if TYPE_CHECKING:
    from ...formats.blocks.state import ShortConvConfig
    from ...models.block_weights import RecurrenceWeights, ShortConvWeights
    from ..tensors.kv_pool import State
    from ..tensors.norm import MlxNorm

_L2_EPS = 1e-6

Windows = Callable[[int, int], mx.array]
"""``windows(slice, chunk)``: the convolution's last inputs after a chunk of a slice."""


class RecurrenceLayer:
    """Of a block whose normed input is x (T, hidden)."""

    def __init__(self, settings: RecurrenceConfig, weights: RecurrenceWeights[MlxNorm, MlxLinear]) -> None:
        self._settings, self._weights = settings, weights
        self._conv = _Convolution(weights, activated=True)
        self._rate = evaluated(np.exp(weights.a_log), "float32")
        self._decay_bias = evaluated(weights.decay_bias, "float32")
        self._skip = optional(weights.skip, "float32")
        self._norm = optional(weights.norm, "float32")
        self._gate = _low_rank(weights.gate_a, weights.gate_b)
        decay = _low_rank(weights.decay_a, weights.decay_b) or weights.decay
        if decay is None:
            raise ValueError("a recurrence without a projection to its decay")
        self._decay_and_beta: Function = decay

    def __call__(self, block: int, x: mx.array, states: PagedStates) -> mx.array:
        """→ (T, hidden). ``block`` is absolute."""
        settings, weights = self._settings, self._weights
        begun = states.begin(block, settings.state)
        qkvz = weights.qkvz(x).astype(mx.float32)
        mixed, windows = self._conv(self._scaled(qkvz[:, : settings.channels]), begun, states)
        o, after = self._advance(x, mixed, [matrices for matrices, _ in begun], states)
        for number, chunks in enumerate(states.kept(block)):
            for chunk, slot in chunks.items():
                matrices = after[number][chunk].reshape(begun[number][0].shape)
                states.keep(slot, (matrices, windows(number, chunk)))
        if self._skip is not None:
            o = o + self._skip[:, None] * mixed[:, -settings.inner :].reshape(o.shape)
        z = qkvz[:, settings.channels :] if self._gate is None else self._gate(x).astype(mx.float32)
        z = z if settings.factors[0] == 1 else z * settings.factors[0]
        return weights.out(self._out(o.reshape(z.shape), z).astype(x.dtype))

    def _scaled(self, qkv: mx.array) -> mx.array:
        _, v, k, q, _ = self._settings.factors
        if v == k == q == 1:
            return qkv
        key = self._settings.key_size
        parts = mx.split(qkv, [key, 2 * key], axis=1)
        return mx.concatenate([part * each for part, each in zip(parts, (q, k, v), strict=True)], axis=1)

    def _advance(
        self, x: mx.array, mixed: mx.array, begun: list[mx.array], states: PagedStates
    ) -> tuple[mx.array, list[list[mx.array]]]:
        """→ o (T, heads, value_dim), and each slice's matrices after its chunks."""
        settings, weights = self._settings, self._weights
        projected = [self._decay_and_beta(x)]
        if weights.beta is not None:
            projected.append(weights.beta(x))
        given = mixed, projected, self._rate, self._decay_bias
        if states.steps:
            o, after = compiled(_steps(settings))(*given, begun)
            return o, [[matrices] for matrices in after]
        rows, outs = _rows(settings, *given), []
        of_slice: list[list[mx.array]] = [[] for _ in begun]
        for group in states.groups:
            own = [group.of(part) for part in rows]
            if group.valid is not None:
                own[1], own[3] = (mx.where(group.valid[..., None], own[at], 0.0) for at in (1, 3))
            out, after = _computed(settings, group.counts, own, [begun[number] for number in group.numbers])
            outs.append(out)
            for number, count in zip(group.numbers, group.counts, strict=True):
                of_slice[number], after = after[:count], after[count:]
        o = outs[0] if len(outs) == 1 else mx.concatenate(outs)
        return (o if states.order is None else o[states.order]), of_slice

    def _out(self, o: mx.array, z: mx.array) -> mx.array:
        settings = self._settings
        gated = fused(_silu_times if settings.gate == "silu" else _sigmoid_times)
        if settings.norm is None:
            return gated(z, o)
        eps = settings.norm.eps
        return self._normed(gated(z, o), eps) if settings.gate_first else gated(z, self._normed(o, eps))

    def _normed(self, o: mx.array, eps: float) -> mx.array:
        settings = self._settings
        groups = mx.fast.rms_norm(o.reshape(len(o), settings.norm_groups, -1), None, eps).reshape(o.shape)
        return groups if self._norm is None else groups * self._norm


class ShortConvLayer:
    """Of a block whose normed input is x (T, hidden)."""

    def __init__(self, settings: ShortConvConfig, weights: ShortConvWeights[MlxLinear]) -> None:
        self._settings, self._bcv, self._out = settings, weights.bcv, weights.out
        self._conv = _Convolution(weights, activated=False)

    def __call__(self, block: int, x: mx.array, states: PagedStates) -> mx.array:
        """→ (T, hidden). ``block`` is absolute."""
        begun = states.begin(block, self._settings.state)
        b, c, v = mx.split(self._bcv(x).astype(mx.float32), 3, axis=1)
        mixed, windows = self._conv(b * v, begun, states)
        for number, chunks in enumerate(states.kept(block)):
            for chunk, slot in chunks.items():
                states.keep(slot, (begun[number][0], windows(number, chunk)))
        return self._out((c * mixed).astype(x.dtype))


class _Convolution:
    """Of each channel's last inputs. ``activated``: silu follows."""

    def __init__(
        self,
        weights: RecurrenceWeights[MlxNorm, MlxLinear] | ShortConvWeights[MlxLinear],
        *,
        activated: bool,
    ) -> None:
        self._taps = [evaluated(tap, "float32") for tap in weights.taps.T]
        self._bias = optional(weights.conv_bias, "float32")
        self._activated = activated

    def __call__(self, x: mx.array, begun: list[State], states: PagedStates) -> tuple[mx.array, Windows]:
        """``x`` (T, channels) → the same shape, and the windows after chunks."""
        taps = len(self._taps)
        inputs = mx.concatenate([*(window for _, window in begun), x])
        parts = [inputs[rows] for rows in states.inputs(taps)]
        out = fused(_weighted)(*parts, *self._taps)
        out = out if self._bias is None else out + self._bias
        out = fused(_silu)(out) if self._activated else out
        return out, lambda number, chunk: inputs[states.ends(taps, number, chunk)]


@cache
def _steps(settings: RecurrenceConfig) -> Callable[..., tuple[mx.array, list[mx.array]]]:
    """One row of each session, from what the block's products give to o and the matrices after it."""

    def compute(
        mixed: mx.array,
        projected: list[mx.array],
        rate: mx.array,
        decay_bias: mx.array,
        begun: list[mx.array],
    ) -> tuple[mx.array, list[mx.array]]:
        rows = _rows(settings, mixed, projected, rate, decay_bias)
        return _computed(settings, (1,) * len(begun), [part[:, None] for part in rows], begun)

    return compute


def _rows(
    settings: RecurrenceConfig,
    mixed: mx.array,
    projected: list[mx.array],
    rate: mx.array,
    decay_bias: mx.array,
) -> list[mx.array]:
    """q, k (T, key heads, key_dim), v (T, heads, value_dim), ln(decay) (T, heads, 1 or key_dim) and beta or
    step (T, heads, 1) of the batch. ``projected``: decay_proj x and beta_proj x, as one or as two."""
    q, k, v = mx.split(mixed, [settings.key_size, 2 * settings.key_size], axis=1)
    q, k = (each.reshape(len(mixed), settings.key_heads, -1) for each in (q, k))
    v = v.reshape(len(mixed), settings.heads, -1)
    both = projected[0].astype(mx.float32)
    raw, beta = both[:, : settings.decay_size], both[:, settings.decay_size :]
    raw = raw if settings.factors[4] == 1 else raw * settings.factors[4]
    raw = (raw + decay_bias).reshape(len(mixed), settings.heads, -1)
    rate = rate[:, None]
    if settings.rule == "plain":
        step = mx.clip(mx.logaddexp(raw, 0.0), *settings.steps)
        return [q, k, v, -rate * step, step]
    log = -rate * mx.logaddexp(raw, 0.0)
    beta = beta if len(projected) == 1 else projected[1].astype(mx.float32)
    beta = settings.beta_scale * mx.sigmoid(beta)[..., None]
    return [_unit(q) * settings.key_dim**-0.5, _unit(k), v, log, beta]


def _computed(
    settings: RecurrenceConfig, counts: tuple[int, ...], rows: list[mx.array], begun: list[mx.array]
) -> tuple[mx.array, list[mx.array]]:
    """``_rows`` by chunks, (C, L, ...) → o (C * L, heads, value_dim), and the matrices after each chunk."""
    each = settings.heads // settings.key_heads
    heads = (each, settings.key_heads) if settings.tiled else (settings.key_heads, each)
    key_heads = (1, settings.key_heads) if settings.tiled else (settings.key_heads, 1)

    def by_head(part: mx.array, heads: tuple[int, int]) -> mx.array:
        return mx.moveaxis(part, 1, 2).reshape(len(part), *heads, part.shape[1], -1)

    chunks = ChunkRows(
        *(by_head(part, key_heads) for part in rows[:2]), *(by_head(part, heads) for part in rows[2:])
    )
    matrices = [part.reshape(1, *heads, *part.shape[1:]) for part in begun]
    o, after = advance(settings, counts, chunks, matrices)
    o = o.reshape(len(o), settings.heads, -1, settings.value_dim)
    return mx.moveaxis(o, 2, 1).reshape(-1, settings.heads, settings.value_dim), after


def _low_rank(first: MlxLinear | None, second: MlxLinear | None) -> Function | None:
    """Their product, where there are two."""
    if first is None or second is None:
        return None
    return lambda x: second(first(x))


def _unit(x: mx.array) -> mx.array:
    """Each of ``x`` (T, heads, dim) divided by its length."""
    return x * mx.rsqrt(x.square().sum(-1, keepdims=True) + _L2_EPS)


def _weighted(*parts_and_taps: mx.array) -> mx.array:
    half = len(parts_and_taps) // 2
    out = parts_and_taps[0] * parts_and_taps[half]
    for part, tap in zip(parts_and_taps[1:half], parts_and_taps[half + 1 :], strict=True):
        out = out + part * tap
    return out


def _silu(x: mx.array) -> mx.array:
    return x * mx.sigmoid(x)


def _silu_times(z: mx.array, o: mx.array) -> mx.array:
    return _silu(z) * o


def _sigmoid_times(z: mx.array, o: mx.array) -> mx.array:
    return mx.sigmoid(z) * o
