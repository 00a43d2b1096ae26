"""Blocks of every kind with made-up weights: what all executors are checked on, and in what batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from swarm_node.shards.checkpoint.checkpoint import Checkpoint
from swarm_node.shards.formats.blocks.attention import (
    AttentionConfig,
    HeadNorm,
    IndexerConfig,
    LatentConfig,
    QueryScale,
)
from swarm_node.shards.formats.blocks.block import BlockConfig, LaurelConfig, SideConfig, StreamsConfig
from swarm_node.shards.formats.blocks.experts import ExpertsConfig, RouterConfig
from swarm_node.shards.formats.blocks.mlp import ACTIVATIONS, MlpConfig
from swarm_node.shards.formats.blocks.norm import NormConfig
from swarm_node.shards.formats.blocks.rope import RopeConfig
from swarm_node.shards.formats.config import ModelConfig, SidebandConfig
from swarm_node.shards.formats.qtypes import row_bytes
from swarm_node.shards.formats.tensors import FINAL_NORM, TensorInfo, block_tensors
from swarm_node.shards.models.random_blocks import random_checkpoint

HIDDEN, INNER, HEAD = 64, 96, 16
CONTEXT = 512
RMS, PLAIN = NormConfig(1e-5), NormConfig(1e-6, weighted=False)
OFFSET, LAYER = NormConfig(1e-5, offset=1.0), NormConfig(1e-5, "layer", bias=True)


def rope(dim: int = HEAD, **changes: Any) -> RopeConfig:
    return RopeConfig(dim, **changes)


def attention(**changes: Any) -> AttentionConfig:
    """Four heads of 16, two of keys and values."""
    plain = AttentionConfig(heads=4, kv_heads=2, head_dim=HEAD, scale=HEAD**-0.5, rope=rope())
    return replace(plain, **changes)


def latent(**changes: Any) -> AttentionConfig:
    """Four heads of 16 + 8, over a latent of 32."""
    parts = LatentConfig(kv_rank=32, nope_dim=16, rope_dim=8, value_dim=24, norm=RMS)
    plain = AttentionConfig(heads=4, kv_heads=1, head_dim=24, scale=24**-0.5, rope=rope(8), latent=parts)
    return replace(plain, **changes)


def indexed(top: int, own: bool = True, **changes: Any) -> AttentionConfig:
    """Latent attention of which a token sees ``top`` tokens, by an indexer of its own or another's."""
    indexer = IndexerConfig(heads=8, head_dim=12, top=top, norm=LAYER) if own else None
    parts = LatentConfig(32, 16, 8, 24, RMS, q_rank=40, indexer=indexer)
    return latent(latent=parts, **changes)


def experts(router: RouterConfig, **changes: Any) -> ExpertsConfig:
    """Eight experts, of which a token takes two."""
    return replace(ExpertsConfig(count=8, used=2, mlp=MlpConfig(32), router=router), **changes)


def block(attends: AttentionConfig | None = None, **changes: Any) -> BlockConfig:
    """Llama's, changed."""
    plain = BlockConfig(attends or attention(), MlpConfig(INNER), norm=RMS, mlp_norm=RMS)
    return replace(plain, **changes)


def sparse(router: RouterConfig, **changes: Any) -> BlockConfig:
    return block(mlp=None, experts=experts(router, **changes))


def after(norm: NormConfig) -> BlockConfig:
    return block(norm=None, mlp_norm=None, attention_out_norm=norm, mlp_out_norm=norm)


SOFTMAX = RouterConfig()
SIGMOID = RouterConfig("sigmoid", correction=True, groups=4, used_groups=2, group_scores="top2", scaling=2.5)
BOTH = block(
    norm=OFFSET,
    mlp_norm=OFFSET,
    attention_out_norm=OFFSET,
    mlp_out_norm=OFFSET,
    mlp=MlpConfig(INNER, "gelu_tanh"),
)
GEMMA_EXPERTS = experts(
    RouterConfig(norm=PLAIN, expert_scale=True),
    mlp=MlpConfig(32, "gelu_tanh"),
    norm=RMS,
    dense_out_norm=RMS,
    out_norm=RMS,
)
KEYS_AS_VALUES = attention(
    kv_heads=1, head_dim=32, rope=rope(32, type="proportional", turned_dim=8, theta=1e6)
)
GEMMA = [
    replace(BOTH, attention=replace(attends, qk_norm=HeadNorm(RMS), v_norm=PLAIN, scale=1.0), scalar=True)
    for attends in (attention(window=20), replace(KEYS_AS_VALUES, keys_as_values=True))
]

READING = [
    replace(each, attention=replace(each.attention, v_norm=None, keys_as_values=False)) for each in GEMMA
]
"""As those, of another block's keys and values."""

INDEXED: dict[str, tuple[BlockConfig, ...]] = {
    "indexer": (block(indexed(20)),) * 2,
    "indexer, one token": (block(indexed(1, rope=None)),),
    "indexer, all tokens": (block(indexed(500)),),
    "another's indexer": (
        block(indexed(33)),
        replace(sparse(SIGMOID), attention=indexed(1, own=False), index_of=0),
        block(indexed(1, own=False), index_of=0),
        block(indexed(40)),
        block(indexed(1, own=False), index_of=3),
    ),
    "indexer beside others": (block(attention(kv_heads=1)), block(indexed(9)), block(latent())),
}

CASES: dict[str, tuple[BlockConfig, ...]] = {
    "llama": (block(),) * 3,
    "biases": (block(attention(bias=True, out_bias=True), mlp=MlpConfig(INNER, bias=True)),),
    "one head a key": (block(attention(kv_heads=4)),),
    "one key": (block(attention(kv_heads=1, head_dim=24, rope=rope(24))),),
    # norms
    "offset norms": (block(norm=OFFSET, mlp_norm=OFFSET),) * 2,
    "layer norms": (block(norm=LAYER, mlp_norm=LAYER),) * 2,
    "layer norms without weights": (block(norm=NormConfig(1e-5, "layer", weighted=False), mlp_norm=PLAIN),),
    "norms after": (after(RMS),) * 2,
    "norms before and after": (BOTH,) * 2,
    "residual multiplier, scalar": (block(residual_multiplier=0.22, scalar=True),) * 2,
    "parallel": (block(norm=LAYER, mlp_norm=None, parallel=True),) * 2,
    "parallel, two norms": (block(parallel=True, residual_multiplier=0.5),) * 2,
    # heads
    "q/k norm": (block(attention(qk_norm=HeadNorm(RMS))),) * 2,
    "q/k norm of each head's weights": (block(attention(qk_norm=HeadNorm(LAYER, per_head=True))),),
    "q/k norm over all": (block(attention(qk_norm=HeadNorm(RMS, over="all"))),),
    "q/k layer norm over all": (block(attention(qk_norm=HeadNorm(LAYER, over="all"))),),
    "q/k norm with offset": (block(attention(qk_norm=HeadNorm(OFFSET))),),
    "q/k norm after rope": (block(attention(qk_norm=HeadNorm(RMS, after_rope=True))),),
    "q/k norm without weights after rope": (block(attention(qk_norm=HeadNorm(PLAIN, after_rope=True))),),
    "v norm": (block(attention(v_norm=RMS)),),
    "keys as values": (block(replace(KEYS_AS_VALUES, keys_as_values=True, v_norm=PLAIN, bias=True)),),
    "output gate": (block(attention(gate="channel", qk_norm=HeadNorm(OFFSET))),),
    "output gate of a head": (block(attention(gate="head", bias=True)),),
    # positions
    "partial rope": (block(attention(rope=rope(8), qk_norm=HeadNorm(RMS))),),
    "no rope": (block(attention(rope=None)), block()),
    "two ropes": (block(), block(attention(rope=rope(theta=1e6, type="linear", factor=8.0)))),
    "llama3 rope": (block(attention(rope=rope(type="llama3", original_max_position_embeddings=32))),),
    "yarn": (block(attention(rope=rope(type="yarn", factor=4.0, original_max_position_embeddings=32))),),
    "longrope": (
        block(
            attention(
                rope=rope(
                    type="longrope",
                    factor=8.0,
                    original_max_position_embeddings=64,
                    short_factors=tuple(1.0 + 0.1 * at for at in range(8)),
                    long_factors=tuple(1.5 + at for at in range(8)),
                )
            )
        ),
    ),
    "proportional rope": (block(KEYS_AS_VALUES),),
    "query scale": (block(attention(rope=None, query_scale=QueryScale(0.3, 16, 1))),),
    # what is seen, and scores
    "window": (block(attention(window=5)), block(attention(window=40))),
    "chunk": (block(attention(chunk=7)), block(attention(chunk=48))),
    "window of one": (block(attention(window=1)),),
    "softcap": (block(attention(softcap=2.0)),) * 2,
    "sinks": (block(attention(sinks=True)),) * 2,
    "sinks in a window, softcap": (block(attention(sinks=True, window=37, softcap=3.0)),),
    "scale": (block(attention(scale=0.7)),),
    # dense MLPs
    **{
        f"{activation}{'' if gated else ' without gate'}": (
            block(mlp=MlpConfig(INNER, activation, gated=gated, bias=not gated)),
        )
        for activation in ACTIVATIONS
        for gated in (True, False)
        if gated or activation != "clamped"
    },
    "clamped hard": (block(mlp=MlpConfig(INNER, "clamped", alpha=1.3, limit=0.5)),),
    # experts
    "experts": (sparse(SOFTMAX),) * 2,
    "experts, all used": (sparse(SOFTMAX, count=3, used=3),),
    "experts, not renormalised": (sparse(RouterConfig(renormalise=False, scaling=2.0)),),
    "sigmoid router in groups": (sparse(SIGMOID, shared=MlpConfig(48)),) * 2,
    "softmax router in groups": (
        sparse(RouterConfig(groups=4, used_groups=2, renormalise=False, scaling=4.0), used=3),
    ),
    "router with a floor": (sparse(RouterConfig("sigmoid", sum_floor=0.25)),),
    "gpt-oss": (
        block(
            attention(sinks=True, bias=True, out_bias=True, window=20),
            mlp=None,
            experts=experts(
                RouterConfig("softmax_of_used", bias=True, renormalise=False),
                mlp=MlpConfig(32, "clamped", bias=True),
                used=4,
            ),
        ),
    ),
    "sparsemixer": (
        sparse(RouterConfig("sparsemixer", renormalise=False, jitter=0.2), count=6),
        sparse(RouterConfig("sparsemixer", renormalise=False, jitter=0.01), count=6),
    ),
    "weighted inputs": (
        sparse(RouterConfig("sigmoid", renormalise=False, scale_input=True), used=1, shared=MlpConfig(INNER)),
    ),
    "shared expert with a gate": (sparse(SOFTMAX, shared=MlpConfig(48), shared_gate=True),),
    "experts without gate": (sparse(SOFTMAX, mlp=MlpConfig(32, "relu2", gated=False)),),
    "experts in a latent": (
        sparse(SIGMOID, latent=40, mlp=MlpConfig(32, "relu2", gated=False), shared=MlpConfig(48)),
        sparse(SOFTMAX, latent=96),
    ),
    "experts beside a dense MLP": (replace(BOTH, experts=GEMMA_EXPERTS, scalar=True),) * 2,
    "experts beside a dense MLP, no norms": (block(experts=experts(SOFTMAX)),),
    "parallel experts": (block(parallel=True, mlp_norm=None, mlp=None, experts=experts(SOFTMAX)),),
    # latent attention
    "latent": (block(latent()),) * 2,
    "latent of q": (
        block(latent(bias=False, latent=LatentConfig(32, 16, 8, 16, RMS, q_rank=40), out_bias=True)),
    ),
    "latent, yarn": (
        block(latent(rope=rope(8, type="yarn", factor=4.0, original_max_position_embeddings=32))),
    ),
    "latent, no rope": (block(latent(rope=None)),),
    "deepseek": (block(latent()), replace(sparse(SIGMOID, shared=MlpConfig(48)), attention=latent())),
    # what is read beside the residual, and keys and values of another block
    "values beside": (block(side=SideConfig(32, "gelu_tanh", RMS)),) * 2,
    "an odd number of values beside": (
        block(parallel=True, mlp_norm=None, scalar=True, side=SideConfig(7, "silu", OFFSET)),
    )
    * 2,
    "values beside experts": (
        replace(sparse(SOFTMAX), side=SideConfig(8, "relu", RMS)),
        replace(BOTH, experts=GEMMA_EXPERTS, scalar=True, side=SideConfig(8, "gelu", RMS)),
    ),
    "another's keys and values": (
        block(attention(window=20)),
        block(KEYS_AS_VALUES),
        block(attention(window=20, gate="head", qk_norm=HeadNorm(LAYER), bias=True), kv_of=0),
        block(replace(KEYS_AS_VALUES, sinks=True), kv_of=1),
        block(attention(window=20, qk_norm=HeadNorm(RMS, over="all")), kv_of=0),
    ),
    "gemma 4 E": tuple(
        replace(each, side=SideConfig(16, "gelu_tanh", RMS), kv_of=kv_of)
        for each, kv_of in ((GEMMA[0], None), (GEMMA[1], None), (READING[0], 0), (READING[1], 1))
    ),
    **INDEXED,
    # shapes of keys and values that differ
    "gemma": (GEMMA[0], GEMMA[0], GEMMA[1]),
    "mixed": (block(latent()), block(attention(kv_heads=1)), sparse(SOFTMAX), block(attention(window=9))),
}


ALTERNATING = StreamsConfig(3, 1, RMS, scaled=True)
OF_TORCH: dict[str, tuple[BlockConfig, ...]] = {
    "sparse gate": (block(mlp=MlpConfig(INNER, "gelu_tanh", sparsity=0.8)),) * 2,
    "learned residual": (block(laurel=LaurelConfig(6, RMS), scalar=True),) * 2,
    "streams": (block(streams=ALTERNATING),) * 2,
    "streams and values beside": (
        replace(BOTH, streams=ALTERNATING, side=SideConfig(7, "gelu_tanh", RMS), laurel=LaurelConfig(8, RMS)),
    )
    * 2,
}
"""What the other executors leave to torch."""


def model_of(blocks: tuple[BlockConfig, ...]) -> ModelConfig:
    side, streams = blocks[0].side, blocks[0].streams.count if blocks[0].streams else 1
    sideband = None if side is None else SidebandConfig(side.values, 100, RMS, 0.1, 4.0, 0.7)
    return ModelConfig("made up", blocks, HIDDEN, 100, RMS, CONTEXT, sideband=sideband, streams=streams)


def width_of(blocks: Sequence[BlockConfig]) -> int:
    """Values of a row that the first of them reads."""
    return model_of(tuple(blocks)).row_width(0)


def checkpoint_of(blocks: tuple[BlockConfig, ...], qtype: str = "F32") -> Checkpoint:
    """Blocks with random weights, matrices of type ``qtype`` where their width allows it."""
    config = model_of(blocks)
    manifest = {}
    shapes = [block_tensors(config, number) for number in range(len(blocks))]
    for name, shape in {FINAL_NORM: (HIDDEN,), **{k: v for each in shapes for k, v in each.items()}}.items():
        type_ = "F32" if len(shape) == 1 or shape[-1] % 32 else qtype
        rows = 1 if len(shape) == 1 else shape[0]
        manifest[name] = TensorInfo(name, shape, type_, rows * row_bytes(type_, shape[-1]))
    return random_checkpoint(config, manifest, range(len(blocks)))


NORMS = st.sampled_from([None, RMS, PLAIN, OFFSET, LAYER])


@st.composite
def head_norms(draw: st.DrawFn) -> HeadNorm:
    norm = draw(st.sampled_from([RMS, PLAIN, OFFSET, LAYER]))
    over = draw(st.sampled_from(["head", "all"]))
    return HeadNorm(
        norm, over, per_head=over == "head" and draw(st.booleans()), after_rope=draw(st.booleans())
    )


@st.composite
def attentions(draw: st.DrawFn) -> AttentionConfig:
    reach = draw(st.sampled_from([{}, {"window": 3}, {"window": 33}, {"chunk": 8}, {"chunk": 40}]))
    scores = {
        "softcap": draw(st.sampled_from([0.0, 3.0])),
        "scale": draw(st.sampled_from([0.1, 0.4])),
        "query_scale": draw(st.sampled_from([None, QueryScale(0.3, 16)])),
        "out_bias": draw(st.booleans()),
    }
    if draw(st.integers(0, 4)) == 0:
        rank = draw(st.sampled_from([0, 40]))
        parts = LatentConfig(32, 16, 8, draw(st.sampled_from([16, 24])), RMS, q_rank=rank)
        scores["sinks"] = False
        return latent(latent=parts, rope=draw(st.sampled_from([None, rope(8)])), **reach, **scores)
    dim = draw(st.sampled_from([8, 16, 40]))
    return attention(
        kv_heads=draw(st.sampled_from([1, 2, 4])),
        head_dim=dim,
        rope=draw(st.sampled_from([None, rope(dim), rope(8), rope(8, theta=1e6)])),
        qk_norm=draw(st.none() | head_norms()),
        v_norm=draw(NORMS.filter(lambda norm: norm is None or not norm.bias)),
        keys_as_values=draw(st.booleans()),
        gate=draw(st.sampled_from([None, "channel", "head"])),
        sinks=draw(st.booleans()),
        bias=draw(st.booleans()),
        **reach,
        **scores,
    )


@st.composite
def mlps(draw: st.DrawFn) -> MlpConfig:
    activation = draw(st.sampled_from(ACTIVATIONS))
    gated = activation == "clamped" or draw(st.booleans())
    return MlpConfig(draw(st.sampled_from([32, 40])), activation, gated, draw(st.booleans()))


@st.composite
def routers(draw: st.DrawFn) -> RouterConfig:
    scores = draw(st.sampled_from(["softmax", "sigmoid", "softmax_of_used", "sparsemixer"]))
    plain = scores == "sparsemixer"
    groups = {"groups": 4, "used_groups": 2, "group_scores": "top2"}
    return RouterConfig(
        scores=scores,
        bias=draw(st.booleans()),
        correction=not plain and draw(st.booleans()),
        **({} if plain or draw(st.booleans()) else groups),
        renormalise=draw(st.booleans()),
        sum_floor=draw(st.sampled_from([0.0, 1e-20, 0.1])),
        scaling=draw(st.sampled_from([1.0, 2.5])),
        expert_scale=draw(st.booleans()),
        scale_input=draw(st.booleans()),
        jitter=0.1,
        norm=draw(st.sampled_from([None, PLAIN])),
    )


@st.composite
def block_configs(draw: st.DrawFn) -> BlockConfig:
    """Any block, small: also such as no model has."""
    dense = draw(st.none() | mlps())
    chosen = None
    if dense is None or draw(st.booleans()):
        shared = draw(st.none() | mlps())
        chosen = experts(
            draw(routers()), mlp=draw(mlps()), shared=shared, shared_gate=bool(shared) and draw(st.booleans())
        )
        if dense is not None:
            chosen = replace(chosen, norm=draw(NORMS), dense_out_norm=draw(NORMS), out_norm=draw(NORMS))
    return BlockConfig(
        draw(attentions()),
        dense,
        chosen,
        norm=draw(NORMS),
        mlp_norm=draw(NORMS),
        attention_out_norm=draw(NORMS),
        mlp_out_norm=draw(NORMS),
        parallel=draw(st.booleans()),
        residual_multiplier=draw(st.sampled_from([1.0, 0.3])),
        scalar=draw(st.booleans()),
    )
