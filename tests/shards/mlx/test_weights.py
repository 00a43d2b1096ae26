"""How matrices of files are held on MLX: what the file says, without loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.layers.quantize import GROUP
from swarm_node.shards.loading import load_backend
from swarm_node.shards.mlx import weights as mlx_weights
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.random_blocks import random_checkpoint
from swarm_node.swarm.types import Span
from tests.shards.mlx.mlx_cases import agree, both, outputs
from tests.shards.mlx.mlx_checkpoints import quantize_directory


@pytest.mark.parametrize(
    "qtype", ["F16", "BF16", "Q4_0", "Q4_1", "Q4_K", "Q8_0", "Q6_K", "MXFP4", "IQ3_S", "IQ2_S", "TQ1_0"]
)
def test_gguf_files_lose_nothing(gguf_llama: Any, sessions: Any, qtype: str) -> None:
    path = gguf_llama(qtype)
    pair = both(path, Span(0, 2), ours=LoadOptions(device="mlx"))
    held = dict.fromkeys(("F16", "BF16", "Q6_K", "IQ2_S"), "float32")
    held |= {name: f"int8 ({name})" for name in ("Q8_0", "IQ3_S", "TQ1_0")} | {"MXFP4": "fp4 (MXFP4)"}
    assert pair[1].weights == held.get(qtype, f"int4 ({qtype})")
    # Random blocks have scales of any size: these hidden states are large.
    wanted, got = (outputs(sessions, model) for model in pair)
    for ours, theirs in zip(got, wanted, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours / scale, theirs / scale, atol=1e-3, rtol=0)


def test_grouped_weights_are_the_files_values(gguf_llama: Any) -> None:
    """The integers and scales that MLX gets, taken apart by MLX."""
    for qtype in ("Q4_0", "Q4_1", "Q4_K", "Q8_0", "MXFP4", "IQ1_S", "IQ2_XXS", "IQ3_XXS", "TQ2_0"):
        with open_checkpoint(str(gguf_llama(qtype, name=f"{qtype}.gguf"))) as checkpoint:
            raw = checkpoint.tensor("model.layers.0.self_attn.q_proj.weight")
            held = mlx_weights._as_in_file(raw)
            values = mx.dequantize(
                mx.array(held.packed),
                mx.array(held.scales),
                None if held.biases is None else mx.array(held.biases),
                group_size=GROUP,
                bits=4 if qtype in ("Q4_0", "Q4_1", "Q4_K", "MXFP4") else 8,
                mode="affine" if held.biases is not None else "mxfp4",
            )
            np.testing.assert_allclose(
                np.array(values.astype(mx.float32)), raw.dequantize(), atol=1e-6, rtol=1e-5
            )


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_checkpoints_quantized_by_mlx(tmp_path: Path, wide: Path, sessions: Any, bits: int) -> None:
    folder = quantize_directory(wide, tmp_path / "q", bits=bits)
    pair = both(folder, Span(0, 2), ours=LoadOptions(device="mlx"))
    assert pair[1].weights == f"int{bits} (MLX{bits}_64_F32)"
    assert pair[1].weight_bytes < pair[0].weight_bytes * (bits + 2) / 32
    agree(sessions, pair)


def test_matrices_that_are_held_in_several_forms(tmp_path: Path, wide: Path, sessions: Any) -> None:
    prefix = "model.layers.0."
    others = {
        prefix + "self_attn.v_proj": {"bits": 8, "group_size": 32},
        prefix + "mlp.up_proj": False,
        prefix + "mlp.down_proj": {"bits": 4, "group_size": 128},
    }
    folder = quantize_directory(wide, tmp_path / "q", others=others)
    pair = both(folder, Span(0, 2), ours=LoadOptions(device="mlx"))
    held = {"int4 (MLX4_64_F32)", "int8 (MLX8_32_F32)", "int4 (MLX4_128_F32)", "float32"}
    assert set(pair[1].weights.split(" + ")) == held
    agree(sessions, pair)


@pytest.mark.parametrize("quantize", ["int4", "int8"])
def test_dense_files_are_rounded_as_for_torch(wide: Path, sessions: Any, quantize: str) -> None:
    options = LoadOptions(device="mlx", quantize=quantize)
    kernels = LoadOptions(dtype="float32", quantize=quantize, kernels="native")
    pair = both(wide, Span(0, 2), ours=options, theirs=kernels)
    assert pair[1].weights == quantize
    agree(sessions, pair, {"atol": 1e-4, "rtol": 1e-4})


def test_sixteen_bits(wide: Path, sessions: Any) -> None:
    for dtype in ("bfloat16", "float16"):
        options = {"dtype": dtype, "quantize": "none"}
        ours = LoadOptions(device="mlx", **options)
        pair = both(wide, Span(0, 2), ours=ours, theirs=LoadOptions(kernels="torch", **options))
        assert pair[1].weights == dtype
        assert pair[1].kv_dtype("auto", exact=False) == dtype
        agree(sessions, pair, {"atol": 6e-2, "rtol": 6e-2}, kv_dtype=dtype)


def test_scales_keep_their_values_where_sixteen_bits_do_not_hold_them(wide: Path, tmp_path: Path) -> None:
    for of_file, scales, held_in in (
        (mx.bfloat16, "float32", mx.bfloat16),  # the file's own: nothing wider is needed
        (mx.float32, "float32", mx.float32),  # would be rounded
        (mx.float32, "bfloat16", mx.bfloat16),  # as was asked for
    ):
        folder = quantize_directory(wide, tmp_path / f"{of_file}{scales}", dtype=of_file)
        with open_checkpoint(str(folder)) as checkpoint:
            plan = mlx_weights.MlxPlan("bfloat16", "auto", scales, wide=False)
            held = mlx_weights.MlxLoader(checkpoint, plan).linear(
                ["model.layers.0.mlp.down_proj"], [128], 256
            )
        assert held._weight.scales.dtype == held_in
        assert held(mx.zeros((1, 256), mx.bfloat16)).dtype == mx.bfloat16


@pytest.mark.parametrize(
    ("options", "native", "plan"),
    [
        ({}, "BF16", ("bfloat16", "float32")),
        ({}, "Q4_1", ("bfloat16", "float32")),
        ({}, "F16", ("float16", "float32")),
        ({}, "F32", ("float32", "float32")),
        ({"dtype": "float16"}, "Q4_1", ("float16", "float16")),
        ({"dtype": "float32"}, "BF16", ("float32", "float32")),
    ],
)
def test_types_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], native: str, plan: tuple[str, ...]
) -> None:
    monkeypatch.setattr(mlx_weights, "on_gpu", lambda: True)
    resolved = mlx_weights.MlxPlan.resolve(LoadOptions(device="mlx", **options), native)
    assert (resolved.dtype, resolved.scales) == plan
    assert not resolved.wide


def test_float32_scales_beside_sixteen_bit_activations(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hf_llama: Any, sessions: Any
) -> None:
    """As a GPU holds most GGUF files."""
    dense = hf_llama(
        hidden_size=128, intermediate_size=256, scale=lambda cols: cols**-0.5, torch_dtype="bfloat16"
    )
    monkeypatch.setattr(mlx_weights, "on_gpu", lambda: True)
    pair = both(quantize_directory(dense, tmp_path / "q"), ours=LoadOptions(device="mlx"))
    assert pair[1]._dtype == "bfloat16"
    assert pair[1]._blocks[0]._feed_forward._down._weight.scales.dtype == mx.float32
    agree(sessions, pair, {"atol": 8e-2, "rtol": 8e-2}, kv_dtype="bfloat16")


@pytest.mark.parametrize("form", ["Q4_K", "mlx"])
def test_made_up_blocks_are_held_as_those_of_the_file(
    tmp_path: Path, wide: Path, gguf_llama: Any, sessions: Any, form: str
) -> None:
    """A node measures itself on them before it has the model."""
    path = gguf_llama(form) if form != "mlx" else quantize_directory(wide, tmp_path / "q")
    with open_checkpoint(str(path)) as checkpoint:
        options = LoadOptions(device="mlx")
        real = load_backend(checkpoint, Span(0, 1), options)
        made = random_checkpoint(checkpoint.config, checkpoint.manifest, [0, 0])
    model = load_backend(made, Span(0, 2), options)
    assert model.weights == real.weights
    assert model.weight_bytes == 2 * real.weight_bytes
    assert torch.isfinite(sessions(model).forward(torch.ones(3, model.config.hidden_size))).all()
