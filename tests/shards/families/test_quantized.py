"""Quantized matrices of which parts are taken and rows moved, without decoding them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from swarm_node.shards.checkpoint.opening import open_checkpoint

from .gguf_files import write_gguf
from .models import ids, logits, small_model
from .test_families import assert_close, computed

mx = pytest.importorskip("mlx.core")
MOVED = ("llama", "phi3", "glm4", "cohere", "qwen3_moe")
"""Rows of q and k put in order, in GGUF files; matrices split; both; rows put in order in both; experts."""


def matrices(model: Any) -> dict[str, torch.Tensor]:
    """Those whose columns come in groups of 32."""
    found = dict(model.named_parameters())
    return {name: value for name, value in found.items() if value.ndim > 1 and value.shape[-1] % 32 == 0}


@pytest.mark.parametrize("case", [*MOVED, "mixtral"])
def test_gguf(case: str, tmp_path: Path) -> None:
    model = small_model(case)
    path = write_gguf(model, tmp_path / "model.gguf", quantize="Q4_0")
    kind = gguf.GGMLQuantizationType.Q4_0
    with torch.no_grad():
        for value in matrices(model).values():
            packed = gguf.quants.quantize(value.numpy(), kind)
            value.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind)))
    with open_checkpoint(str(path)) as checkpoint:
        assert checkpoint.tensor("model.layers.0.self_attn.q_proj.weight").qtype == "Q4_0"
        assert_close(computed(checkpoint, ids(model)), logits(model))


@pytest.mark.parametrize("case", [*MOVED, "qwen3_5_text", "lfm2"])
def test_mlx(case: str, tmp_path: Path) -> None:
    model = small_model(case)
    tensors: dict[str, np.ndarray] = {}
    wanted = matrices(model)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name == "lm_head.weight" and model.config.tie_word_embeddings:
                continue
            if name not in wanted:
                tensors[name] = value.numpy()
                continue
            parts = mx.quantize(mx.array(value.numpy()), group_size=32, bits=4)
            stem = name.removesuffix(".weight")
            for part, stored in zip((name, f"{stem}.scales", f"{stem}.biases"), parts, strict=True):
                tensors[part] = np.array(stored)
            value.copy_(torch.from_numpy(np.array(mx.dequantize(*parts, group_size=32, bits=4))))
    save_file(tensors, tmp_path / "model.safetensors")
    quantization = {"group_size": 32, "bits": 4}
    document = {**json.loads(model.config.to_json_string(use_diff=False)), "quantization": quantization}
    (tmp_path / "config.json").write_text(json.dumps(document))
    with open_checkpoint(str(tmp_path)) as checkpoint:
        assert "MLX4_32_F32" in {info.qtype for info in checkpoint.manifest.values()}
        assert_close(computed(checkpoint, ids(model)), logits(model))
