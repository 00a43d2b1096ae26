"""gpt-oss."""

from __future__ import annotations

from ...formats.blocks.block import BlockConfig
from ...formats.blocks.experts import RouterConfig
from ...formats.blocks.mlp import MlpConfig
from ...formats.values.bounds import MAX_WIDTH, SCALES
from ..experts import experts
from ..family import Family, GGUFFamily
from ..names import either, stack
from ..pieces import attention, pre_norm, rms_client, usual
from ..settings import FULL, SLIDING, Settings, every


def _block(s: Settings) -> BlockConfig:
    bias = s.flag("attention_bias")
    window, slides = s.window(), s.layer_type(every(2, FULL)) == SLIDING
    inner = "moe_intermediate_size" if s.is_gguf else "intermediate_size"
    own = MlpConfig(
        s.integer(inner, least=1, most=MAX_WIDTH),
        "clamped",
        bias=True,
        alpha=s.number("swiglu_alpha", above=SCALES[0], below=SCALES[1]),
        limit=s.number("swiglu_limit", above=SCALES[0], below=SCALES[1]),
    )
    router = RouterConfig("softmax_of_used", bias=True, renormalise=False)
    return pre_norm(
        s,
        attention(s, window=window if slides else 0, sinks=True, bias=bias, out_bias=bias),
        None,
        experts=experts(s, router, count="num_local_experts", mlp=own),
    )


GPT_OSS = Family(
    types=("gpt_oss",),
    architectures=("GptOssForCausalLM",),
    defaults=usual(
        *(201088, 2880, 2880, 36, 64, 8, 131072),
        head_dim=64,
        rms_norm_eps=1e-5,
        sliding_window=128,
        attention_bias=True,
        num_local_experts=128,
        num_experts_per_tok=4,
        swiglu_alpha=1.702,
        swiglu_limit=7.0,
        rope_theta=150000.0,
        rope_parameters={"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0}
        | {"truncate": False, "original_max_position_embeddings": 4096},
    ),
    block=_block,
    client=rms_client,
    tensors={
        "self_attn.sinks.weight": "self_attn.sinks",
        **either(
            stack("mlp.experts.gate_up_proj", "mlp.experts.down_proj", groups="rows", transposed=True),
            stack("mlp.experts.gate_up_proj_blocks", "mlp.experts.down_proj_blocks", groups="rows"),
        ),
        **stack("mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj_bias", "bias", groups="rows"),
    },
    aliases={"num_experts": "num_local_experts"},
    fixed={"hidden_act": ("silu",)},
    gguf=GGUFFamily(
        "gpt-oss",
        truncate=False,
        keys={"expert_count": "num_local_experts"},
        tensors={"post_attention_layernorm": "post_attention_norm"},
    ),
)

ROWS = (GPT_OSS,)
