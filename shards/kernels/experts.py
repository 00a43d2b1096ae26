"""Experts for the C kernels (``csrc/experts.c``): who is chosen, and each expert's product with its rows."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from ..formats.blocks.experts import SCORES
from ..layers.memory import zeros
from .library import ThreadPool, address, library
from .linear import NativeLinear, SnLinear
from .rows import SnMlp, mlp_struct

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..formats.blocks.experts import ExpertsConfig, RouterConfig
    from ..formats.blocks.mlp import MlpConfig

    Floats = NDArray[np.float32]


class SnRouter(ctypes.Structure):
    _fields_ = (
        ("linear", SnLinear),
        ("correction", ctypes.c_void_p),
        ("expert_scale", ctypes.c_void_p),
        ("scores", ctypes.c_int32),
        ("groups", ctypes.c_int32),
        ("used_groups", ctypes.c_int32),
        ("top2", ctypes.c_int32),
        ("renormalise", ctypes.c_int32),
        ("scale_input", ctypes.c_int32),
        ("sum_floor", ctypes.c_float),
        ("scaling", ctypes.c_float),
        ("jitter", ctypes.c_float),
    )


class SnExperts(ctypes.Structure):
    """``sn_experts`` of ``csrc/experts.h``."""


SnExperts._fields_ = (
    ("router", SnRouter),
    ("experts", ctypes.POINTER(SnMlp)),
    ("shared", ctypes.POINTER(SnMlp)),
    ("shared_gate", ctypes.POINTER(SnLinear)),
    ("latent_in", ctypes.POINTER(SnLinear)),
    ("latent_out", ctypes.POINTER(SnLinear)),
    ("store", ctypes.c_void_p),
    ("next", ctypes.POINTER(SnExperts)),
    ("hidden", ctypes.c_int32),
    ("count", ctypes.c_int32),
    ("used", ctypes.c_int32),
    ("number", ctypes.c_int32),
    ("width", ctypes.c_int32),
)


class NativeMlp(NamedTuple):
    """``gate_up``: gate and up as one product; of an MLP without gate, up alone."""

    gate_up: NativeLinear
    down: NativeLinear


class ExpertWeights(Protocol):
    """Of one block. ``structs``: an ``SnMlp`` of each. Those of a ``store`` get their weights from it, as its
    block ``number``."""

    structs: ctypes.Array[SnMlp]
    number: int

    @property
    def store(self) -> int | None: ...


class HeldExperts:
    """All in memory. ``structs``: an ``SnMlp`` of each."""

    store: int | None = None
    number = 0

    def __init__(self, config: MlpConfig, mlps: Sequence[NativeMlp]) -> None:
        self._mlps = tuple(mlps)  # what the pointers point at
        self.structs = (SnMlp * len(mlps))(
            *(mlp_struct(config, gate_up.struct, down.struct) for gate_up, down in mlps)
        )


class NativeExperts:
    """``struct``: what C code takes; valid for as long as this object lives, and the one that ``precede`` was
    given. ``correction`` and ``expert_scale``: (experts). ``latent``: into the experts' latent, and back."""

    def __init__(
        self,
        config: ExpertsConfig,
        hidden: int,
        router: NativeLinear,
        experts: ExpertWeights,
        *,
        correction: Floats | None = None,
        expert_scale: Floats | None = None,
        shared: NativeMlp | None = None,
        shared_gate: NativeLinear | None = None,
        latent: tuple[NativeLinear, NativeLinear] | None = None,
    ) -> None:
        self._held = (router, experts, correction, expert_scale, shared, shared_gate, latent)
        self._next: NativeExperts | None = None
        self._scratch = zeros(0, np.uint8)
        self.struct = SnExperts(
            router=router_struct(config.router, router.struct, correction, expert_scale),
            experts=experts.structs,
            store=experts.store,
            number=experts.number,
            hidden=hidden,
            count=config.count,
            used=config.used,
            width=config.width(hidden),
        )
        if shared is not None and config.shared is not None:
            struct = mlp_struct(config.shared, shared.gate_up.struct, shared.down.struct)
            self.struct.shared = ctypes.pointer(struct)
        if shared_gate is not None:
            self.struct.shared_gate = ctypes.pointer(shared_gate.struct)
        if latent is not None:
            self.struct.latent_in, self.struct.latent_out = (ctypes.pointer(each.struct) for each in latent)

    def precede(self, following: NativeExperts) -> None:
        """``following``: the experts of the next block, whose router tells what is read ahead."""
        self._next = following
        self.struct.next = ctypes.pointer(following.struct)

    def __call__(self, x: Floats, router_x: Floats | None = None, pool: ThreadPool | None = None) -> Floats:
        """``x`` (T, hidden), and what the router reads, if that is not the same → (T, hidden)."""
        x = np.ascontiguousarray(x, np.float32)
        router_x = x if router_x is None else np.ascontiguousarray(router_x, np.float32)
        if x.shape != router_x.shape or x.shape[1] != self.struct.hidden:
            raise ValueError(f"{x.shape} and {router_x.shape} for experts of {self.struct.hidden} columns")
        out, rows = np.empty_like(x), len(x)
        threads = 1 if pool is None else pool.width
        needed = _kernels().sn_experts_scratch(self.struct, threads, rows)
        if len(self._scratch) < needed:
            self._scratch = zeros(needed, np.uint8)
        _kernels().sn_experts_forward(
            *(None if pool is None else pool.handle, self.struct, address(x), address(router_x), rows),
            *(address(out), address(self._scratch)),
        )
        return out


def router_struct(
    config: RouterConfig, linear: SnLinear, correction: Floats | None, expert_scale: Floats | None
) -> SnRouter:
    """It points at the arrays."""
    return SnRouter(
        *(linear, _address(correction), _address(expert_scale)),
        *(SCORES.index(config.scores), config.groups, config.used_groups),
        *(config.group_scores == "top2", config.renormalise, config.scale_input),
        *(config.sum_floor, config.scaling, config.jitter),
    )


def _address(array: Floats | None) -> int | None:
    return None if array is None else address(array)


@cache
def _kernels() -> Any:
    kernels = library()
    pointer, number, pool = ctypes.POINTER(SnExperts), ctypes.c_int64, ctypes.c_void_p
    kernels.sn_experts_scratch.restype = number
    kernels.sn_experts_scratch.argtypes = (pointer, ctypes.c_int32, number)
    kernels.sn_experts_forward.restype = None
    kernels.sn_experts_forward.argtypes = (
        *(pool, pointer, ctypes.c_void_p, ctypes.c_void_p),
        *(number, ctypes.c_void_p, ctypes.c_void_p),
    )
    return kernels
