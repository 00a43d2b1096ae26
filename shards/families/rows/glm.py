"""GLM and Phi: gate and up in one matrix, and rotation over part of a head."""

from __future__ import annotations

from ...formats.blocks.block import BlockConfig
from ..family import Family, GGUFFamily
from ..names import fused
from ..pieces import GATE_UP, GGUF_GATE_UP, GGUF_QKV, QKV, attention, mlp, pre_norm, rms_client, usual
from ..rope import rope
from ..settings import Settings
from .gemma import sandwich

_GLM = usual(
    *(151552, 4096, 13696, 40, 32, 2, 131072),
    head_dim=128,
    rms_norm_eps=1.5625e-07,
    attention_bias=True,
    partial_rotary_factor=0.5,
)


def _attention(s: Settings) -> dict[str, object]:
    return {"rope": rope(s, interleaved=True, partial=True), "bias": s.flag("attention_bias")}


GLM = Family(
    types=("glm",),
    architectures=("GlmForCausalLM",),
    defaults=_GLM,
    block=lambda s: pre_norm(s, attention(s, **_attention(s)), mlp(s)),
    client=rms_client,
    tensors=GATE_UP,
    gguf=GGUFFamily("chatglm", neighbours=True, tensors={**GGUF_GATE_UP, **GGUF_QKV}),
)

GLM4 = Family(
    types=("glm4",),
    architectures=("Glm4ForCausalLM",),
    defaults=_GLM,
    block=lambda s: sandwich(s, attention(s, **_attention(s)), mlp(s), 0.0),
    client=rms_client,
    tensors={
        **GATE_UP,
        "self_attn.out_norm": "post_self_attn_layernorm",
        "mlp.out_norm": "post_mlp_layernorm",
    },
    gguf=GGUFFamily("glm4", neighbours=True, tensors={**GGUF_GATE_UP, **GGUF_QKV}),
)


def _phi3_block(s: Settings) -> BlockConfig:
    return pre_norm(s, attention(s, rope=rope(s, partial=True), window=s.window()), mlp(s))


PHI3 = Family(
    types=("phi3",),
    architectures=("Phi3ForCausalLM",),
    defaults=usual(
        *(32064, 3072, 8192, 32, 32, None, 4096),
        original_max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        sliding_window=None,
    ),
    block=_phi3_block,
    client=rms_client,
    tensors={**GATE_UP, **fused("self_attn.qkv_proj", *QKV)},
    gguf=GGUFFamily("phi3", tensors={**GGUF_GATE_UP, **GGUF_QKV}),
)

ROWS = (GLM, GLM4, PHI3)
