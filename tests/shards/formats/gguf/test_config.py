"""GGUF metadata as llama.cpp reads it: rope scaling, lists, and keys that would change results."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.blocks.rope import RopeConfig
from swarm_node.shards.formats.config import ModelConfig
from swarm_node.shards.formats.gguf.unread import NEUTRAL
from swarm_node.shards.layers.rope import Rope, frequencies
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError

GGUFLlama = Callable[..., Path]
Extra = Callable[[gguf.GGUFWriter], Any]
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def read(gguf_llama: GGUFLlama, extra: Extra | None = None) -> ModelConfig:
    with open_checkpoint(str(gguf_llama(extra=extra))) as checkpoint:
        return checkpoint.config


def rope_of(config: ModelConfig) -> RopeConfig:
    rope = config.blocks[0].attention.rope
    assert rope is not None
    return rope


def scaling(kind: gguf.RopeScalingType | None, factor: float | None = 4.0, **more: float) -> Extra:
    def extra(writer: gguf.GGUFWriter) -> None:
        if kind is not None:
            writer.add_rope_scaling_type(kind)
        if factor is not None:
            writer.add_rope_scaling_factor(factor)
        for key, value in more.items():
            if isinstance(value, int):
                writer.add_uint32(f"llama.rope.scaling.{key}", value)
            else:
                writer.add_float32(f"llama.rope.scaling.{key}", value)

    return extra


@pytest.mark.parametrize(
    ("extra", "rope", "context"),
    [
        (None, {"rope_type": "default"}, 128),
        (scaling(None), LINEAR, 512),  # linear is what llama.cpp takes where no type is named
        (lambda w: w.add_float32("llama.rope.scale_linear", 4.0), LINEAR, 512),
        (scaling(gguf.RopeScalingType.LINEAR), LINEAR, 512),
        (scaling(gguf.RopeScalingType.LINEAR, 0.0), {"rope_type": "default"}, 128),
        (scaling(gguf.RopeScalingType.LINEAR, None), {"rope_type": "default"}, 128),
        (scaling(gguf.RopeScalingType.NONE), {"rope_type": "default"}, 128),
        (scaling(gguf.RopeScalingType.YARN, original_context_length=64), YARN, 256),
        (scaling(gguf.RopeScalingType.YARN), {**YARN, "original_max_position_embeddings": 128}, 512),
        (
            scaling(
                gguf.RopeScalingType.YARN, original_context_length=64, yarn_beta_fast=16.0, yarn_beta_slow=2.0
            ),
            {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
            256,
        ),
        (
            scaling(gguf.RopeScalingType.YARN, original_context_length=64, attn_factor=1.5),
            {**YARN, "attention_factor": 1.5 * (0.1 * math.log(4.0) + 1.0)},
            256,
        ),
    ],
)
def test_rope_scaling(gguf_llama: GGUFLlama, extra: Extra | None, rope: dict[str, Any], context: int) -> None:
    config = read(gguf_llama, extra)
    theirs = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=128,
        rope_parameters={"rope_theta": 10000.0, **rope},
    )
    want = LlamaRotaryEmbedding(theirs)
    inv_freq, factor = frequencies(rope_of(config))
    np.testing.assert_allclose(inv_freq, want.inv_freq.numpy(), rtol=1e-6, atol=0)
    assert factor == pytest.approx(want.attention_scaling)
    assert config.max_position_embeddings == context


@pytest.mark.parametrize(("kind", "stretch"), [(gguf.RopeScalingType.LINEAR, 4.0), (None, 1.0)])
def test_a_factor_on_what_is_rotated(
    gguf_llama: GGUFLlama, kind: gguf.RopeScalingType | None, stretch: float
) -> None:
    """``attn_factor`` multiplies cosines and sines, whatever the type."""
    config = read(gguf_llama, scaling(kind, stretch if kind else None, attn_factor=1.25))
    plain = read(gguf_llama, scaling(kind, stretch if kind else None))
    for got, base in zip(
        Rope(rope_of(config)).rows([(3, 5)]),
        Rope(rope_of(plain)).rows([(3, 5)]),
        strict=True,
    ):
        np.testing.assert_allclose(got, base * 1.25, rtol=1.3e-6, atol=1e-5)


def test_frequency_factors_beside_linear_scaling(gguf_llama: GGUFLlama) -> None:
    factors = np.linspace(1, 8, 32, dtype=np.float32)

    def extra(writer: gguf.GGUFWriter) -> None:
        scaling(gguf.RopeScalingType.LINEAR)(writer)
        writer.add_tensor("rope_freqs.weight", factors)

    inv_freq, _ = frequencies(rope_of(read(gguf_llama, extra)))
    plain, _ = frequencies(rope_of(read(gguf_llama)))
    np.testing.assert_allclose(inv_freq, plain / 4 / factors, rtol=1.3e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (lambda w: w.add_causal_attention(False), r"attention\.causal is False, which is not supported"),
        (lambda w: w.add_float32("llama.attention.scale", 0.5), r"attention\.scale is 0\.5"),
        (lambda w: w.add_float32("llama.logit_scale", 0.25), r"logit_scale is 0\.25"),
        (lambda w: w.add_float32("llama.residual_scale", 0.25), r"residual_scale is 0\.25"),
        (lambda w: w.add_float32("llama.embedding_scale", 3.0), r"embedding_scale is 3\.0"),
        (lambda w: w.add_float32("llama.attention.clamp_kqv", 8.0), r"clamp_kqv is 8\.0"),
        (lambda w: w.add_float32("llama.final_logit_softcapping", 30.0), "final_logit_softcapping is 30"),
        (lambda w: w.add_uint32("llama.no_such_key", 3), r"llama\.no_such_key is 3: what it means is not"),
        (lambda w: w.add_sliding_window(64), "sliding_window is 64: this family has no"),
        (scaling(gguf.RopeScalingType.YARN, yarn_ext_factor=0.5), "yarn_ext_factor is 0.5"),
        (scaling(gguf.RopeScalingType.YARN, yarn_attn_factor=1.5), "yarn_attn_factor is 1.5"),
        (scaling(gguf.RopeScalingType.YARN, yarn_log_multiplier=1.0), "yarn_log_multiplier is 1.0"),
        (scaling(gguf.RopeScalingType.LONGROPE), "type is longrope, without its factors"),
        (
            lambda w: (w.add_sliding_window(128), w.add_rope_freq_base_swa(77.0)),
            r"rope\.freq_base_swa is 77\.0, which is not supported",
        ),
        (lambda w: w.add_uint32("llama.nextn_predict_layers", 1), "is 1: this family has no such blocks"),
        # A window that is longer than the context hides something once the context is stretched.
        (
            lambda w: (w.add_sliding_window(200), scaling(None)(w)),
            "sliding_window is 200: this family has no",
        ),
    ],
)
def test_what_changes_results_is_refused_by_name(gguf_llama: GGUFLlama, extra: Extra, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read(gguf_llama, extra)


@pytest.mark.parametrize("key", NEUTRAL)
def test_neutral_values_are_taken(gguf_llama: GGUFLlama, key: str) -> None:
    plain = read(gguf_llama)
    for value in NEUTRAL[key]:
        add = gguf.GGUFWriter.add_bool if isinstance(value, bool) else gguf.GGUFWriter.add_float32
        assert read(gguf_llama, lambda w, add=add, value=value: add(w, f"llama.{key}", value)) == plain


def test_what_changes_nothing_is_taken(gguf_llama: GGUFLlama) -> None:
    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_float32("llama.attention.scale", 64**-0.5)
        writer.add_sliding_window(128)
        writer.add_vocab_size(50)
        writer.add_expert_count(0)
        writer.add_uint32("llama.expert_gating_func", 2)
        writer.add_rope_freq_base_swa(10000.0)
        writer.add_layer_norm_eps(0.5)
        writer.add_parallel_residual(True)  # as of the converter of early 2024
        writer.add_uint32("llama.ssm.inner_size", 0)  # what is zero is off
        writer.add_array("llama.rope.dimension_sections", [0, 0, 0, 0])
        del writer.kv_data[0]["llama.attention.head_count"]
        writer.add_head_count([4, 4])  # of each block

    assert read(gguf_llama, extra) == read(gguf_llama)


def test_keys_of_windows_are_taken_where_there_are_none(gguf_llama: GGUFLlama) -> None:
    """llama.cpp writes them for any model."""

    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_freq_base_swa(77.0)
        writer.add_key_length_swa(8)

    assert read(gguf_llama, extra) == read(gguf_llama)


@pytest.mark.parametrize(
    ("key", "add", "message"),
    [
        ("context_length", None, "context_length is missing, expected a whole number from 1"),
        ("attention.layer_norm_rms_epsilon", None, "rms_epsilon is missing, expected a number"),
        ("context_length", lambda w: w.add_string("llama.context_length", "x"), "context_length is 'x'"),
        ("block_count", lambda w: w.add_uint32("llama.block_count", 2**31), "block_count is 2147483648"),
        ("rope.freq_base", lambda w: w.add_rope_freq_base(math.nan), "freq_base is nan, expected a number"),
        (
            "rope.freq_base",
            lambda w: w.add_rope_freq_base(0.0),
            r"freq_base is 0\.0, expected a number above 1",
        ),
        (
            "feed_forward_length",
            lambda w: w.add_array("llama.feed_forward_length", [1, 2, 3]),
            "is a list of 3 items, expected one for each of 2 blocks",
        ),
        ("rope.dimension_count", lambda w: w.add_rope_dimension_count(65), "dimension_count is 65, expected"),
        (
            "feed_forward_length",
            lambda w: w.add_array("llama.feed_forward_length", ["a"]),
            "not an array of numbers",
        ),
    ],
)
def test_wrong_values(gguf_llama: GGUFLlama, key: str, add: Extra | None, message: str) -> None:
    def extra(writer: gguf.GGUFWriter) -> None:
        del writer.kv_data[0][f"llama.{key}"]
        if add is not None:
            add(writer)

    with pytest.raises(CheckpointError, match=message):
        read(gguf_llama, extra)
