"""Llama, and families that differ from it in little."""

from __future__ import annotations

from typing import Any

from ..family import Family, GGUFFamily
from ..pieces import attention, mlp, pre_norm, rms
from ..settings import Settings

LLAMA_GGUF: dict[str, Any] = {"hidden_act": "silu"}


def plain_client(s: Settings) -> dict[str, Any]:
    return {"final_norm": rms(s)}


LLAMA = Family(
    types=("llama",),
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),  # the latter of 2023
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "bos_token_id": 1,
        "attention_bias": False,
        "mlp_bias": False,
    },
    block=lambda s: pre_norm(
        s,
        attention(s, bias=s.flag("attention_bias"), out_bias=s.flag("attention_bias")),
        mlp(s, bias=s.flag("mlp_bias")),
    ),
    client=plain_client,
    gguf=GGUFFamily("llama", neighbours=True),
)

MISTRAL = Family(
    types=("mistral",),
    architectures=("MistralForCausalLM",),
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "bos_token_id": 1,
        "sliding_window": 4096,
    },
    block=lambda s: pre_norm(s, attention(s, window=s.window()), mlp(s)),
    client=plain_client,
)

ROWS = (LLAMA, MISTRAL)
