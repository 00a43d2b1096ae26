"""Which tensors a model has: what a file offers, and what a Llama model needs."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from ...swarm.errors import CheckpointError, UnsupportedModelError
from ...swarm.types import Span
from .config import ModelConfig
from .qtypes import QTYPES, SUPPORTED
from .raw_tensor import RawTensor
from .shown import shown

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"
_HARMLESS = re.compile(r"(model\.layers\.[0-9]{1,4}\.self_attn\.|model\.)rotary_emb\.inv_freq")
"""Tensors that need not be read: the frequencies follow from the configuration, as in transformers."""
_NAMED = 3
"""A message names at most this many of the tensors that are not read."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """``shape`` as HuggingFace has it; ``qtype`` a name of ``qtypes``, or a dtype that we cannot run."""

    name: str
    shape: tuple[int, ...]
    qtype: str
    nbytes: int


class TensorSource(Protocol):
    """One opened model file, or several: tensors under HuggingFace's Llama names."""

    @property
    def manifest(self) -> Mapping[str, TensorInfo]: ...

    def tensor(self, name: str) -> RawTensor:
        """CheckpointError for a name that is not there."""
        ...

    def release(self) -> None: ...

    def close(self) -> None: ...


def block_tensors(config: ModelConfig, block: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one block's tensors."""
    prefix = f"model.layers.{block}."
    hidden, wide, q, kv = config.hidden_size, config.intermediate_size, config.q_size, config.kv_size
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, q),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (wide, hidden),
        "mlp.up_proj.weight": (wide, hidden),
        "mlp.down_proj.weight": (hidden, wide),
    }
    if config.attention_bias:
        shapes |= {
            "self_attn.q_proj.bias": (q,),
            "self_attn.k_proj.bias": (kv,),
            "self_attn.v_proj.bias": (kv,),
        }
        shapes["self_attn.o_proj.bias"] = (hidden,)
    if config.mlp_bias:
        shapes |= {
            "mlp.gate_proj.bias": (wide,),
            "mlp.up_proj.bias": (wide,),
            "mlp.down_proj.bias": (hidden,),
        }
    return {prefix + name: shape for name, shape in shapes.items()}


def client_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of embedding, final norm and, where it is not tied to the embedding, head."""
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (config.vocab_size, config.hidden_size),
        FINAL_NORM: (config.hidden_size,),
    }
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, config.hidden_size)
    return shapes


def model_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model."""
    shapes = client_tensors(config)
    for block in range(config.n_blocks):
        shapes |= block_tensors(config, block)
    return shapes


def needed_tensors(config: ModelConfig, blocks: Span | None, client: bool) -> list[str]:
    """The tensors that a node of ``blocks``, or a client, reads; all of them if neither is named."""
    if blocks is None and not client:
        return list(model_tensors(config))
    names: list[str] = list(client_tensors(config)) if client else []
    for block in range(blocks.start, blocks.end) if blocks else ():
        names += block_tensors(config, block)
    return names


def with_own_head(config: ModelConfig, names: Container[str]) -> ModelConfig:
    """``config`` of a checkpoint that has tensors ``names``: a head in the file is the model's head, whatever
    ``tie_word_embeddings`` says, as in transformers and llama.cpp."""
    return replace(config, tie_word_embeddings=False) if HEAD in names else config


def check_manifest(
    manifest: Mapping[str, TensorInfo], config: ModelConfig, where: str, *, bias_optional: bool = False
) -> None:
    """Raise CheckpointError unless every tensor of the model is there in its right shape, and
    UnsupportedModelError if there are more: a tensor that is not read belongs to another computation.

    ``bias_optional``: GGUF files may hold some biases and not others.
    """
    needed = model_tensors(config)
    for name, shape in needed.items():
        info = manifest.get(name)
        if info is None:
            if bias_optional and name.endswith(".bias"):
                continue
            raise CheckpointError(
                f"{where} has no tensor {name}", hint="The file is damaged, or is not a complete Llama model."
            )
        if info.shape != shape:
            raise CheckpointError(
                f"tensor {name} of {where} has shape {list(info.shape)}, the configuration says {list(shape)}"
            )
        if info.qtype not in QTYPES:
            raise UnsupportedModelError(
                f"tensor {name} of {where} has type {info.qtype}, which is not supported", hint=SUPPORTED
            )
    refuse_unread((name for name in manifest if name not in needed), where)


def refuse_unread(names: Iterable[str], where: str) -> None:
    """UnsupportedModelError if any of these tensors, which are not read, would change what is computed."""
    unread = sorted(name for name in names if not _HARMLESS.fullmatch(name))
    if unread:
        named = ", ".join(map(shown, unread[:_NAMED]))
        more = f" and {len(unread) - _NAMED} more" if len(unread) > _NAMED else ""
        raise UnsupportedModelError(
            f"{where} has tensors that its configuration does not use: {named}{more}",
            hint="The configuration belongs to another model, or the model needs what is not supported.",
        )


def main_qtype(manifest: Mapping[str, TensorInfo]) -> str:
    """The type that most of the model's bytes have."""
    totals: dict[str, int] = {}
    for info in manifest.values():
        totals[info.qtype] = totals.get(info.qtype, 0) + info.nbytes
    return max(totals, key=lambda qtype: (totals[qtype], qtype), default="F32")
