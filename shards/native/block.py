"""One block for the C kernels: the structs of ``csrc/block.h``, from its settings and weights."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...swarm.errors import LocalProtocolError
from ..formats.blocks.mlp import ACTIVATIONS
from ..kernels.experts import ExpertWeights, NativeExperts, NativeMlp, SnExperts
from ..kernels.linear import NativeLinear, SnLinear
from ..kernels.pages import SnAttention, attention_struct
from ..kernels.rows import NativeNorm, SnActivation, SnMlp, SnNorm, mlp_struct
from ..models.block_weights import AttentionWeights, BlockWeights, ExpertsWeights, LatentWeights
from .state import NativeState, SnState

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..formats.blocks.attention import AttentionConfig, LatentConfig
    from ..formats.blocks.block import BlockConfig
    from ..formats.blocks.experts import ExpertsConfig
    from ..formats.blocks.norm import NormConfig

    Floats = NDArray[np.float32]

NativeHeads = Sequence[NativeLinear]
NativeWeights = BlockWeights[NativeNorm, NativeLinear, ExpertWeights, NativeHeads]
NativeLatent = LatentWeights[NativeNorm, NativeLinear, NativeHeads]
_GATES = (None, "channel", "head")


class SnIndexer(ctypes.Structure):
    _fields_ = (
        ("q", SnLinear),
        ("k", SnLinear),
        ("weights", SnLinear),
        ("norm", SnNorm),
        ("heads", ctypes.c_int32),
        ("dim", ctypes.c_int32),
    )


class SnLatent(ctypes.Structure):
    _fields_ = (
        ("q_a", SnLinear),
        ("q_norm", SnNorm),
        ("q", SnLinear),
        ("kv_a", SnLinear),
        ("kv_norm", SnNorm),
        ("k_b", ctypes.POINTER(SnLinear)),
        ("v_b", ctypes.POINTER(SnLinear)),
        ("nope_dim", ctypes.c_int32),
        ("rope_dim", ctypes.c_int32),
        ("value_dim", ctypes.c_int32),
        ("indexer", ctypes.POINTER(SnIndexer)),
        ("top", ctypes.c_int32),
    )


class SnBlock(ctypes.Structure):
    _fields_ = (
        ("norm", SnNorm),
        ("attention_out_norm", SnNorm),
        ("mlp_norm", SnNorm),
        ("mlp_out_norm", SnNorm),
        ("attention", SnAttention),
        ("latent", ctypes.POINTER(SnLatent)),
        ("qkv", SnLinear),
        ("q_norm", SnNorm),
        ("k_norm", SnNorm),
        ("v_norm", SnNorm),
        ("norm_over_all", ctypes.c_int32),
        ("norm_after_rope", ctypes.c_int32),
        ("keys_as_values", ctypes.c_int32),
        ("gate", ctypes.c_int32),
        ("out", SnLinear),
        ("rope", ctypes.c_int32),
        ("rotary", ctypes.c_int32),
        ("scale_beta", ctypes.c_float),
        ("scale_period", ctypes.c_int32),
        ("scale_offset", ctypes.c_int32),
        ("mlp", SnMlp),
        ("experts", ctypes.POINTER(SnExperts)),
        ("experts_norm", SnNorm),
        ("router_norm", SnNorm),
        ("dense_out_norm", SnNorm),
        ("experts_out_norm", SnNorm),
        ("parallel", ctypes.c_int32),
        ("residual_multiplier", ctypes.c_float),
        ("scalar", ctypes.c_float),
        ("kv_of", ctypes.c_int32),
        ("side", ctypes.c_int32),
        ("side_gate", SnLinear),
        ("side_projection", SnLinear),
        ("side_activation", SnActivation),
        ("side_norm", SnNorm),
        ("state", ctypes.POINTER(SnState)),
        ("attention_factor", ctypes.c_float),
        ("state_factor", ctypes.c_float),
        ("mlp_factor", ctypes.c_float),
    )


class NativeBlock:
    """``struct``: what C code takes; valid for as long as this object lives."""

    def __init__(
        self, settings: BlockConfig, weights: NativeWeights, hidden: int, rope: int, top: int = 0
    ) -> None:
        """``rope``: the number of the block's rotations, -1 for none. ``top``: tokens that an indexer, its
        own or another's, lets a row see; 0: all."""
        self.weights, self._top = weights, top
        self.experts: NativeExperts | None = None
        self._held: list[object] = []
        self.struct = SnBlock(
            norm=_norm(weights.norm),
            attention_out_norm=_norm(weights.attention_out_norm),
            mlp_norm=_norm(weights.mlp_norm),
            mlp_out_norm=_norm(weights.mlp_out_norm),
            rope=rope,
            parallel=settings.parallel,
            residual_multiplier=settings.residual_multiplier,
            scalar=weights.scalar,
            kv_of=-1 if settings.kv_of is None else settings.kv_of,
            side_norm=_norm(None if weights.side is None else weights.side.norm),
            attention_factor=settings.attention_factor,
            state_factor=settings.state_factor,
            mlp_factor=settings.mlp_factor,
        )
        if settings.side is not None and weights.side is not None:
            self.struct.side = settings.side.values
            self.struct.side_gate = weights.side.gate.struct
            self.struct.side_projection = weights.side.projection.struct
            self.struct.side_activation = SnActivation(
                ACTIVATIONS.index(settings.side.activation), factor=1.0
            )
        if settings.parallel and settings.mlp_norm is None:
            self.struct.mlp_norm = self.struct.norm
        if settings.mlp is not None and weights.mlp is not None:
            self.struct.mlp = mlp_struct(settings.mlp, *(linear.struct for linear in weights.mlp))
        if settings.experts is not None and weights.experts is not None:
            self._add_experts(settings.experts, weights.experts, hidden)
        if settings.attention is not None and weights.attention is not None:
            self._attend(settings.attention, weights.attention)
        if settings.state is not None and weights.state is not None:
            state = NativeState(settings.state, weights.state)
            self._held.append(state)
            self.struct.state = ctypes.pointer(state.struct)

    def _add_experts(
        self,
        experts: ExpertsConfig,
        weights: ExpertsWeights[NativeNorm, NativeLinear, ExpertWeights],
        hidden: int,
    ) -> None:
        struct, latent = self.struct, None
        if weights.latent_in is not None and weights.latent_out is not None:
            latent = weights.latent_in, weights.latent_out
        made = NativeExperts(
            *(experts, hidden, weights.router, weights.experts),
            correction=weights.correction,
            expert_scale=weights.expert_scale,
            shared=None if weights.shared is None else NativeMlp(*weights.shared),
            shared_gate=weights.shared_gate,
            latent=latent,
        )
        self.experts = made
        struct.experts = ctypes.pointer(made.struct)
        struct.experts_norm = _norm(weights.norm)
        struct.dense_out_norm = _norm(weights.dense_out_norm)
        struct.experts_out_norm = _norm(weights.out_norm)
        if experts.router.norm is not None and weights.scale is not None:
            struct.router_norm = self._made(
                experts.router.norm, hidden, weights.scale * np.float32(hidden**-0.5)
            )

    def _attend(
        self,
        attention: AttentionConfig,
        weights: AttentionWeights[NativeNorm, NativeLinear] | NativeLatent,
    ) -> None:
        struct = self.struct
        struct.out = weights.out.struct
        if attention.rope is not None:
            struct.rotary = attention.rope.rotary_dim
        if (scale := attention.query_scale) is not None:
            struct.scale_beta, struct.scale_period, struct.scale_offset = (
                scale.beta,
                scale.period,
                scale.offset,
            )
        if attention.latent is not None and isinstance(weights, LatentWeights):
            struct.attention = attention_struct(attention)
            struct.latent = ctypes.pointer(self._latent(attention.latent, weights))
        elif attention.latent is None and isinstance(weights, AttentionWeights):
            self._attend_plainly(attention, weights)
        else:
            raise LocalProtocolError("a block whose weights are not those of its attention")

    def _attend_plainly(
        self, attention: AttentionConfig, weights: AttentionWeights[NativeNorm, NativeLinear]
    ) -> None:
        struct, dim = self.struct, attention.head_dim
        self._held.append(weights.sinks)
        struct.attention = attention_struct(attention, weights.sinks)
        struct.qkv = weights.qkv.struct
        struct.keys_as_values = attention.keys_as_values
        struct.gate = _GATES.index(attention.gate)
        if (heads := attention.qk_norm) is not None:
            struct.norm_over_all, struct.norm_after_rope = heads.over == "all", heads.after_rope
            q, k = attention.heads * dim, attention.kv_heads * dim
            struct.q_norm = self._made(heads.norm, q, weights.q_norm, weights.q_norm_bias)
            struct.k_norm = self._made(heads.norm, k, weights.k_norm, weights.k_norm_bias)
        if attention.v_norm is not None:
            struct.v_norm = self._made(attention.v_norm, attention.kv_heads * dim, weights.v_norm)

    def _made(self, norm: NormConfig, size: int, weight: Floats | None, bias: Floats | None = None) -> SnNorm:
        made = NativeNorm(norm, np.ones(size, np.float32) if weight is None else weight, bias)
        self._held.append(made)
        return made.struct

    def _latent(self, latent: LatentConfig, weights: NativeLatent) -> SnLatent:
        struct = SnLatent(
            q_norm=_norm(weights.q_norm),
            q=weights.q.struct,
            kv_a=weights.kv_a.struct,
            kv_norm=_norm(weights.kv_norm),
            k_b=_array(weights.k_b),
            v_b=_array(weights.v_b),
            nope_dim=latent.nope_dim,
            rope_dim=latent.rope_dim,
            value_dim=latent.value_dim,
            top=self._top,
        )
        if latent.indexer is not None and (held := weights.indexer) is not None:
            indexer = SnIndexer(
                *(held.q.struct, held.k.struct, held.weights.struct, held.norm.struct),
                *(latent.indexer.heads, latent.indexer.head_dim),
            )
            struct.indexer = ctypes.pointer(indexer)
        if weights.q_a is not None:
            struct.q_a = weights.q_a.struct
        return struct


def _norm(norm: NativeNorm | None) -> SnNorm:
    return SnNorm() if norm is None else norm.struct


def _array(linears: NativeHeads) -> ctypes.Array[SnLinear]:
    return (SnLinear * len(linears))(*(linear.struct for linear in linears))
