"""Checkpoints as ``mlx_lm.convert -q`` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx


def quantize_directory(
    source: Path,
    target: Path,
    *,
    bits: int = 4,
    group: int = 64,
    dtype: mx.Dtype = mx.float32,
    others: Mapping[str, Any] = {},
) -> Path:
    """The HuggingFace directory ``source`` with its matrices quantized. ``others``: {"bits": …, "group_size":
    …} for matrices named without ``.weight``, or False for one that stays dense."""
    target.mkdir()
    document = json.loads((source / "config.json").read_text())
    settings = {"group_size": group, "bits": bits, **others}
    document |= {"quantization": settings, "quantization_config": settings}
    (target / "config.json").write_text(json.dumps(document))
    tensors: dict[str, mx.array] = {}
    for name, value in mx.load(str(source / "model.safetensors")).items():
        stem = name.removesuffix(".weight")
        own = others.get(stem, {"bits": bits, "group_size": group})
        if value.ndim != 2 or own is False:
            tensors[name] = value.astype(dtype)
            continue
        packed, scales, biases = mx.quantize(value.astype(dtype), **own)
        tensors |= {name: packed, f"{stem}.scales": scales, f"{stem}.biases": biases}
    mx.save_safetensors(str(target / "model.safetensors"), tensors, metadata={"format": "mlx"})
    return target
