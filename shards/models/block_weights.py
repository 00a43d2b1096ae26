"""The weights of a block, as every backend holds them, and what a backend reads them with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..formats.blocks.experts import ExpertsConfig
    from ..formats.blocks.norm import NormConfig

    Floats = NDArray[np.float32]

Norm = TypeVar("Norm", covariant=True)
Linear = TypeVar("Linear", covariant=True)
Experts = TypeVar("Experts", covariant=True)
Heads = TypeVar("Heads", covariant=True)


class BlockLoader(Protocol[Norm, Linear, Experts, Heads]):
    """A backend's ``TensorReader``. Names come without ``.weight``."""

    label: str

    def norm(self, name: str, norm: NormConfig, size: int) -> Norm:
        """A norm of rows of ``size`` values."""
        ...

    def vector(self, name: str, *shape: int) -> Floats:
        """The whole name of a tensor of that shape → it, float32."""
        ...

    def linear(self, names: Sequence[str], sizes: Sequence[int], cols: int) -> Linear:
        """The named matrices one below the other, of ``sizes`` rows each, with the biases that are there."""
        ...

    def heads(self, name: str, heads: int, cols: int) -> Heads:
        """A matrix of ``heads`` equal parts, one below the other: a product for each head."""
        ...

    def experts(self, prefix: str, experts: ExpertsConfig, hidden: int) -> Experts:
        """All of ``{prefix}.{number}.gate_proj``, ``.up_proj`` and ``.down_proj``, as the backend wants them
        held: in memory, or read from the file when they are used."""
        ...


class AttentionWeights(NamedTuple, Generic[Norm, Linear]):
    """``qkv``: q, k, v (unless keys are the values) and the output gate, as one product; q and the gate alone
    of a block that reads another's keys and values. ``q_norm`` (heads * head_dim), ``k_norm`` (kv_heads *
    head_dim): offsets added, a shared weight once a head; None: no norm, or one without weights, as the
    settings say. Their biases likewise. ``sinks`` (heads)."""

    qkv: Linear
    out: Linear
    q_norm: Floats | None = None
    k_norm: Floats | None = None
    q_norm_bias: Floats | None = None
    k_norm_bias: Floats | None = None
    v_norm: Floats | None = None
    sinks: Floats | None = None


class IndexerWeights(NamedTuple, Generic[Norm, Linear]):
    """``q``: q's latent → heads * head_dim; ``k``, ``weights``: hidden → head_dim and → heads."""

    q: Linear
    k: Linear
    norm: Norm
    weights: Linear


class LatentWeights(NamedTuple, Generic[Norm, Linear, Heads]):
    """``q``: from the block's input or, where there are ``q_a`` and ``q_norm``, from q's latent. ``k_b``,
    ``v_b``: of each head, nope_dim → kv_rank and kv_rank → value_dim."""

    q_a: Linear | None
    q_norm: Norm | None
    q: Linear
    kv_a: Linear
    kv_norm: Norm
    k_b: Heads
    v_b: Heads
    out: Linear
    indexer: IndexerWeights[Norm, Linear] | None = None


class RecurrenceWeights(NamedTuple, Generic[Norm, Linear]):
    """``qkvz``: q, k, v and, unless it has a rank, the gate, as one product. ``decay``: decay_proj and, of
    the delta rule, beta_proj below it, as one product, unless it has a rank: then ``beta`` is apart.
    ``gate_a``, ``gate_b``, ``decay_a``, ``decay_b``: those of a rank. ``taps`` (channels, taps) and
    ``conv_bias`` (channels): of q, k and v. ``a_log`` (heads), ``decay_bias`` (decay_size), ``skip``
    (heads). ``norm`` (inner): a shared weight once a head; None: no norm, or one without a weight."""

    qkvz: Linear
    out: Linear
    taps: Floats
    a_log: Floats
    decay_bias: Floats
    conv_bias: Floats | None = None
    decay: Linear | None = None
    beta: Linear | None = None
    gate_a: Linear | None = None
    gate_b: Linear | None = None
    decay_a: Linear | None = None
    decay_b: Linear | None = None
    skip: Floats | None = None
    norm: Floats | None = None


class ShortConvWeights(NamedTuple, Generic[Linear]):
    """``bcv``: b, c and v as one product. ``taps`` (width, taps), ``conv_bias`` (width)."""

    bcv: Linear
    out: Linear
    taps: Floats
    conv_bias: Floats | None = None


class MlpWeights(NamedTuple, Generic[Linear]):
    """``gate_up``: gate and up as one product; of an MLP without gate, up alone."""

    gate_up: Linear
    down: Linear


class ExpertsWeights(NamedTuple, Generic[Norm, Linear, Experts]):
    """None: not in the settings. ``correction``, ``expert_scale``: (experts); ``scale``: (hidden).
    ``latent_in``, ``latent_out``: hidden → what experts read, and back."""

    router: Linear
    experts: Experts
    correction: Floats | None = None
    scale: Floats | None = None
    expert_scale: Floats | None = None
    shared: MlpWeights[Linear] | None = None
    shared_gate: Linear | None = None
    latent_in: Linear | None = None
    latent_out: Linear | None = None
    norm: Norm | None = None
    dense_out_norm: Norm | None = None
    out_norm: Norm | None = None


class SideWeights(NamedTuple, Generic[Norm, Linear]):
    """``gate``: hidden → the values beside the residual; ``projection``: back."""

    gate: Linear
    projection: Linear
    norm: Norm


class LaurelWeights(NamedTuple, Generic[Norm, Linear]):
    left: Linear
    right: Linear
    norm: Norm


class StreamsWeights(NamedTuple, Generic[Norm, Linear]):
    """``scale`` (hidden): None where what the side reads is not scaled."""

    norm: Norm
    router: Linear
    predict: Linear
    correct: Linear
    scale: Floats | None


class BlockWeights(NamedTuple, Generic[Norm, Linear, Experts, Heads]):
    """The parts of ``BlockConfig``, under the same names."""

    attention: AttentionWeights[Norm, Linear] | LatentWeights[Norm, Linear, Heads] | None
    norm: Norm | None = None
    attention_out_norm: Norm | None = None
    mlp_norm: Norm | None = None
    mlp: MlpWeights[Linear] | None = None
    experts: ExpertsWeights[Norm, Linear, Experts] | None = None
    mlp_out_norm: Norm | None = None
    side: SideWeights[Norm, Linear] | None = None
    laurel: LaurelWeights[Norm, Linear] | None = None
    streams: StreamsWeights[Norm, Linear] | None = None
    state: RecurrenceWeights[Norm, Linear] | ShortConvWeights[Linear] | None = None
    scalar: float = 1.0
