"""Norms, activations and MLPs as the C kernels see them (``csrc/rows.h``, ``activation.h``, ``mlp.h``)."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np

from ..formats.blocks.mlp import ACTIVATIONS
from ..formats.blocks.norm import NORMS
from .library import address
from .linear import SnLinear

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..formats.blocks.mlp import MlpConfig
    from ..formats.blocks.norm import NormConfig

    Floats = NDArray[np.float32]


class SnNorm(ctypes.Structure):
    """All zero: no norm."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("kind", ctypes.c_int32),
        ("eps", ctypes.c_float),
    )


class SnActivation(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int32),
        ("alpha", ctypes.c_float),
        ("limit", ctypes.c_float),
        ("factor", ctypes.c_float),
    )


class SnMlp(ctypes.Structure):
    _fields_ = (
        ("gate_up", SnLinear),
        ("down", SnLinear),
        ("activation", SnActivation),
        ("inner", ctypes.c_int32),
        ("gated", ctypes.c_int32),
    )


class NativeNorm:
    """``struct``: what C code takes; valid for as long as this object lives."""

    def __init__(self, norm: NormConfig, weight: Floats, bias: Floats | None = None) -> None:
        """``weight``: the norm's offset added; ones where it has none."""
        self.weight = weight
        self._held = [np.ascontiguousarray(part, np.float32) for part in (weight, bias) if part is not None]
        self.nbytes = sum(part.nbytes for part in self._held)
        addresses = [*map(address, self._held), None]
        self.struct = SnNorm(*addresses[:2], 1 + NORMS.index(norm.kind), norm.eps)


def activation_struct(mlp: MlpConfig) -> SnActivation:
    return SnActivation(ACTIVATIONS.index(mlp.activation), mlp.alpha, mlp.limit, mlp.gate_factor)


def mlp_struct(mlp: MlpConfig, gate_up: SnLinear, down: SnLinear) -> SnMlp:
    """Valid for as long as the owners of the two linears live."""
    return SnMlp(gate_up, down, activation_struct(mlp), mlp.inner, mlp.gated)
