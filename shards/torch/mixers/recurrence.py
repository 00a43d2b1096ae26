"""What a block with a matrix a head computes around its scan: see ``formats.blocks.state``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ...formats.blocks.state import RecurrenceConfig
from .convolution import Convolution
from .scan import Rows, scan
from .states import Group, PagedStates

if TYPE_CHECKING:
    from ...models.block_weights import RecurrenceWeights
    from ..tensors.device import Target
    from ..tensors.linear import Linear
    from ..tensors.norm import Norm

_L2_EPS = 1e-6


class Recurrence:
    """Of a block whose normed input is ``x`` (T, hidden)."""

    def __init__(
        self, settings: RecurrenceConfig, weights: RecurrenceWeights[Norm, Linear], target: Target
    ) -> None:
        self._settings, self._qkvz, self._out = settings, weights.qkvz, weights.out
        self._rowwise, self._is_delta = target.rowwise, settings.rule == "delta"
        self._conv = Convolution(weights, target)
        self._factors = None
        if settings.factors[1:4] != (1, 1, 1):
            sizes = torch.tensor([settings.key_size, settings.key_size, settings.inner])
            of_qkv = torch.tensor(settings.factors[3:0:-1]).repeat_interleave(sizes)
            self._factors = of_qkv.to(target.device)
        self._silu, self._unit = target.per_row(F.silu), target.per_row(_unit)
        self._skip = None
        if weights.skip is not None:
            self._skip = torch.from_numpy(weights.skip).to(target.device)[:, None]
        self._decay = Decay(settings, weights, target)
        self._gated = GatedNorm(settings, weights, target)

    def __call__(self, block: int, x: Tensor, states: PagedStates) -> Tensor:
        settings = self._settings
        qkvz, (log, added) = self._qkvz(x).float(), self._decay(x)
        qkv, z = qkvz[:, : settings.channels], qkvz[:, settings.channels :]
        if self._factors is not None:
            qkv = qkv * self._factors
        out = qkv.new_empty((len(x), settings.inner))
        for group in states.groups(settings.state):
            of_group = (each[group.rows] for each in (qkv, log, added))
            out[group.rows] = self._mixed(block, group, *of_group)
        return self._out(self._gated(x, out, z).to(x.dtype))

    def _mixed(self, block: int, group: Group, qkv: Tensor, log: Tensor, added: Tensor) -> Tensor:
        """The rows of ``group`` (rows, …) → (rows, inner)."""
        settings = self._settings
        matrices, window = group.begin(block)
        qkv, log, added = (each.unflatten(0, (group.sessions, -1)) for each in (qkv, log, added))
        before, cut = window.shape[1], 0
        out = qkv.new_empty((*qkv.shape[:2], settings.heads, settings.value_dim))
        for first, end in group.runs():
            inputs = torch.cat((window, qkv[:, first:end]), 1)
            window = inputs[:, end - first :]
            qk, v = self._heads(inputs)
            rows = Rows(qk, v, log[:, first:end], added[:, first:end], self._is_delta, settings.tiled)
            size, together = group.cuts[cut], (end - first) // group.cuts[cut]
            if self._rowwise:
                size = together = 1
            for at, made in enumerate(scan(rows, matrices, size, together)):
                done = (at + 1) * size
                out[:, first + done - size : first + done] = made
                if first + done == group.ends[cut]:
                    group.keep(block, cut, matrices, inputs[:, done : done + before])
                    cut += 1
            if self._skip is not None:
                out[:, first:end] += self._skip * v
        return out.flatten(2).flatten(0, 1)

    def _heads(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """``inputs`` of the convolution (sessions, taps - 1 + rows, channels) → q and k (sessions, rows, 2,
        key_heads, key_dim) and v (sessions, rows, heads, value_dim)."""
        settings, mixed = self._settings, self._conv(inputs)
        shape = mixed.shape[:2]
        mixed = self._silu(mixed.flatten(0, 1))
        qk, v = mixed.split((2 * settings.key_size, settings.inner), 1)
        qk = qk.unflatten(1, (2, settings.key_heads, settings.key_dim))
        if self._is_delta:
            qk = self._unit(qk)
            qk[:, 0] *= settings.key_dim**-0.5
        return qk.unflatten(0, shape), v.unflatten(1, (settings.heads, -1)).unflatten(0, shape)


class Decay:
    """``decay(x)``: x (T, hidden) → logarithms of what a matrix is multiplied by (T, heads, 1 or key_dim),
    and beta or the step (T, heads, 1)."""

    def __init__(
        self, settings: RecurrenceConfig, weights: RecurrenceWeights[Norm, Linear], target: Target
    ) -> None:
        self._settings, self._beta = settings, weights.beta
        self._raw = _either(weights.decay, weights.decay_a, weights.decay_b)
        self._rate = torch.from_numpy(weights.a_log).to(target.device).exp()[:, None]
        self._bias = torch.from_numpy(weights.decay_bias).to(target.device)
        self._sigmoid, self._softplus = target.per_row(torch.sigmoid), target.per_row(F.softplus)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        settings = self._settings
        both = self._raw(x).float()
        raw, beta = both[:, : settings.decay_size], both[:, settings.decay_size :]
        raw = (_times(raw, settings.factors[4]) + self._bias).unflatten(1, (settings.heads, -1))
        if settings.rule == "plain":
            step = self._softplus(raw).clamp(*settings.steps)
            return -self._rate * step, step
        log = -self._rate * self._softplus(raw)
        beta = beta if self._beta is None else self._beta(x).float()
        return log, settings.beta_scale * self._sigmoid(beta)[..., None]


class GatedNorm:
    """``gated(x, o, z)``: o (T, inner) normed and gated by z (T, inner) or, where the gate has a rank, by
    what it makes of x (T, hidden)."""

    def __init__(
        self, settings: RecurrenceConfig, weights: RecurrenceWeights[Norm, Linear], target: Target
    ) -> None:
        self._factor, self._gate_first = settings.factors[0], settings.gate_first
        self._gate = None
        if settings.gate_rank:
            self._gate = _either(None, weights.gate_a, weights.gate_b)
        self._activation = target.per_row(F.silu if settings.gate == "silu" else torch.sigmoid)
        self._groups, self._norm = settings.norm_groups, settings.norm
        self._weight = None if weights.norm is None else torch.from_numpy(weights.norm).to(target.device)
        self._normed = target.per_row(self._over_groups)

    def __call__(self, x: Tensor, o: Tensor, z: Tensor) -> Tensor:
        gate = self._activation(_times(z if self._gate is None else self._gate(x).float(), self._factor))
        return self._normed(o * gate) if self._gate_first else self._normed(o) * gate

    def _over_groups(self, o: Tensor) -> Tensor:
        if self._norm is None:
            return o
        groups = o.unflatten(1, (self._groups, -1))
        normed = (groups * torch.rsqrt(groups.square().mean(-1, True) + self._norm.eps)).flatten(1)
        return normed if self._weight is None else normed * self._weight


def _either(whole: Linear | None, first: Linear | None, second: Linear | None) -> Callable[[Tensor], Tensor]:
    """One product, or one after the other. Raises ValueError where neither is there."""
    if whole is not None:
        return whole
    if first is None or second is None:
        raise ValueError("a projection of a recurrence without weights")
    return lambda x: second(first(x).to(x.dtype))


def _times(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x * factor


def _unit(x: Tensor) -> Tensor:
    """Each of ``x`` (…, dim) divided by its length."""
    return x * torch.rsqrt(x.square().sum(-1, True) + _L2_EPS)
