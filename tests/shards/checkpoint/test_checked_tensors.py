"""Files whose tensors and configuration disagree: computed as transformers does, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.loading import load_backend, load_client_model
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError
from swarm_node.swarm.types import Span

GGUFLlama = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
CONTEXT = 24
EXACT = LoadOptions(dtype="float32", quantize="none")
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 60,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
}


def write(directory: Path, model_type: str = "llama", **settings: Any) -> Path:
    torch.manual_seed(3)
    kind, config = (
        (LlamaForCausalLM, LlamaConfig) if model_type == "llama" else (MistralForCausalLM, MistralConfig)
    )
    model = kind(config(**{**SHAPE, **settings})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter += torch.randn_like(parameter) * 0.3
    model.save_pretrained(directory)
    return directory


def edit(
    directory: Path, settings: dict[str, Any] | None = None, drop: tuple[str, ...] = (), **more: Any
) -> None:
    path = directory / "config.json"
    document = {**json.loads(path.read_text()), **(settings or {}), **more}
    path.write_text(json.dumps({key: value for key, value in document.items() if key not in drop}))


def edit_tensors(directory: Path, change: Callable[[Tensors], object]) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata={"format": "pt"})


AsTransformers = Callable[[Path, int], None]


@pytest.fixture
def assert_as_transformers(sessions: Callable[..., Any]) -> AsTransformers:
    """``assert_as_transformers(directory, count)``: ``count`` tokens give the same logits."""
    return partial(compare, sessions)


def compare(sessions: Callable[..., Any], directory: Path, count: int) -> None:
    ids = torch.randint(0, 60, (count,), generator=torch.Generator().manual_seed(1))
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        want = theirs(ids[None]).logits[0]
    with open_checkpoint(str(directory)) as checkpoint:
        assert checkpoint.config.max_position_embeddings >= count
        client = load_client_model(checkpoint, EXACT)
        span = load_backend(checkpoint, Span(0, 2), EXACT)
        hop = sessions(span, tokens=count)
        hidden = hop.forward(torch.from_numpy(client.embed(ids.numpy())))
        got = client.logits(hidden.numpy())
    torch.testing.assert_close(torch.from_numpy(got), want, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("same", [True, False])
def test_a_head_in_the_file_is_the_head_whatever_the_flag_says(
    tmp_path: Path, same: bool, assert_as_transformers: AsTransformers
) -> None:
    write(tmp_path, tie_word_embeddings=False)
    edit(tmp_path, tie_word_embeddings=True)
    if same:
        edit_tensors(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert_as_transformers(tmp_path, CONTEXT)
    with open_checkpoint(str(tmp_path)) as checkpoint:
        assert not checkpoint.config.tie_word_embeddings
        assert checkpoint.has("lm_head.weight")


def test_tied_without_a_head_in_the_file(tmp_path: Path, assert_as_transformers: AsTransformers) -> None:
    write(tmp_path, tie_word_embeddings=True)
    assert_as_transformers(tmp_path, CONTEXT)
    with open_checkpoint(str(tmp_path)) as checkpoint:
        assert checkpoint.config.tie_word_embeddings
    edit(tmp_path, drop=("tie_word_embeddings",))  # transformers would make up a head
    with pytest.raises(CheckpointError, match=r"has no head \(lm_head\.weight"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"rope_type": "linear", "factor": 4.0}, 60),
        ({"rope_type": "dynamic", "factor": 4.0}, CONTEXT),
        ({"rope_type": "yarn", "factor": 4.0}, 60),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT}, 60),
        ({"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 8}, CONTEXT),
    ],
)
def test_scaling_lengthens_the_context(
    tmp_path: Path, settings: dict[str, Any], count: int, assert_as_transformers: AsTransformers
) -> None:
    write(tmp_path)
    edit(tmp_path, rope_scaling=settings, rope_theta=5000.0, drop=("rope_parameters",))
    assert_as_transformers(tmp_path, count)
    with open_checkpoint(str(tmp_path)) as checkpoint:
        assert checkpoint.config.max_position_embeddings == (96 if count == 60 else CONTEXT)


def test_mistral_with_a_window_as_long_as_its_context(
    tmp_path: Path, assert_as_transformers: AsTransformers
) -> None:
    write(tmp_path, "mistral", sliding_window=None)
    edit(tmp_path, drop=("sliding_window",))  # transformers' default, 4096, is longer
    assert_as_transformers(tmp_path, CONTEXT)


def add_biases(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.endswith("q_proj.weight")]:
        tensors[name.replace(".weight", ".bias")] = torch.ones(tensors[name].shape[0])


def add_block(tensors: Tensors) -> None:
    for name in [name for name in tensors if ".layers.1." in name]:
        tensors[name.replace(".layers.1.", ".layers.2.")] = tensors[name].clone()


def add_norms(tensors: Tensors) -> None:
    tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)


def add_scales(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        tensors[f"{name}_scale_inv"] = torch.ones(1, 1)


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (add_biases, r"'model\.layers\.0\.self_attn\.q_proj\.bias', .*bias'$"),
        (add_block, r"'model\.layers\.2\.input_layernorm\.weight', .* and 6 more$"),
        (add_norms, r"'model\.layers\.0\.self_attn\.q_norm\.weight'$"),
        (add_scales, r".*weight_scale_inv', .* and 11 more$"),
        (lambda t: t.update({"lm_head.bias": torch.ones(60)}), r"'lm_head\.bias'$"),
    ],
)
def test_a_tensor_that_nobody_reads_is_refused_by_name(
    tmp_path: Path, model_type: str, change: Callable[[Tensors], object], named: str
) -> None:
    write(tmp_path, model_type, **({} if model_type == "llama" else {"sliding_window": None}))
    edit_tensors(tmp_path, change)
    with pytest.raises(UnsupportedModelError, match=f"does not use: {named}"):
        open_checkpoint(str(tmp_path))


def test_frequencies_in_the_file_follow_from_the_configuration(
    tmp_path: Path, assert_as_transformers: AsTransformers
) -> None:
    write(tmp_path)
    rotary = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.rand(4) for n in range(2)}
    edit_tensors(tmp_path, lambda t: t.update(rotary))
    assert_as_transformers(tmp_path, CONTEXT)


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.attn_q_norm.weight",
        "blk.0.attn_q.scale",
        "output.bias",
        "output_norm.bias",
        "blk.2.attn_q.weight",
    ]
    + ["blk.0.attn_norm.bias", "foo.bar", "rope_factors_long.weight"],
)
def test_gguf_tensors_that_nobody_reads(gguf_llama: GGUFLlama, name: str) -> None:
    path = gguf_llama(extra=lambda w: w.add_tensor(name, np.ones(64, dtype=np.float32)))
    with pytest.raises(UnsupportedModelError, match=f"does not use: '.*{name.split('.')[-2][:4]}"):
        open_checkpoint(str(path))


@pytest.mark.parametrize(
    "names", [["blk.1.attn_k.bias"], ["blk.1.ffn_down.bias"], ["blk.0.attn_output.bias", "blk.1.ffn_up.bias"]]
)
def test_gguf_biases_of_some_blocks_are_read(
    gguf_llama: GGUFLlama, sessions: Callable[..., Any], names: list[str]
) -> None:
    sizes = {"attn_k": 128, "ffn_up": 512}

    def extra(writer: gguf.GGUFWriter) -> None:
        for name in names:
            size = sizes.get(name.split(".")[2], 256)
            writer.add_tensor(name, np.linspace(-500, 500, size, dtype=np.float32))

    rows = []
    for change in (None, extra):
        with open_checkpoint(str(gguf_llama(extra=change))) as checkpoint:
            assert len(checkpoint.manifest) == 20 + (len(names) if change else 0)
            span = sessions(load_backend(checkpoint, Span(0, 2), EXACT))
            rows.append(span.forward(torch.randn(3, 256, generator=torch.Generator().manual_seed(1))))
    assert not torch.allclose(*rows)
