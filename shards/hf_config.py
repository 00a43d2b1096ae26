"""A ``ModelConfig`` from a HuggingFace ``config.json``, with transformers' defaults for Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..swarm.errors import CheckpointError, UnsupportedModelError
from . import bounded_json
from .bounded_json import JsonBounds
from .config import ModelConfig, RopeConfig, finite, unsupported_family
from .shown import shown

BOUNDS = JsonBounds(nbytes=16 << 20, values=1 << 19)
"""Of each of the small files: config.json has some kilobytes, a tokenizer_config.json up to 1.2 MB."""
MAX_END_TOKENS = 256
"""Tokens that end a text; models have three at most."""
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a small file; CheckpointError for anything else."""
    document = bounded_json.read_json(path, BOUNDS)
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} holds no JSON object", hint="Download it again.")
    return document


def hf_config(document: dict[str, Any], generation: dict[str, Any], where: str) -> ModelConfig:
    """``generation``: generation_config.json, whose end-of-text ids win, as in transformers; may be empty."""
    read = _Reader(document, where)
    _check_family(document, read)
    n_heads = read.integer("num_attention_heads")
    hidden = read.integer("hidden_size")
    context = read.integer("max_position_embeddings", 2048)
    eos = generation.get("eos_token_id", document.get("eos_token_id"))
    return ModelConfig(
        family="llama",
        n_blocks=read.integer("num_hidden_layers"),
        hidden_size=hidden,
        n_heads=n_heads,
        n_kv_heads=read.integer("num_key_value_heads", n_heads),
        head_dim=read.integer("head_dim", hidden // max(1, n_heads)),
        intermediate_size=read.integer("intermediate_size"),
        vocab_size=read.integer("vocab_size"),
        rms_norm_eps=read.number("rms_norm_eps", 1e-6),
        max_position_embeddings=context,
        rope=_rope(document, context, where),
        tie_word_embeddings=read.flag("tie_word_embeddings"),
        attention_bias=read.flag("attention_bias"),
        mlp_bias=read.flag("mlp_bias"),
        bos_token_id=read.integer("bos_token_id", 1) if document.get("bos_token_id", 1) is not None else None,
        eos_token_ids=_ids(eos, where),
        native_dtype=_DTYPES.get(read.text("dtype") or read.text("torch_dtype"), "F32"),
    )


def _check_family(document: dict[str, Any], read: _Reader) -> None:
    architectures = document.get("architectures") or []
    family = document.get("model_type") or (
        architectures[0] if isinstance(architectures, list) and architectures else None
    )
    if family not in ("llama", "mistral", "LlamaForCausalLM", "MistralForCausalLM"):
        raise unsupported_family(family)
    ours = ("LlamaForCausalLM", "MistralForCausalLM")
    if isinstance(architectures, list) and architectures and not any(name in ours for name in architectures):
        raise unsupported_family(architectures[0])
    if document.get("hidden_act", "silu") not in ("silu", "swish"):
        raise UnsupportedModelError(f"activation {shown(document['hidden_act'])} is not supported; silu is")
    if family.lower().startswith("mistral") and 0 < read.integer("sliding_window", 0) < read.integer(
        "max_position_embeddings", 0
    ):
        raise UnsupportedModelError(
            "Mistral with sliding-window attention is not supported",
            hint="Llama-architecture models without sliding window are.",
        )
    if _by_mlx(document):
        return
    if document.get("quantization_config"):
        method = document["quantization_config"]
        method = method.get("quant_method") if isinstance(method, dict) else method
        raise UnsupportedModelError(
            f"checkpoints quantized with {shown(method)} are not supported",
            hint="Use the unquantized checkpoint, one quantized by MLX, or a GGUF file.",
        )


def _by_mlx(document: dict[str, Any]) -> bool:
    """Whether MLX quantized the checkpoint; how, its tensors say. UnsupportedModelError for other modes than
    the affine one, whose tensors look alike."""
    settings = document.get("quantization")
    if not isinstance(settings, dict) or "bits" not in settings:
        return False
    for part in (settings, *settings.values()):
        if isinstance(part, dict) and part.get("mode", "affine") != "affine":
            raise UnsupportedModelError(
                f"checkpoints quantized by MLX in mode {shown(part['mode'])} are not supported",
                hint="Those in mode affine, MLX's default, are.",
            )
    return True


def _rope(document: dict[str, Any], context: int, where: str) -> RopeConfig:
    """``rope_parameters`` (transformers 5) or ``rope_scaling`` with ``rope_theta`` beside it (before)."""
    settings = document.get("rope_scaling") or document.get("rope_parameters") or {}
    if not isinstance(settings, dict):
        raise CheckpointError(f"{where} has rope settings that are no JSON object")
    outer = _Reader(document, where)
    read = _Reader(settings, where)
    kind = settings.get("rope_type", settings.get("type", "default"))
    if read.number("partial_rotary_factor", outer.number("partial_rotary_factor", 1.0)) != 1.0:
        raise UnsupportedModelError("rotary embedding over part of a head is not supported")
    if kind in ("linear", "dynamic", "llama3", "yarn") and settings.get("factor") is None:
        raise CheckpointError(f"{where} has rope type {shown(kind)} without a factor")
    original = context
    if kind in ("llama3", "yarn"):
        # transformers prefers the one beside the rope settings to the one inside them.
        original = read.integer("original_max_position_embeddings", context)
        original = outer.integer("original_max_position_embeddings", original)
    if kind == "llama3":
        for name in ("low_freq_factor", "high_freq_factor"):
            if settings.get(name) is None:
                raise CheckpointError(f"{where} has rope type llama3 without {name}")
    return RopeConfig(
        theta=read.number("rope_theta", outer.number("rope_theta", 10_000.0)),
        type=kind if isinstance(kind, str) else shown(kind),
        factor=read.number("factor", 1.0),
        low_freq_factor=read.number("low_freq_factor", 1.0),
        high_freq_factor=read.number("high_freq_factor", 4.0),
        original_max_position_embeddings=original,
        beta_fast=read.number("beta_fast", 32.0) or 32.0,
        beta_slow=read.number("beta_slow", 1.0) or 1.0,
        attention_factor=read.optional_number("attention_factor"),
        mscale=read.optional_number("mscale"),
        mscale_all_dim=read.optional_number("mscale_all_dim"),
        truncate=bool(settings.get("truncate", True)),
    )


def _ids(value: Any, where: str) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    if len(values) > MAX_END_TOKENS:
        raise CheckpointError(
            f"{where} has {len(values)} end-of-text ids, at most {MAX_END_TOKENS} are possible"
        )
    if not all(type(token) is int for token in values):
        raise CheckpointError(f"{where} has an eos_token_id that is no whole number")
    return tuple(dict.fromkeys(values))


class _Reader:
    """Typed look-ups; null counts as missing, as in transformers."""

    def __init__(self, document: dict[str, Any], where: str) -> None:
        self._document = document
        self._where = where

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if type(value) is not int:
            raise CheckpointError(f"{self._where}: {key} is {shown(value)}, expected a whole number")
        return value

    def number(self, key: str, default: float) -> float:
        value = self._get(key, default)
        if type(value) not in (int, float):
            raise CheckpointError(f"{self._where}: {key} is {shown(value)}, expected a number")
        return finite(value, f"{self._where}: {key}")

    def optional_number(self, key: str) -> float | None:
        return None if self._document.get(key) is None else self.number(key, 0.0)

    def flag(self, key: str) -> bool:
        value = self._get(key, False)
        if type(value) is not bool:
            raise CheckpointError(f"{self._where}: {key} is {shown(value)}, expected true or false")
        return value

    def text(self, key: str) -> str:
        """ "" for anything but text."""
        value = self._document.get(key)
        return value if isinstance(value, str) else ""

    def _get(self, key: str, default: Any) -> Any:
        value = self._document.get(key)
        return default if value is None else value
