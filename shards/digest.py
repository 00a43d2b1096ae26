"""The digest that every hop of a route must share: SHA-256 over what determines a model's output.

It covers the configuration, the manifest (name, shape, type of every tensor of the model) and a sample of
the weights, so that a fine-tune or a merged LoRA differs from its base while hashing costs milliseconds, and
a hub model of which a node holds one shard gets the same digest from a few range requests. The sample is a
check against mistakes, not against forgery.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict

from .config import ModelConfig
from .manifest import FINAL_NORM, TensorSource, model_tensors

_VERSION = "swarm-node model digest 1"
_SAMPLE = 4096
"""Bytes taken from the middle of a sampled matrix."""
_NOT_PART = ("bos_token_id", "eos_token_ids", "native_dtype")
"""Settings of tokenizer and files beside the weights: they change nothing of what a block computes."""


def model_digest(config: ModelConfig, source: TensorSource) -> str:
    """64 lowercase hex characters."""
    settings = {name: value for name, value in asdict(config).items() if name not in _NOT_PART}
    manifest = [
        [name, list(source.manifest[name].shape), source.manifest[name].qtype]
        for name in sorted(model_tensors(config))
        if name in source.manifest
    ]
    text = json.dumps([_VERSION, settings, manifest], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode())
    for name, start, length in sampled(config, source):
        digest.update(source.read(name, start, length))
    return digest.hexdigest()


def sampled(config: ModelConfig, source: TensorSource) -> Iterator[tuple[str, int, int]]:
    """(tensor, first byte, bytes) of each sample, in order."""
    yield FINAL_NORM, 0, source.manifest[FINAL_NORM].nbytes
    for block in dict.fromkeys((0, config.n_blocks // 2, config.n_blocks - 1)):
        for part in ("self_attn.q_proj", "mlp.down_proj"):
            name = f"model.layers.{block}.{part}.weight"
            size = source.manifest[name].nbytes
            length = min(_SAMPLE, size)
            yield name, (size - length) // 2, length
