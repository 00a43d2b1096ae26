"""The weights of a block: which tensors of the file become which of its parts, for every backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from ..formats.tensors import block_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...swarm.types import Span
    from ..checkpoint.checkpoint import Checkpoint
    from ..formats.blocks.attention import AttentionConfig, HeadNorm, LatentConfig
    from ..formats.blocks.block import BlockConfig, LaurelConfig, SideConfig, StreamsConfig
    from ..formats.blocks.experts import ExpertsConfig
    from ..formats.blocks.mlp import MlpConfig
    from ..formats.blocks.norm import NormConfig
    from ..formats.config import ModelConfig

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

    def vector(self, name: str, size: int) -> Floats:
        """The whole name of a tensor of ``size`` values → those, float32."""
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


class MlpWeights(NamedTuple, Generic[Linear]):
    """``gate_up``: gate and up as one product; of an MLP without gate, up alone."""

    gate_up: Linear
    down: Linear


class ExpertsWeights(NamedTuple, Generic[Norm, Linear, Experts]):
    """None: not in the settings. ``correction``, ``expert_scale``: (experts); ``scale``: (hidden)."""

    router: Linear
    experts: Experts
    correction: Floats | None = None
    scale: Floats | None = None
    expert_scale: Floats | None = None
    shared: MlpWeights[Linear] | None = None
    shared_gate: Linear | None = None
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

    attention: AttentionWeights[Norm, Linear] | LatentWeights[Norm, Linear, Heads]
    norm: Norm | None = None
    attention_out_norm: Norm | None = None
    mlp_norm: Norm | None = None
    mlp: MlpWeights[Linear] | None = None
    experts: ExpertsWeights[Norm, Linear, Experts] | None = None
    mlp_out_norm: Norm | None = None
    side: SideWeights[Norm, Linear] | None = None
    laurel: LaurelWeights[Norm, Linear] | None = None
    streams: StreamsWeights[Norm, Linear] | None = None
    scalar: float = 1.0


class Stack(NamedTuple):
    """Matrices that are stacked: their names without ``.weight``, the rows of each, and their columns."""

    names: list[str]
    sizes: list[int]
    cols: int


def block_stacks(config: ModelConfig, block: int) -> list[tuple[Stack, int]]:
    """The stacked matrices of block number ``block``, and how many such: one expert stands for all."""
    settings, hidden, prefix = config.blocks[block], config.hidden_size, f"model.layers.{block}"
    attention, experts = settings.attention, settings.experts
    if attention.latent is None:
        found = [_qkv(prefix, settings, hidden), _out(prefix, attention, hidden)]
    else:
        found = [*_latent(prefix, attention, attention.latent, hidden).values()]
    if settings.mlp is not None:
        found += mlp_stacks(f"{prefix}.mlp", settings.mlp, hidden)
    if experts is not None and experts.shared is not None:
        found += mlp_stacks(f"{prefix}.mlp.shared_experts", experts.shared, hidden)
    if settings.side is not None:
        found += _side(prefix, settings.side, hidden)
    if settings.laurel is not None:
        found += _laurel(prefix, settings.laurel, hidden)
    counted = [(stack, 1) for stack in found]
    if experts is not None:
        first = mlp_stacks(f"{prefix}.mlp.experts.0", experts.mlp, hidden)
        counted += [(stack, experts.count) for stack in first]
    return counted


def _qkv(prefix: str, settings: BlockConfig, hidden: int) -> Stack:
    attention, makes_kv = settings.attention, settings.kv_of is None
    names, sizes = ["q_proj"], [attention.q_size]
    if makes_kv:
        names, sizes = [*names, "k_proj"], [*sizes, attention.kv_size]
    if makes_kv and not attention.keys_as_values:
        names, sizes = [*names, "v_proj"], [*sizes, attention.kv_size]
    if attention.gate is not None:
        rows = attention.out_size if attention.gate == "channel" else attention.heads
        names, sizes = [*names, "gate_proj"], [*sizes, rows]
    return Stack([f"{prefix}.self_attn.{name}" for name in names], sizes, hidden)


def _out(prefix: str, attention: AttentionConfig, hidden: int) -> Stack:
    return Stack([f"{prefix}.self_attn.o_proj"], [hidden], attention.out_size)


def _latent(prefix: str, attention: AttentionConfig, latent: LatentConfig, hidden: int) -> dict[str, Stack]:
    """Under the names of ``LatentWeights``; "q_a" where q has a latent."""
    name = f"{prefix}.self_attn."
    if latent.q_rank:
        parts = {
            "q_a": Stack([f"{name}q_a_proj"], [latent.q_rank], hidden),
            "q": Stack([f"{name}q_b_proj"], [attention.q_size], latent.q_rank),
        }
    else:
        parts = {"q": Stack([f"{name}q_proj"], [attention.q_size], hidden)}
    parts["kv_a"] = Stack([f"{name}kv_a_proj"], [latent.kv_rank + latent.rope_dim], hidden)
    return parts | {"out": _out(prefix, attention, hidden)}


def _side(prefix: str, side: SideConfig, hidden: int) -> tuple[Stack, Stack]:
    return (
        Stack([f"{prefix}.per_layer_input_gate"], [side.values], hidden),
        Stack([f"{prefix}.per_layer_projection"], [hidden], side.values),
    )


def _laurel(prefix: str, laurel: LaurelConfig, hidden: int) -> tuple[Stack, Stack]:
    return (
        Stack([f"{prefix}.laurel.linear_left"], [laurel.rank], hidden),
        Stack([f"{prefix}.laurel.linear_right"], [hidden], laurel.rank),
    )


def mlp_stacks(name: str, mlp: MlpConfig, hidden: int) -> list[Stack]:
    """Those of the MLP ``name``: gate and up, then down."""
    parts = ["gate_proj", "up_proj"] if mlp.gated else ["up_proj"]
    return [
        Stack([f"{name}.{part}" for part in parts], [mlp.inner] * len(parts), hidden),
        Stack([f"{name}.down_proj"], [hidden], mlp.inner),
    ]


def load_block(
    loader: BlockLoader[Norm, Linear, Experts, Heads], config: ModelConfig, block: int
) -> BlockWeights[Norm, Linear, Experts, Heads]:
    """Block number ``block`` of the model."""
    loader.label = f"block {block}"
    settings, hidden, prefix = config.blocks[block], config.hidden_size, f"model.layers.{block}"

    def norm(name: str, wanted: NormConfig | None) -> Norm | None:
        return None if wanted is None else loader.norm(f"{prefix}.{name}", wanted, hidden)

    attention = settings.attention
    return BlockWeights(
        attention=_load_attention(loader, prefix, settings, hidden)
        if attention.latent is None
        else _load_latent(loader, prefix, attention, attention.latent, hidden),
        norm=norm("input_layernorm", settings.norm),
        attention_out_norm=norm("self_attn.out_norm", settings.attention_out_norm),
        mlp_norm=norm("post_attention_layernorm", settings.mlp_norm),
        mlp=_load_mlp(loader, f"{prefix}.mlp", settings.mlp, hidden),
        experts=None if settings.experts is None else _load_experts(loader, prefix, settings.experts, hidden),
        mlp_out_norm=norm("mlp.out_norm", settings.mlp_out_norm),
        side=None if settings.side is None else _load_side(loader, prefix, settings.side, hidden),
        laurel=None if settings.laurel is None else _load_laurel(loader, prefix, settings.laurel, hidden),
        streams=None if settings.streams is None else _load_streams(loader, prefix, settings.streams, hidden),
        scalar=float(loader.vector(f"{prefix}.scalar.weight", 1)[0]) if settings.scalar else 1.0,
    )


def _load_attention(
    loader: BlockLoader[Norm, Linear, Experts, Heads], prefix: str, settings: BlockConfig, hidden: int
) -> AttentionWeights[Norm, Linear]:
    name, attention = f"{prefix}.self_attn.", settings.attention
    qkv = loader.linear(*_qkv(prefix, settings, hidden))
    out = loader.linear(*_out(prefix, attention, hidden))
    weights = AttentionWeights[Norm, Linear](qkv, out)
    if (wanted := attention.qk_norm) is not None:
        q, q_bias = _head_norm(loader, f"{name}q_norm", wanted, attention.heads, attention.head_dim)
        weights = weights._replace(q_norm=q, q_norm_bias=q_bias)
        if settings.kv_of is None:
            k, k_bias = _head_norm(loader, f"{name}k_norm", wanted, attention.kv_heads, attention.head_dim)
            weights = weights._replace(k_norm=k, k_norm_bias=k_bias)
    if attention.v_norm is not None and attention.v_norm.weighted:
        each = loader.vector(f"{name}v_norm.weight", attention.head_dim) + np.float32(attention.v_norm.offset)
        weights = weights._replace(v_norm=np.tile(each, attention.kv_heads))
    if attention.sinks:
        weights = weights._replace(sinks=loader.vector(f"{name}sinks.weight", attention.heads))
    return weights


def _head_norm(
    loader: BlockLoader[Norm, Linear, Experts, Heads], name: str, norm: HeadNorm, heads: int, head_dim: int
) -> tuple[Floats | None, Floats | None]:
    """Weight, its offset added, and bias; None: it has none."""
    weight = bias = None
    if norm.norm.weighted:
        weight = _head_vector(loader, f"{name}.weight", norm, heads, head_dim) + np.float32(norm.norm.offset)
    if norm.norm.bias:
        bias = _head_vector(loader, f"{name}.bias", norm, heads, head_dim)
    return weight, bias


def _head_vector(
    loader: BlockLoader[Norm, Linear, Experts, Heads], name: str, norm: HeadNorm, heads: int, head_dim: int
) -> Floats:
    """(heads * head_dim), what heads share repeated."""
    if norm.over == "all" or norm.per_head:
        return loader.vector(name, heads * head_dim)
    return np.tile(loader.vector(name, head_dim), heads)


def _load_latent(
    loader: BlockLoader[Norm, Linear, Experts, Heads],
    prefix: str,
    attention: AttentionConfig,
    latent: LatentConfig,
    hidden: int,
) -> LatentWeights[Norm, Linear, Heads]:
    name, parts = f"{prefix}.self_attn.", _latent(prefix, attention, latent, hidden)
    return LatentWeights(
        q_a=loader.linear(*parts["q_a"]) if latent.q_rank else None,
        q_norm=loader.norm(f"{name}q_a_layernorm", latent.norm, latent.q_rank) if latent.q_rank else None,
        q=loader.linear(*parts["q"]),
        kv_a=loader.linear(*parts["kv_a"]),
        kv_norm=loader.norm(f"{name}kv_a_layernorm", latent.norm, latent.kv_rank),
        k_b=loader.heads(f"{name}k_b_proj", attention.heads, latent.nope_dim),
        v_b=loader.heads(f"{name}v_b_proj", attention.heads, latent.kv_rank),
        out=loader.linear(*parts["out"]),
    )


def _load_mlp(
    loader: BlockLoader[Norm, Linear, Experts, Heads], name: str, mlp: MlpConfig | None, hidden: int
) -> MlpWeights[Linear] | None:
    return (
        None
        if mlp is None
        else MlpWeights(*(loader.linear(*stack) for stack in mlp_stacks(name, mlp, hidden)))
    )


def _load_side(
    loader: BlockLoader[Norm, Linear, Experts, Heads], prefix: str, side: SideConfig, hidden: int
) -> SideWeights[Norm, Linear]:
    gate, projection = _side(prefix, side, hidden)
    return SideWeights(
        loader.linear(*gate),
        loader.linear(*projection),
        loader.norm(f"{prefix}.post_per_layer_input_norm", side.norm, hidden),
    )


def _load_laurel(
    loader: BlockLoader[Norm, Linear, Experts, Heads], prefix: str, laurel: LaurelConfig, hidden: int
) -> LaurelWeights[Norm, Linear]:
    left, right = _laurel(prefix, laurel, hidden)
    norm = loader.norm(f"{prefix}.laurel.post_laurel_norm", laurel.norm, hidden)
    return LaurelWeights(loader.linear(*left), loader.linear(*right), norm)


def _load_streams(
    loader: BlockLoader[Norm, Linear, Experts, Heads], prefix: str, streams: StreamsConfig, hidden: int
) -> StreamsWeights[Norm, Linear]:
    name, count = f"{prefix}.altup", streams.count
    return StreamsWeights(
        loader.norm(f"{name}.router_norm", streams.norm, hidden),
        loader.linear([f"{name}.modality_router"], [count], hidden),
        loader.linear([f"{name}.prediction_coefs"], [count**2], count),
        loader.linear([f"{name}.correction_coefs"], [count], count),
        loader.vector(f"{name}.correct_output_scale", hidden) if streams.scaled else None,
    )


def _load_experts(
    loader: BlockLoader[Norm, Linear, Experts, Heads], prefix: str, experts: ExpertsConfig, hidden: int
) -> ExpertsWeights[Norm, Linear, Experts]:
    name, router = f"{prefix}.mlp", experts.router

    def norm(part: str, wanted: NormConfig | None) -> Norm | None:
        return None if wanted is None else loader.norm(f"{name}.{part}", wanted, hidden)

    return ExpertsWeights(
        router=loader.linear([f"{name}.router"], [experts.count], hidden),
        experts=loader.experts(f"{name}.experts", experts, hidden),
        correction=loader.vector(f"{name}.router.correction", experts.count) if router.correction else None,
        scale=loader.vector(f"{name}.router.scale", hidden) if router.norm is not None else None,
        expert_scale=loader.vector(f"{name}.router.expert_scale", experts.count)
        if router.expert_scale
        else None,
        shared=_load_mlp(loader, f"{name}.shared_experts", experts.shared, hidden),
        shared_gate=loader.linear([f"{name}.shared_expert_gate"], [1], hidden)
        if experts.shared_gate
        else None,
        norm=norm("experts_norm", experts.norm),
        dense_out_norm=norm("dense_out_norm", experts.dense_out_norm),
        out_norm=norm("experts_out_norm", experts.out_norm),
    )


def bytes_in_file(checkpoint: Checkpoint, span: Span) -> int:
    """Of the tensors of blocks ``span``."""
    blocks = range(span.start, span.end)
    names = (name for block in blocks for name in block_names(checkpoint.config, block))
    return sum(checkpoint.tensor(name).nbytes for name in names if checkpoint.has(name))
