"""Qwen."""

from __future__ import annotations

from ...formats.blocks.attention import HeadNorm
from ..family import Family, GGUFFamily
from ..pieces import attention, mlp, pre_norm, rms, rms_client, usual
from ..settings import FULL, SLIDING, Settings


def window(s: Settings) -> int:
    """``sliding_window`` of the blocks from ``max_window_layers`` on, if ``use_sliding_window`` says so."""
    if not s.flag("use_sliding_window"):
        s.has("sliding_window")
        s.has("layer_types")
        return 0
    later = s.block >= s.integer("max_window_layers")
    return s.window() if s.layer_type(SLIDING if later else FULL) == SLIDING else 0


WINDOWS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}

QWEN2 = Family(
    types=("qwen2",),
    architectures=("Qwen2ForCausalLM",),
    defaults=usual(*(151936, 4096, 22016, 32, 32, 32, 32768), **WINDOWS),
    block=lambda s: pre_norm(s, attention(s, window=window(s), bias=True), mlp(s)),
    client=rms_client,
    gguf=GGUFFamily("qwen2"),
)

QWEN3 = Family(
    types=("qwen3",),
    architectures=("Qwen3ForCausalLM",),
    defaults=usual(*(151936, 4096, 22016, 32, 32, 32, 32768), head_dim=128, attention_bias=False, **WINDOWS),
    block=lambda s: pre_norm(
        s,
        attention(
            s,
            window=window(s),
            qk_norm=HeadNorm(rms(s)),
            bias=s.flag("attention_bias"),
            out_bias=s.flag("attention_bias"),
        ),
        mlp(s),
    ),
    client=rms_client,
    gguf=GGUFFamily("qwen3"),
)

ROWS = (QWEN2, QWEN3)
