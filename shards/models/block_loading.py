"""Which tensors of a file become which parts of a block, for every backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..formats.blocks.state import ShortConvConfig
from ..formats.tensors import block_names
from .block_weights import (
    AttentionWeights,
    BlockLoader,
    BlockWeights,
    Experts,
    ExpertsWeights,
    Heads,
    IndexerWeights,
    LatentWeights,
    LaurelWeights,
    Linear,
    MlpWeights,
    Norm,
    RecurrenceWeights,
    ShortConvWeights,
    SideWeights,
    StreamsWeights,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...swarm.types import Span
    from ..checkpoint.checkpoint import Checkpoint
    from ..formats.blocks.attention import AttentionConfig, HeadNorm, IndexerConfig, LatentConfig
    from ..formats.blocks.block import BlockConfig, LaurelConfig, SideConfig, StreamsConfig
    from ..formats.blocks.experts import ExpertsConfig
    from ..formats.blocks.mlp import MlpConfig
    from ..formats.blocks.norm import NormConfig
    from ..formats.blocks.state import RecurrenceConfig
    from ..formats.config import ModelConfig

    Floats = NDArray[np.float32]


class Stack(NamedTuple):
    """Matrices that are stacked: their names without ``.weight``, the rows of each, and their columns."""

    names: list[str]
    sizes: list[int]
    cols: int


def block_stacks(config: ModelConfig, block: int) -> list[tuple[Stack, int]]:
    """The stacked matrices of block number ``block``, and how many such: one expert stands for all."""
    settings, hidden, prefix = config.blocks[block], config.hidden_size, f"model.layers.{block}"
    attention, experts = settings.attention, settings.experts
    found: list[Stack] = []
    if attention is not None and attention.latent is None:
        found = [_qkv(prefix, settings, attention, hidden), _out(prefix, attention, hidden)]
    elif attention is not None and attention.latent is not None:
        found = [*_latent(prefix, attention, attention.latent, hidden).values()]
        if (indexer := attention.latent.indexer) is not None:
            found += _indexer(prefix, indexer, attention.latent.q_rank, hidden)
    if isinstance(settings.state, ShortConvConfig):
        found += _short_conv(prefix, settings.state, hidden).values()
    elif settings.state is not None:
        found += _recurrence(prefix, settings.state, hidden).values()
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
        if experts.latent:
            counted += [(stack, 1) for stack in _experts_latent(prefix, experts, hidden)]
        first = mlp_stacks(f"{prefix}.mlp.experts.0", experts.mlp, experts.width(hidden))
        counted += [(stack, experts.count) for stack in first]
    return counted


def _qkv(prefix: str, settings: BlockConfig, attention: AttentionConfig, hidden: int) -> Stack:
    makes_kv = settings.kv_of is None
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


def _recurrence(prefix: str, state: RecurrenceConfig, hidden: int) -> dict[str, Stack]:
    """Under the names of ``RecurrenceWeights``."""
    name, has_beta = f"{prefix}.state.", state.rule == "delta"
    projections, sizes = ["q", "k", "v"], [state.key_size, state.key_size, state.inner]
    found: dict[str, Stack] = {}
    for part, size, rank in (
        ("gate", state.inner, state.gate_rank),
        ("decay", state.decay_size, state.decay_rank),
    ):
        if rank:
            found[f"{part}_a"] = Stack([f"{name}{part}_a_proj"], [rank], hidden)
            found[f"{part}_b"] = Stack([f"{name}{part}_b_proj"], [size], rank)
        elif part == "gate":
            projections, sizes = [*projections, part], [*sizes, size]
        else:
            parts = ["decay", "beta"] if has_beta else ["decay"]
            found["decay"] = Stack(
                [f"{name}{each}_proj" for each in parts], [size, state.heads][: len(parts)], hidden
            )
    if has_beta and state.decay_rank:
        found["beta"] = Stack([f"{name}beta_proj"], [state.heads], hidden)
    found["qkvz"] = Stack([f"{name}{each}_proj" for each in projections], sizes, hidden)
    found["out"] = Stack([f"{name}out_proj"], [hidden], state.inner)
    return found


def _short_conv(prefix: str, state: ShortConvConfig, hidden: int) -> dict[str, Stack]:
    names = [f"{prefix}.state.{part}_proj" for part in ("b", "c", "v")]
    return {
        "bcv": Stack(names, [state.width] * 3, hidden),
        "out": Stack([f"{prefix}.state.out_proj"], [hidden], state.width),
    }


def _indexer(prefix: str, indexer: IndexerConfig, q_rank: int, hidden: int) -> tuple[Stack, Stack, Stack]:
    name = f"{prefix}.self_attn.indexer."
    return (
        Stack([f"{name}wq_b"], [indexer.heads * indexer.head_dim], q_rank),
        Stack([f"{name}wk"], [indexer.head_dim], hidden),
        Stack([f"{name}weights_proj"], [indexer.heads], hidden),
    )


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


def _experts_latent(prefix: str, experts: ExpertsConfig, hidden: int) -> tuple[Stack, Stack]:
    return (
        Stack([f"{prefix}.mlp.latent_in_proj"], [experts.latent], hidden),
        Stack([f"{prefix}.mlp.latent_out_proj"], [hidden], experts.latent),
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

    return BlockWeights(
        attention=_load_attention(loader, prefix, settings, hidden),
        norm=norm("input_layernorm", settings.norm),
        attention_out_norm=norm("self_attn.out_norm", settings.attention_out_norm),
        mlp_norm=norm("post_attention_layernorm", settings.mlp_norm),
        mlp=_load_mlp(loader, f"{prefix}.mlp", settings.mlp, hidden),
        experts=None if settings.experts is None else _load_experts(loader, prefix, settings.experts, hidden),
        mlp_out_norm=norm("mlp.out_norm", settings.mlp_out_norm),
        side=None if settings.side is None else _load_side(loader, prefix, settings.side, hidden),
        laurel=None if settings.laurel is None else _load_laurel(loader, prefix, settings.laurel, hidden),
        streams=None if settings.streams is None else _load_streams(loader, prefix, settings.streams, hidden),
        state=_load_state(loader, prefix, settings.state, hidden),
        scalar=float(loader.vector(f"{prefix}.scalar.weight", 1)[0]) if settings.scalar else 1.0,
    )


def _load_attention(
    loader: BlockLoader[Norm, Linear, Experts, Heads], prefix: str, settings: BlockConfig, hidden: int
) -> AttentionWeights[Norm, Linear] | LatentWeights[Norm, Linear, Heads] | None:
    name, attention = f"{prefix}.self_attn.", settings.attention
    if attention is None:
        return None
    if attention.latent is not None:
        return _load_latent(loader, prefix, attention, attention.latent, hidden)
    qkv = loader.linear(*_qkv(prefix, settings, attention, hidden))
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
        indexer=None
        if latent.indexer is None
        else _load_indexer(loader, prefix, latent.indexer, latent.q_rank, hidden),
    )


def _load_indexer(
    loader: BlockLoader[Norm, Linear, Experts, Heads],
    prefix: str,
    indexer: IndexerConfig,
    q_rank: int,
    hidden: int,
) -> IndexerWeights[Norm, Linear]:
    q, k, weights = _indexer(prefix, indexer, q_rank, hidden)
    norm = loader.norm(f"{prefix}.self_attn.indexer.k_norm", indexer.norm, indexer.head_dim)
    return IndexerWeights(loader.linear(*q), loader.linear(*k), norm, loader.linear(*weights))


def _load_state(
    loader: BlockLoader[Norm, Linear, Experts, Heads],
    prefix: str,
    state: RecurrenceConfig | ShortConvConfig | None,
    hidden: int,
) -> RecurrenceWeights[Norm, Linear] | ShortConvWeights[Linear] | None:
    name = f"{prefix}.state."

    def conv(parts: Mapping[str, int], taps: int, *, bias: bool) -> tuple[Floats, Floats | None]:
        weights = [loader.vector(f"{name}{part}.weight", size, taps) for part, size in parts.items()]
        biases = [loader.vector(f"{name}{part}.bias", size) for part, size in parts.items() if bias]
        return np.concatenate(weights), np.concatenate(biases) if bias else None

    if state is None:
        return None
    if isinstance(state, ShortConvConfig):
        taps, conv_bias = conv({"conv": state.width}, state.taps, bias=state.bias)
        linears = {part: loader.linear(*stack) for part, stack in _short_conv(prefix, state, hidden).items()}
        return ShortConvWeights(**linears, taps=taps, conv_bias=conv_bias)
    channels = {"q_conv": state.key_size, "k_conv": state.key_size, "v_conv": state.inner}
    taps, conv_bias = conv(channels, state.taps, bias=state.conv_bias)
    norm = None
    if state.norm is not None and state.norm.weighted:
        size = state.value_dim if state.norm_shared else state.inner
        norm = loader.vector(f"{name}norm.weight", size) + np.float32(state.norm.offset)
        norm = np.tile(norm, state.inner // size)
    return RecurrenceWeights(
        **{part: loader.linear(*stack) for part, stack in _recurrence(prefix, state, hidden).items()},
        taps=taps,
        conv_bias=conv_bias,
        a_log=loader.vector(f"{name}a_log", state.heads),
        decay_bias=loader.vector(f"{name}decay_bias", state.decay_size),
        skip=loader.vector(f"{name}skip", state.heads) if state.skip else None,
        norm=norm,
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
    into, out = _experts_latent(prefix, experts, hidden)

    def norm(part: str, wanted: NormConfig | None) -> Norm | None:
        return None if wanted is None else loader.norm(f"{name}.{part}", wanted, hidden)

    return ExpertsWeights(
        router=loader.linear([f"{name}.router"], [experts.count], hidden),
        experts=loader.experts(f"{name}.experts", experts, experts.width(hidden)),
        latent_in=loader.linear(*into) if experts.latent else None,
        latent_out=loader.linear(*out) if experts.latent else None,
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
