"""A ``ModelConfig`` from the metadata of a GGUF file."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..swarm.errors import CheckpointError, UnsupportedModelError
from .config import MAX_WIDTH, ModelConfig, RopeConfig, unsupported_family
from .gguf_header import GGUFArray, GGUFHeader
from .manifest import TensorInfo, main_qtype
from .shown import shown


def gguf_config(header: GGUFHeader) -> ModelConfig:
    """CheckpointError for metadata missing or wrong, UnsupportedModelError for other architectures."""
    metadata = header.metadata
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise unsupported_family(architecture)
    read = _Reader(metadata, str(header.file.path))
    if read.integer("split.count", 1) > 1:
        raise UnsupportedModelError(
            f"{header.file.path} is one part of a split GGUF model",
            hint="Join the parts first: llama-gguf-split --merge FIRST_PART OUTPUT.",
        )
    if read.integer("llama.expert_count", 0):
        raise UnsupportedModelError(
            f"{header.file.path} is a mixture-of-experts model, which is not supported"
        )
    if "token_embd.weight" not in header.tensors:
        raise CheckpointError(f"{header.file.path} has no tensor token_embd.weight")
    hidden = read.integer("llama.embedding_length")
    n_heads = read.integer("llama.attention.head_count")
    head_dim = read.integer("llama.attention.key_length", hidden // max(1, n_heads))
    if read.integer("llama.attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError("keys and values of different sizes are not supported")
    if read.integer("llama.rope.dimension_count", head_dim) != head_dim:
        raise UnsupportedModelError("rotary embedding over part of a head is not supported")
    context = read.integer("llama.context_length")
    if 0 < read.integer("llama.attention.sliding_window", 0) < context:
        raise UnsupportedModelError("sliding-window attention is not supported")
    return ModelConfig(
        family="llama",
        n_blocks=read.integer("llama.block_count"),
        hidden_size=hidden,
        n_heads=n_heads,
        n_kv_heads=read.integer("llama.attention.head_count_kv", n_heads),
        head_dim=head_dim,
        intermediate_size=read.integer("llama.feed_forward_length"),
        vocab_size=header.tensors["token_embd.weight"].shape[0],
        rms_norm_eps=read.number("llama.attention.layer_norm_rms_epsilon"),
        max_position_embeddings=context,
        rope=_rope(read, context, _frequency_factors(header)),
        tie_word_embeddings="output.weight" not in header.tensors,
        attention_bias="blk.0.attn_q.bias" in header.tensors,
        mlp_bias="blk.0.ffn_down.bias" in header.tensors,
        bos_token_id=read.optional_integer("tokenizer.ggml.bos_token_id"),
        eos_token_ids=gguf_eos_ids(metadata),
        native_dtype=main_qtype(
            {
                t.name: TensorInfo(t.name, t.shape, t.qtype, t.nbytes)
                for t in header.tensors.values()
                if ".weight" in t.name
            }
        ),
    )


def gguf_eos_ids(metadata: dict[str, Any]) -> tuple[int, ...]:
    """End of text, of turn and of message, where the file names them."""
    found = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return tuple(dict.fromkeys(token for token in found if isinstance(token, int)))


def _frequency_factors(header: GGUFHeader) -> tuple[float, ...]:
    """``rope_freqs.weight``: how the converter stores llama3 scaling, as one divisor per frequency."""
    tensor = header.tensors.get("rope_freqs.weight")
    if tensor is None:
        return ()
    if tensor.qtype != "F32":
        raise UnsupportedModelError(f"rope_freqs.weight has type {tensor.qtype}, expected F32")
    if tensor.nbytes > 4 * MAX_WIDTH:
        raise CheckpointError(f"{header.file.path}: rope_freqs.weight has {tensor.nbytes} bytes")
    raw = header.file.slice(tensor.offset, tensor.nbytes)
    return tuple(raw.copy().view(np.dtype("<f4")).tolist())


def _rope(read: _Reader, context: int, factors: tuple[float, ...]) -> RopeConfig:
    kind = read.metadata.get("llama.rope.scaling.type", "none")
    factor = read.number("llama.rope.scaling.factor", 0.0) or read.number("llama.rope.scale_linear", 1.0)
    if kind == "none":
        kind = "linear" if factor != 1.0 and "llama.rope.scale_linear" in read.metadata else "default"
    attention = read.number("llama.rope.scaling.attn_factor", 1.0)
    if kind == "yarn" and attention != 1.0:
        raise UnsupportedModelError("a YaRN attention factor in a GGUF file is not supported")
    return RopeConfig(
        theta=read.number("llama.rope.freq_base", 10_000.0),
        type=kind if isinstance(kind, str) else shown(kind),
        factor=factor if kind != "default" else 1.0,
        original_max_position_embeddings=read.integer("llama.rope.scaling.original_context_length", context),
        beta_fast=read.number("llama.rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=read.number("llama.rope.scaling.yarn_beta_slow", 1.0),
        frequency_factors=factors,
    )


class _Reader:
    """Typed look-ups that name the key when it is missing or of another type."""

    def __init__(self, metadata: dict[str, Any], where: str) -> None:
        self.metadata = metadata
        self._where = where

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.metadata.get(key, default)
        if isinstance(value, GGUFArray):
            raise UnsupportedModelError(f"{key} differs from block to block, which is not supported")
        if not isinstance(value, int) or isinstance(value, bool):
            raise CheckpointError(f"{self._where} has no whole number under {key}")
        return value

    def optional_integer(self, key: str) -> int | None:
        return self.integer(key) if key in self.metadata else None

    def number(self, key: str, default: float | None = None) -> float:
        value = self.metadata.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise CheckpointError(f"{self._where} has no number under {key}")
        return float(value)
