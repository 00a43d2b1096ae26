"""The part of a block that keeps a state, for the C kernels: the struct of ``csrc/state.h``."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from ...swarm.errors import LocalProtocolError
from ..formats.blocks.state import RecurrenceConfig, ShortConvConfig
from ..kernels.library import address
from ..kernels.linear import SnLinear
from ..kernels.rows import NativeNorm, SnNorm
from ..models.block_weights import RecurrenceWeights, ShortConvWeights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..kernels.linear import NativeLinear

    Floats = NDArray[np.float32]
    NativeRecurrence = RecurrenceWeights[NativeNorm, NativeLinear]
    NativeShortConv = ShortConvWeights[NativeLinear]

_IN, _DECAY, _BETA, _GATE_A, _DECAY_A, _GATE_B, _DECAY_B, _OUT, _LINEARS = range(9)
_SHORT_CONV, _DELTA, _PLAIN = range(3)


class SnState(ctypes.Structure):
    _fields_ = (
        ("linears", SnLinear * _LINEARS),
        ("taps", ctypes.c_void_p),
        ("conv_bias", ctypes.c_void_p),
        ("factors", ctypes.c_void_p),
        ("rates", ctypes.c_void_p),
        ("decay_bias", ctypes.c_void_p),
        ("skip", ctypes.c_void_p),
        ("norm", SnNorm),
        ("rule", ctypes.c_int32),
        ("n_taps", ctypes.c_int32),
        ("channels", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("key_heads", ctypes.c_int32),
        ("key_dim", ctypes.c_int32),
        ("value_dim", ctypes.c_int32),
        ("tiled", ctypes.c_int32),
        ("channel_decay", ctypes.c_int32),
        ("norm_groups", ctypes.c_int32),
        ("gate_first", ctypes.c_int32),
        ("gate_silu", ctypes.c_int32),
        ("decay_factor", ctypes.c_float),
        ("beta_scale", ctypes.c_float),
        ("least_step", ctypes.c_float),
        ("most_step", ctypes.c_float),
    )


class NativeState:
    """``struct``: what C code takes; valid for as long as this object lives."""

    def __init__(
        self, settings: RecurrenceConfig | ShortConvConfig, weights: NativeRecurrence | NativeShortConv
    ) -> None:
        self._held: list[object] = [weights]
        taps = self._address(weights.taps.T)
        if isinstance(settings, ShortConvConfig) and isinstance(weights, ShortConvWeights):
            self.struct = SnState(rule=_SHORT_CONV, channels=settings.width)
            linears = {_IN: weights.bcv}
        elif isinstance(settings, RecurrenceConfig) and isinstance(weights, RecurrenceWeights):
            self.struct = self._recurrence(settings, weights)
            linears = _linears(weights)
        else:
            raise LocalProtocolError("a block whose weights are not those of its state")
        for number, linear in (linears | {_OUT: weights.out}).items():
            self.struct.linears[number] = linear.struct
        self.struct.n_taps, self.struct.taps = settings.taps, taps
        if weights.conv_bias is not None:
            self.struct.conv_bias = self._address(weights.conv_bias)

    def _address(self, values: NDArray[Any]) -> int:
        kept = np.ascontiguousarray(values, np.float32)
        self._held.append(kept)
        return address(kept)

    def _recurrence(self, settings: RecurrenceConfig, weights: NativeRecurrence) -> SnState:
        # In float64, so that after rounding no library's exponential shows.
        rates = np.exp(weights.a_log.astype(np.float64)).repeat(settings.decay_size // settings.heads)
        struct = SnState(
            rates=self._address(rates),
            decay_bias=self._address(weights.decay_bias),
            rule=_DELTA if settings.rule == "delta" else _PLAIN,
            channels=settings.channels,
            heads=settings.heads,
            key_heads=settings.key_heads,
            key_dim=settings.key_dim,
            value_dim=settings.value_dim,
            tiled=settings.tiled,
            channel_decay=settings.decay == "channel",
            norm_groups=settings.norm_groups,
            gate_first=settings.gate_first,
            gate_silu=settings.gate == "silu",
            decay_factor=settings.factors[4],
            beta_scale=settings.beta_scale,
            least_step=settings.steps[0],
            most_step=settings.steps[1],
        )
        if weights.skip is not None:
            struct.skip = self._address(weights.skip)
        if settings.norm is not None:
            weight = np.ones(settings.inner, np.float32) if weights.norm is None else weights.norm
            norm = NativeNorm(settings.norm, weight)
            self._held.append(norm)
            struct.norm = norm.struct
        if settings.factors[:4] != (1, 1, 1, 1):
            z, v, k, q = settings.factors[:4]
            sizes = (settings.key_size, settings.key_size, settings.inner, settings.inner)
            struct.factors = self._address(np.repeat((q, k, v, z), sizes))
        return struct


def _linears(weights: NativeRecurrence) -> dict[int, NativeLinear]:
    numbers = {
        _IN: weights.qkvz,
        _DECAY: weights.decay,
        _BETA: weights.beta,
        _GATE_A: weights.gate_a,
        _DECAY_A: weights.decay_a,
        _GATE_B: weights.gate_b,
        _DECAY_B: weights.decay_b,
    }
    return {number: linear for number, linear in numbers.items() if linear is not None}
