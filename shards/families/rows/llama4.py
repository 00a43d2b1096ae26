"""Llama 4: the text part of models that see, and models of text alone."""

from __future__ import annotations

from ...formats.blocks.attention import HeadNorm, QueryScale
from ...formats.blocks.block import BlockConfig
from ...formats.blocks.experts import MAX_EXPERTS, RouterConfig
from ...formats.values.bounds import MAX_CONTEXT, MAX_WIDTH
from ..experts import experts, sparse_or_dense
from ..family import Family, GGUFFamily
from ..names import mlp_named, stack
from ..pieces import attention, has_rope, mlp, rms, rms_client, scalar, usual
from ..rope import rope
from ..settings import CHUNKED, FULL, Settings
from .llama import VISION

_OF_MAVERICK = 128
"""Experts of Llama 4 Maverick, whose q and k have no norm: its GGUF files do not say so."""


def _block(s: Settings) -> BlockConfig:
    bias, turns = s.flag("attention_bias"), has_rope(s)
    chunk = s.optional_integer("attention_chunk_size", least=1) or 0
    chunked = s.layer_type(CHUNKED if turns else FULL, known=(FULL, CHUNKED)) == CHUNKED
    count = s.integer("num_local_experts", least=1, most=MAX_EXPERTS)
    normed = s.flag("use_qk_norm") and not (s.is_gguf and count == _OF_MAVERICK)
    tuned = s.value("attn_temperature_tuning") not in (None, False, 0)
    scale = QueryScale(scalar(s, "attn_scale"), s.integer("floor_scale", least=1, most=MAX_CONTEXT), 1)
    step = s.integer("interleave_moe_layer_step", least=1)
    listed = s.integers("moe_layers", most=MAX_WIDTH)
    is_sparse = s.block in listed if s.value("moe_layers") is not None else (s.block + 1) % step == 0
    some = experts(
        s,
        RouterConfig("sigmoid", renormalise=False, scale_input=True),
        count="num_local_experts",
        inner="intermediate_size",
        shared=mlp(s),
    )
    return sparse_or_dense(
        s,
        attention(
            s,
            rope=rope(s, interleaved=True) if turns else None,
            chunk=chunk if chunked else 0,
            qk_norm=HeadNorm(rms(s, weighted=False), after_rope=True) if normed and turns else None,
            query_scale=scale if tuned and not turns else None,
            bias=bias,
            out_bias=bias,
        ),
        some if is_sparse else None,
        inner="intermediate_size_mlp",
    )


LLAMA4 = Family(
    types=("llama4_text",),
    architectures=("Llama4ForCausalLM",),
    defaults=usual(
        *(202048, 5120, 8192, 48, 40, 8, 131072),
        head_dim=128,
        intermediate_size_mlp=16384,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        bos_token_id=1,
        attention_bias=False,
        num_experts_per_tok=1,
        num_local_experts=16,
        interleave_moe_layer_step=1,
        no_rope_layer_interval=4,
        attention_chunk_size=8192,
        use_qk_norm=True,
        attn_temperature_tuning=True,
        floor_scale=8192,
        attn_scale=0.1,
    ),
    block=_block,
    client=rms_client,
    tensors={
        **mlp_named("mlp", "feed_forward"),
        "mlp.router": "feed_forward.router",
        **mlp_named("mlp.shared_experts", "feed_forward.shared_expert"),
        **stack("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj", transposed=True),
    },
    ignored=VISION,
    wrappers=("llama4",),
    gguf=GGUFFamily(
        "llama4",
        neighbours=True,
        settings={"use_qk_norm": True, "attention_chunk_size": 8192},
        keys={
            "expert_count": "num_local_experts",
            "feed_forward_length": "intermediate_size_mlp",
            "expert_feed_forward_length": "intermediate_size",
            "interleave_moe_layer_step": "interleave_moe_layer_step",
            "attention.chunk_size": "attention_chunk_size",
        },
    ),
)

ROWS = (LLAMA4,)
