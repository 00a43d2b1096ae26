"""Recurrences and short convolutions of ``formats.blocks.state``, a token at a time: the plain way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ...formats.blocks.state import RecurrenceConfig
from .states import PagedStates, State

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ...formats.blocks.state import ShortConvConfig
    from ...models.block_weights import RecurrenceWeights, ShortConvWeights
    from ..tensors.device import Target
    from ..tensors.linear import Linear
    from ..tensors.norm import Norm

_L2_EPS = 1e-6


class Convolution:
    """``taps`` (channels, taps) of each channel's last inputs, the newest last."""

    def __init__(self, taps: Tensor, bias: Tensor | None) -> None:
        self._taps, self._bias = taps.T.contiguous(), bias

    def __call__(self, x: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` (T, channels) behind the inputs ``window`` (taps - 1, channels) → the outputs (T, channels),
        and the window after them."""
        inputs = torch.cat((window, x))
        out = inputs[: len(x)] * self._taps[0]
        for tap in range(1, len(self._taps)):
            out = out + inputs[tap : tap + len(x)] * self._taps[tap]
        return out if self._bias is None else out + self._bias, inputs[len(x) :]


class Recurrence:
    """Of a block whose normed input is ``x`` (T, hidden)."""

    def __init__(
        self, settings: RecurrenceConfig, weights: RecurrenceWeights[Norm, Linear], target: Target
    ) -> None:
        def vector(values: NDArray[np.float32]) -> Tensor:
            return torch.from_numpy(values).to(target.device)

        self._settings, self._weights = settings, weights
        self._conv = _convolution(weights, target)
        self._rate = vector(weights.a_log).exp()
        self._decay_bias = vector(weights.decay_bias)
        self._skip = None if weights.skip is None else vector(weights.skip)[:, None]
        self._eps = 0.0 if settings.norm is None else settings.norm.eps
        self._norm = None if weights.norm is None else vector(weights.norm)
        self._gate = _low_rank(weights.gate_a, weights.gate_b)
        self._decay_and_beta = _low_rank(weights.decay_a, weights.decay_b) or weights.decay
        self._out_norm, self._silu = target.per_row(self._normed), target.per_row(F.silu)
        self._gated = target.per_row(F.silu if settings.gate == "silu" else torch.sigmoid)
        self._sigmoid, self._softplus = target.per_row(torch.sigmoid), target.per_row(F.softplus)
        self._exp, self._unit = target.per_row(torch.exp), target.per_row(_unit)

    def __call__(self, block: int, x: Tensor, states: PagedStates) -> Tensor:
        settings, weights = self._settings, self._weights
        qkvz = weights.qkvz(x).float()
        qkv = qkvz[:, : settings.channels]
        factors = settings.factors
        if factors[1:4] != (1, 1, 1):
            key = settings.key_size
            q, k, v = qkv.split((key, key, settings.inner), 1)
            qkv = torch.cat((q * factors[3], k * factors[2], v * factors[1]), 1)
        decay, added = self._decay(x)
        out = x.new_empty((len(x), settings.heads, settings.value_dim), dtype=torch.float32)

        def advance(rows: slice, state: State) -> State:
            matrices, window = state
            mixed, window = self._conv(qkv[rows], window)
            q, k, v = self._heads(self._silu(mixed))
            for at, row in enumerate(range(rows.start, rows.stop)):
                matrices = matrices * decay[row, ..., None]
                if settings.rule == "delta":
                    u = (v[at] - (matrices * k[at, ..., None]).sum(1)) * added[row, :, None]
                else:
                    u = v[at] * added[row, :, None]
                matrices = matrices + k[at, ..., None] * u[:, None]
                out[row] = (matrices * q[at, ..., None]).sum(1)
                if self._skip is not None:
                    out[row] += self._skip * v[at]
            return matrices, window

        states.advance(block, settings.state, advance)
        z = qkvz[:, settings.channels :] if self._gate is None else self._gate(x).float()
        return weights.out(self._out(out.flatten(1), z * factors[0] if factors[0] != 1 else z).to(x.dtype))

    def _decay(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What a matrix is multiplied by, (T, heads, 1 or key_dim); and beta or step (T, heads)."""
        settings, weights = self._settings, self._weights
        if self._decay_and_beta is None:
            raise ValueError("a recurrence without a projection to its decay")
        both = self._decay_and_beta(x).float()
        raw, beta = both[:, : settings.decay_size], both[:, settings.decay_size :]
        raw = raw * settings.factors[4] + self._decay_bias
        if settings.rule == "plain":
            step = self._softplus(raw).clamp(*settings.steps)
            return self._exp(-self._rate * step)[..., None], step
        raw = raw.unflatten(1, (settings.heads, -1))
        rate = self._rate[:, None]
        if settings.lower_bound:
            log = settings.lower_bound * self._sigmoid(rate * raw)
        else:
            log = -rate * self._softplus(raw)
        beta = beta if weights.beta is None else weights.beta(x).float()
        return self._exp(log), settings.beta_scale * self._sigmoid(beta)

    def _heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k (T, heads, key_dim) and v (T, heads, value_dim) of ``mixed`` (T, channels)."""
        settings = self._settings
        q, k, v = mixed.split((settings.key_size, settings.key_size, settings.inner), 1)
        q, k = (each.unflatten(1, (settings.key_heads, -1)) for each in (q, k))
        if settings.rule == "delta":
            q, k = self._unit(q) * settings.key_dim**-0.5, self._unit(k)
        served = settings.heads // settings.key_heads
        if settings.tiled:
            q, k = (each.repeat(1, served, 1) for each in (q, k))
        else:
            q, k = (each.repeat_interleave(served, 1) for each in (q, k))
        return q, k, v.unflatten(1, (settings.heads, -1))

    def _out(self, o: Tensor, z: Tensor) -> Tensor:
        if self._settings.norm is None:
            return o * self._gated(z)
        if self._settings.gate_first:
            return self._out_norm(o * self._gated(z))
        return self._out_norm(o) * self._gated(z)

    def _normed(self, o: Tensor) -> Tensor:
        settings = self._settings
        groups = o.unflatten(1, (settings.norm_groups, -1))
        groups = groups * torch.rsqrt(groups.square().mean(-1, True) + self._eps)
        return groups.flatten(1) if self._norm is None else groups.flatten(1) * self._norm


class ShortConv:
    """Of a block whose normed input is ``x`` (T, hidden)."""

    def __init__(self, settings: ShortConvConfig, weights: ShortConvWeights[Linear], target: Target) -> None:
        self._settings, self._bcv, self._out = settings, weights.bcv, weights.out
        self._conv = _convolution(weights, target)

    def __call__(self, block: int, x: Tensor, states: PagedStates) -> Tensor:
        b, c, v = self._bcv(x).float().chunk(3, 1)
        gated, out = b * v, torch.empty_like(v)

        def advance(rows: slice, state: State) -> State:
            out[rows], window = self._conv(gated[rows], state[1])
            return state[0], window

        states.advance(block, self._settings.state, advance)
        return self._out((c * out).to(x.dtype))


def _convolution(
    weights: RecurrenceWeights[Norm, Linear] | ShortConvWeights[Linear], target: Target
) -> Convolution:
    bias = None if weights.conv_bias is None else torch.from_numpy(weights.conv_bias).to(target.device)
    return Convolution(torch.from_numpy(weights.taps).to(target.device), bias)


def _low_rank(first: Linear | None, second: Linear | None) -> Callable[[Tensor], Tensor] | None:
    """Their product, where there are two."""
    if first is None or second is None:
        return None
    return lambda x: second(first(x).to(x.dtype))


def _unit(x: Tensor) -> Tensor:
    """Each of ``x`` (T, heads, dim) divided by its length."""
    return x * torch.rsqrt(x.square().sum(-1, True) + _L2_EPS)
