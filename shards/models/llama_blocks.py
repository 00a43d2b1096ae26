"""Whether a backend that computes Llama's blocks alone can run a model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ...swarm.errors import UnsupportedModelError

if TYPE_CHECKING:
    from ...swarm.types import Span
    from ..formats.block_config import BlockConfig
    from ..formats.config import ModelConfig


def llama_blocks(config: ModelConfig, span: Span) -> BlockConfig:
    """The settings that all blocks of ``span`` have. UnsupportedModelError unless these are Llama's."""
    block = config.blocks[span.start]
    attention, mlp, norm = block.attention, block.mlp, block.norm
    plain_attention = attention.rope is not None and attention == type(attention)(
        *(attention.heads, attention.kv_heads, attention.head_dim, attention.head_dim**-0.5, attention.rope),
        bias=attention.bias,
        out_bias=attention.out_bias,
    )
    plain_norm = norm is not None and norm == type(norm)(norm.eps)
    is_llama = (
        plain_attention
        and plain_norm
        and mlp is not None
        and mlp == type(mlp)(mlp.inner, bias=mlp.bias)
        and block == type(block)(attention, mlp, norm=norm, mlp_norm=norm)
        and attention.rope is not None
        and attention.rope == replace(attention.rope, rotary_dim=attention.head_dim)
    )
    if not is_llama or len(set(config.blocks[span.start : span.end])) > 1:
        raise UnsupportedModelError(f"blocks of {config.family} are not supported yet")
    return block
