"""Blocks with a state in other layouts than transformers saves: as the hub has them, as llama.cpp wrote them
before, and quantized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.loading import load_backend, load_client_model
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError
from swarm_node.swarm.types import Span

from .gguf_files import write_gguf
from .models import ids, logits, saved, small_model
from .test_families import EXECUTORS, assert_close, computed, through
from .test_layouts import Tensors, assert_same, changed, read, rewritten


def test_convolutions_of_other_sizes_than_a_third(tmp_path: Path) -> None:
    """As on the hub: transformers cuts them in three equal parts when it saves."""
    model = small_model("olmo_hybrid", linear_num_key_heads=2, linear_value_head_dim=12)
    model.save_pretrained(tmp_path)

    def cut(tensors: Tensors) -> Tensors:
        for name in [name for name in tensors if ".q_conv1d." in name]:
            names = [name.replace(".q_", f".{each}_") for each in "qkv"]
            whole = np.concatenate([tensors[each] for each in names])
            parts = np.split(whole, [16, 32])
            tensors |= {each: part.copy() for each, part in zip(names, parts, strict=True)}
        return tensors

    with open_checkpoint(str(rewritten(tmp_path, cut))) as checkpoint:
        assert_close(computed(checkpoint, ids(model)), logits(model))


def test_names_that_transformers_computes_with(tmp_path: Path) -> None:
    """Kimi Linear's and OLMo Hybrid's, which it gives back under their makers' names."""
    _, folder = saved("kimi_linear", tmp_path / "kimi")
    wanted = read(folder)

    def renamed(tensors: Tensors) -> Tensors:
        found = {}
        for name, value in tensors.items():
            for part in ("f_a_proj", "f_b_proj", "dt_bias", "A_log"):
                name = name.replace(f"self_attn.{part}", f"self_attn.forget_gate.{part}")
            found[name.replace("block_sparse_moe.", "mlp.")] = value
        return found

    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}

    def experts(tensors: Tensors) -> Tensors:
        found = renamed(tensors)
        for old, new in names.items():
            found = {name.replace(f".{old}.", f".{new}."): value for name, value in found.items()}
        return found

    assert_same(read(rewritten(folder, experts)), wanted)
    _, folder = saved("olmo_hybrid", tmp_path / "olmo")
    wanted = read(folder)

    def plain(tensors: Tensors) -> Tensors:
        found = {
            name.replace("attention_layer_norm", "input_layernorm").replace(
                "feedforward_layer_norm", "post_attention_layernorm"
            ): value
            for name, value in tensors.items()
            if "conv1d" not in name
        }
        for name in [name for name in tensors if ".q_conv1d." in name]:
            parts = [tensors[name.replace(".q_", f".{each}_")] for each in "qkv"]
            found[name.replace(".q_", ".")] = np.concatenate(parts)
        return found

    assert_same(read(rewritten(folder, plain)), wanted)


def test_gguf_projections_of_before(tmp_path: Path) -> None:
    """Qwen3-Next's q, k, v and z in one tensor, key head by key head."""
    path = write_gguf(small_model("qwen3_next"), tmp_path / "model.gguf")

    def together(tensors: Tensors) -> Tensors:
        for block in range(3):
            qkv, z = (tensors.pop(f"blk.{block}.attn_{name}.weight") for name in ("qkv", "gate"))
            q, k, v = np.split(qkv, [16, 32])
            heads = [part.reshape(2, -1, 64) for part in (q, k, v, z)]
            tensors[f"blk.{block}.ssm_in.weight"] = np.concatenate(heads, 1).reshape(-1, 64)
        return tensors

    assert_same(read(changed(path, together)), read(path))


def test_gguf_says_which_blocks_are_recurrent(tmp_path: Path) -> None:
    """As newer files do, where no period says it; others may list the blocks behind the last, too."""
    kinds = ["full_attention", "linear_attention", "linear_attention", "full_attention"]
    model = small_model("qwen3_5_text", layer_types=kinds)
    path = write_gguf(model, tmp_path / "model.gguf")
    flags = [kind == "linear_attention" for kind in kinds]
    with open_checkpoint(str(changed(path, dict, attention__recurrent_layers=flags))) as checkpoint:
        assert_close(computed(checkpoint, ids(model)), logits(model))
    with pytest.raises(CheckpointError, match="recurrent_layers is not true or false for each of 4 blocks"):
        open_checkpoint(str(changed(path, dict, attention__recurrent_layers=flags[:3])))
    other = write_gguf(small_model("llama", num_hidden_layers=4), tmp_path / "other.gguf")
    with pytest.raises(UnsupportedModelError, match="recurrent_layers is <4 items>: what it means"):
        open_checkpoint(str(changed(other, dict, attention__recurrent_layers=flags)))


@pytest.mark.parametrize("case", ["qwen3_5_text", "kimi_linear", "lfm2", "lfm3"])
def test_texts_of_several_pages(case: str, tmp_path: Path, sessions: Callable[..., Any]) -> None:
    """In slices that end at the border of a page, before it and behind it."""
    model = small_model(case, max_position_embeddings=128)
    model.save_pretrained(tmp_path)
    tokens = torch.arange(107).mul(7).remainder(61)
    with torch.no_grad():
        theirs = model(tokens[None]).logits[0]
    with open_checkpoint(str(tmp_path)) as checkpoint:
        client = load_client_model(checkpoint, LoadOptions(dtype="float32", quantize="none"))
        for kind in EXECUTORS:
            options = LoadOptions(**{"dtype": "float32", "quantize": "none", **kind})
            blocks = load_backend(checkpoint, Span(0, checkpoint.config.n_blocks), options)
            fed = sessions(blocks, tokens=128, borders=True)
            parts = np.split(client.embed(tokens.numpy()), np.cumsum((31, 1, 1, 30, 33, 1)))
            ours = client.logits(
                np.concatenate([fed.forward(torch.from_numpy(part)).numpy() for part in parts])
            )
            assert_close(ours, theirs)


@pytest.mark.parametrize("case", ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "lfm2"])
def test_quantized_gguf(case: str, tmp_path: Path) -> None:
    """Value heads lie in Qwen 3.5's files in another order, columns of out_proj among them: none is moved."""
    model = small_model(
        case, **({} if case == "lfm2" else {"linear_value_head_dim": 8, "rms_norm_eps": 1e-2})
    )
    path = write_gguf(model, tmp_path / "model.gguf", quantize="Q4_0")
    kind = gguf.GGMLQuantizationType.Q4_0
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1 and value.shape[-1] % 32 == 0:
                packed = gguf.quants.quantize(value.numpy(), kind)
                value.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind)))
    with open_checkpoint(str(path)) as checkpoint:
        assert checkpoint.tensor("model.layers.0.state.out_proj.weight").qtype == "Q4_0"
        assert checkpoint.tensor("model.layers.0.state.v_proj.weight").qtype == "Q4_0" or case == "lfm2"
        assert_close(computed(checkpoint, ids(model)), logits(model))


@pytest.mark.parametrize("case", ["qwen3_next", "qwen3_5_text", "kimi_linear"])
def test_every_executor_computes_a_gguf_file(case: str, tmp_path: Path, sessions: Callable[..., Any]) -> None:
    """Also where value heads are tiled over key heads."""
    model = small_model(case)
    with open_checkpoint(str(write_gguf(model, tmp_path / "model.gguf"))) as checkpoint:
        for kind in EXECUTORS:
            assert_close(through(checkpoint, ids(model), sessions, **kind), logits(model))


@pytest.mark.parametrize("value", [0.0, 1.5, float("nan"), -float("inf")])
def test_a_decay_that_is_no_decay_is_refused(value: float, tmp_path: Path) -> None:
    path = write_gguf(small_model("qwen3_5_text"), tmp_path / "model.gguf")

    def wrong(tensors: Tensors) -> Tensors:
        tensors["blk.1.ssm_a"][0] = value
        return tensors

    with open_checkpoint(str(changed(path, wrong))) as checkpoint:
        checkpoint.tensor("model.layers.0.state.a_log")
        with pytest.raises(CheckpointError, match=r"tensor model\.layers\.1\.state\.a_log of .* not below 0"):
            checkpoint.tensor("model.layers.1.state.a_log")
