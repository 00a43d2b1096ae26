"""What passes between a model's blocks, and where it may be cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from swarm_node.shards.checkpoint.checkpoint import check_span
from swarm_node.shards.formats.blocks.attention import AttentionConfig, HeadNorm, IndexerConfig, LatentConfig
from swarm_node.shards.formats.blocks.block import BlockConfig, SideConfig, StreamsConfig
from swarm_node.shards.formats.blocks.mlp import MlpConfig
from swarm_node.shards.formats.blocks.norm import NormConfig
from swarm_node.shards.formats.config import ModelConfig, SidebandConfig
from swarm_node.shards.formats.hf.config import hf_config
from swarm_node.shards.formats.tensors import block_tensors, client_tensors
from swarm_node.swarm.boundaries import Boundaries
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError, UsageError
from swarm_node.swarm.types import Span

NORM = NormConfig(1e-6)
BLOCK = BlockConfig(AttentionConfig(4, 2, 8, 0.3, None), MlpConfig(32), norm=NORM)
WINDOW = replace(BLOCK, attention=replace(BLOCK.attention, window=5))
LAYER = NormConfig(1e-6, "layer", bias=True)
LATENT = LatentConfig(32, 16, 8, 24, NORM, q_rank=40, indexer=IndexerConfig(4, 12, 5, LAYER))
INDEXED = replace(BLOCK, attention=AttentionConfig(4, 1, 24, 0.3, None, latent=LATENT))
UNINDEXED = replace(INDEXED, attention=replace(INDEXED.attention, latent=replace(LATENT, indexer=None)))
SIDE = replace(BLOCK, side=SideConfig(8, "silu", NORM))
BESIDE = SidebandConfig(8, 100, NORM, 0.1, 3.0, 0.7)
E2B: dict[str, Any] = {
    "model_type": "gemma4_text",
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "num_kv_shared_layers": 20,
    "use_double_wide_mlp": True,
    "sliding_window": 512,
    "layer_types": [*["sliding_attention"] * 4, "full_attention"] * 7,
    "final_logit_softcapping": 30.0,
}
"""Of google/gemma-4-E2B."""


def model(*blocks: BlockConfig, **changes: Any) -> ModelConfig:
    return ModelConfig("made up", blocks, 64, 100, NORM, 512, **changes)


def test_rows_of_most_models_are_the_residual_and_every_boundary_is_a_cut() -> None:
    config = model(BLOCK, BLOCK)
    assert config.boundaries == Boundaries.alike(2, 64)
    assert config.cuts == (0, 1, 2)


def test_a_row_has_what_the_blocks_to_come_read() -> None:
    config = model(SIDE, SIDE, SIDE, sideband=BESIDE)
    assert config.boundaries.widths == (88, 80, 72, 64)
    assert config.boundaries.widths == tuple(map(config.row_width, range(4)))


def test_a_residual_of_several_streams_is_as_many_times_as_wide() -> None:
    streams = StreamsConfig(4, 0, NORM, scaled=True)
    config = model(*[replace(SIDE, streams=streams)] * 2, sideband=BESIDE, streams=4)
    assert config.boundaries == Boundaries((272, 264, 256))
    for blocks, count in (((BLOCK,), 4), ((replace(BLOCK, streams=streams),), 1)):
        with pytest.raises(CheckpointError, match=f"not every block has {count} residual streams"):
            model(*blocks, streams=count)
    for active in (-1, 4):
        with pytest.raises(CheckpointError, match="is active"):
            replace(streams, active=active)
    wide = replace(streams, count=16)
    with pytest.raises(CheckpointError, match="a row has 131072 values, at most 65536"):
        ModelConfig("wide", (replace(BLOCK, streams=wide),), 8192, 100, NORM, 512, streams=16)


def test_no_cut_is_between_a_block_and_one_that_reads_its_keys_and_values() -> None:
    reads = [replace(BLOCK, kv_of=1), replace(BLOCK, kv_of=4), replace(WINDOW, kv_of=2)]
    assert model(BLOCK, BLOCK, WINDOW, reads[0], BLOCK, reads[1]).cuts == (0, 1, 4, 6)
    assert model(BLOCK, BLOCK, WINDOW, reads[0], BLOCK, reads[2]).cuts == (0, 1, 6)


def test_no_cut_is_between_a_block_and_one_that_uses_its_indexer() -> None:
    uses = [replace(UNINDEXED, index_of=of) for of in (1, 4)]
    assert model(INDEXED, INDEXED, uses[0], uses[0], INDEXED, uses[1], BLOCK).cuts == (0, 1, 4, 6, 7)


def test_glm_5_2() -> None:
    document = {"model_type": "glm_moe_dsa", "index_topk_freq": 4, "index_skip_topk_offset": 3}
    config = hf_config(document, {}, "config.json")
    assert config.cuts == (0, 1, *range(2, 79, 4))
    assert [block.index_of for block in config.blocks[:8]] == [None, None, None, 2, 2, 2, None, 6]
    assert not any("indexer" in name for name in block_tensors(config, 3))
    assert block_tensors(config, 2)["model.layers.2.self_attn.indexer.wq_b.weight"] == (4096, 2048)
    with pytest.raises(UsageError, match="cannot be served alone") as caught:
        check_span(Span(4, 8), config)
    assert caught.value.hint == "Choose --blocks 2-9."


def test_gemma_4_e2b() -> None:
    config = hf_config(E2B, {}, "config.json")
    assert config.cuts == config.boundaries.cuts == (*range(14), 35)
    assert [config.row_width(at) for at in (0, 13, 34, 35)] == [10_496, 7_168, 1_792, 1_536]
    kinds = [(block.kv_of, block.mlp.inner) for block in config.blocks if block.mlp is not None]
    assert set(kinds[:15]) == {(None, 6144)}
    assert kinds[15:] == [*[(13, 12288)] * 4, (14, 12288)] * 4
    assert config.blocks[34].attention.kv == config.blocks[14].attention.kv
    assert not any("k_" in name or "v_" in name for name in block_tensors(config, 34))
    assert client_tensors(config)["model.embed_tokens_per_layer.weight"] == (262_144, 8_960)


@pytest.mark.parametrize(
    ("span", "nearest"),
    [
        (Span(14, 35), "13-34"),
        (Span(3, 20), "3-34"),
        (Span(13, 34), "13-34"),
        (Span(20, 21), "13-34"),
    ],
    ids=str,
)
def test_a_span_that_cannot_be_cut_out_is_refused_with_the_nearest(span: Span, nearest: str) -> None:
    config = hf_config(E2B, {}, "config.json")
    with pytest.raises(UsageError, match=f"blocks {span} cannot be served alone") as caught:
        check_span(span, config)
    assert caught.value.hint == f"Choose --blocks {nearest}."
    check_span(Span.parse(nearest), config)


LATENTLESS = replace(BLOCK, attention=replace(BLOCK.attention, kv_heads=1))


@pytest.mark.parametrize(
    ("blocks", "changes", "said"),
    [
        ((SIDE,), {}, "do not read the values beside the residual"),
        ((BLOCK,), {"sideband": BESIDE}, "do not read the values beside the residual"),
        ((SIDE, BLOCK), {"sideband": BESIDE}, "do not read the values beside the residual"),
        (
            (replace(SIDE, side=SideConfig(2**16, "silu", NORM)),),
            {"sideband": replace(BESIDE, values=2**16)},
            "a row has 65600 values, at most 65536",
        ),
        ((replace(BLOCK, kv_of=0),), {}, "block 0 reads keys and values of block 0"),
        ((BLOCK, replace(BLOCK, kv_of=2), BLOCK), {}, "block 1 reads keys and values of block 2"),
        ((BLOCK, replace(BLOCK, kv_of=-1)), {}, "block 1 reads keys and values of block -1"),
        ((BLOCK, replace(BLOCK, kv_of=0), replace(BLOCK, kv_of=1)), {}, "block 2 reads keys and values"),
        ((BLOCK, replace(LATENTLESS, kv_of=0)), {}, "other shapes"),
        ((BLOCK, replace(WINDOW, kv_of=0)), {}, "other shapes"),
        ((replace(UNINDEXED, index_of=0),), {}, "block 0 uses the indexer of block 0"),
        ((INDEXED, replace(UNINDEXED, index_of=-1)), {}, "block 1 uses the indexer of block -1"),
        ((UNINDEXED, replace(UNINDEXED, index_of=0)), {}, "block 1 uses the indexer of block 0"),
        ((INDEXED, INDEXED, replace(UNINDEXED, index_of=0)), {}, "which is not that of the block before"),
        ((INDEXED, UNINDEXED, replace(UNINDEXED, index_of=0)), {}, "which is not that of the block before"),
    ],
)
def test_blocks_that_do_not_go_together(
    blocks: tuple[BlockConfig, ...], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        model(*blocks, **changes)


@pytest.mark.parametrize("key", ["values", "vocab_size", "projection_scale", "embedding_scale", "scale"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_numbers_of_a_sideband_are_bounded(key: str, value: float) -> None:
    with pytest.raises(CheckpointError):
        replace(BESIDE, **{key: value})


def test_a_block_without_keys_of_its_own_has_nothing_to_do_with_them() -> None:
    for changes in ({"v_norm": NORM}, {"keys_as_values": True}):
        with pytest.raises(UnsupportedModelError, match="has none of its own"):
            replace(BLOCK, attention=replace(BLOCK.attention, **changes), kv_of=0)
    normed = replace(BLOCK, attention=replace(BLOCK.attention, qk_norm=HeadNorm(NORM)), kv_of=0)
    names = {name.removeprefix("model.layers.1.") for name in block_tensors(model(BLOCK, normed), 1)}
    assert {name for name in names if name.startswith("self_attn")} == {
        "self_attn.q_proj.weight",
        "self_attn.q_norm.weight",
        "self_attn.o_proj.weight",
    }


@pytest.mark.parametrize("key", ["heads", "head_dim", "top"])
@pytest.mark.parametrize("value", [0, -1, 2**40])
def test_numbers_of_an_indexer_are_bounded(key: str, value: int) -> None:
    with pytest.raises(CheckpointError, match="indexer"):
        replace(IndexerConfig(4, 12, 5, LAYER), **{key: value})


def test_an_indexer_needs_what_it_reads() -> None:
    for changes in ({"q_rank": 0}, {"rope_dim": 13}):
        with pytest.raises(CheckpointError, match="an indexer"):
            replace(LATENT, **changes)
    for block in (BLOCK, INDEXED):
        with pytest.raises(UnsupportedModelError, match="another's indexer"):
            replace(block, index_of=0)


@pytest.mark.parametrize("values", [0, 2**20 + 1])
def test_a_side_is_bounded(values: int) -> None:
    with pytest.raises(CheckpointError):
        SideConfig(values, "silu", NORM)


def test_a_side_has_an_activation_of_one_input() -> None:
    for name in ("clamped", "swish2"):
        with pytest.raises(UnsupportedModelError):
            SideConfig(8, name, NORM)


def test_a_token_without_values_beside_the_residual_is_none_of_gemma_4() -> None:
    with pytest.raises(UnsupportedModelError, match="vocab_size_per_layer_input is 262000, fewer than"):
        hf_config({**E2B, "vocab_size_per_layer_input": 262_000}, {}, "config.json")


def test_shared_blocks_need_one_of_their_kind_before_them() -> None:
    kinds = ["sliding_attention"] * 15 + ["full_attention"] * 20
    with pytest.raises(UnsupportedModelError, match="num_kv_shared_layers is 20: no block before these"):
        hf_config({**E2B, "layer_types": kinds}, {}, "config.json")
