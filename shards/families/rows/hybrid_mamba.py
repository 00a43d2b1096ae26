"""Families that mix Mamba-2 with attention: Bamba, Granite 4, Falcon-H1, Nemotron-H and Nemotron 3."""

from __future__ import annotations

from typing import Any

from ....swarm.errors import UnsupportedModelError
from ...formats.blocks.block import BlockConfig
from ...formats.blocks.experts import MAX_EXPERTS, RouterConfig
from ...formats.blocks.rope import RopeConfig
from ...formats.values.bounds import MAX_WIDTH
from ..experts import experts
from ..family import Family, GGUFFamily
from ..mamba import GGUF_MAMBA, MambaKeys, mamba, mamba_names, mixer_kind
from ..names import Names, fused, mlp_named, stack
from ..pieces import attention, mlp, rms, rms_client, scalar, usual
from ..rope import rope
from ..settings import FULL, Settings
from .llama import GRANITE_FACTORS, granite_attention, granite_client

_KEYS = MambaKeys()
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 128,
    "mamba_d_head": "auto",
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "time_step_limit": (0.0, float("inf")),
}
_FEED_FORWARD: Names = {
    "post_attention_layernorm": "pre_ff_layernorm",
    **mlp_named("mlp", "feed_forward"),
    "model.norm": "model.final_layernorm",
}


def _expanded(s: Settings) -> int | None:
    """Of Mamba's values, which GGUF files say themselves."""
    return None if s.is_gguf else s.integer("mamba_expand", least=1, most=MAX_WIDTH) * s.hidden


def _bamba_block(s: Settings) -> BlockConfig:
    bias, norm = s.flag("attention_bias"), rms(s)
    attends = s.block in s.integers("attn_layer_indices", most=MAX_WIDTH)
    turns = rope(s, partial=True)
    return BlockConfig(
        attention(s, rope=turns, bias=bias, out_bias=bias) if attends else None,
        mlp(s, bias=s.flag("mlp_bias")),
        norm=norm,
        mlp_norm=norm,
        state=None if attends else mamba(s, _expanded(s), norm),
    )


BAMBA = Family(
    types=("bamba",),
    architectures=("BambaForCausalLM",),
    defaults=usual(
        *(128000, 4096, 14336, 32, 32, 8, 262144),
        rms_norm_eps=1e-5,
        bos_token_id=1,
        attention_bias=False,
        mlp_bias=False,
        attn_layer_indices=None,
        partial_rotary_factor=0.5,
        **_MAMBA,
    ),
    block=_bamba_block,
    client=rms_client,
    tensors={**_FEED_FORWARD, **mamba_names("mamba")},
    fixed={"partial_rotary_factor": (0.5,)},
)
"""llama.cpp's converter puts the rows of q and k in order as if whole heads were rotated, and half of each
is: its files of Bamba are read as Granite's, and refused by their ``rope.dimension_count``."""


def _granite_rope(s: Settings) -> RopeConfig | None:
    """Only where the file says so."""
    key = "position_embedding_type"
    if s.is_gguf:
        return rope(s) if s.flag(key, False) else None
    if not s.is_one_of(key, (None, "nope", "rope")):
        raise UnsupportedModelError(f"{s.named(key)} is {s.shown(key)}, expected rope or nope")
    return rope(s) if s.value(key) == "rope" else None


def _granite_block(s: Settings) -> BlockConfig:
    attends, norm = mixer_kind(s) == FULL, rms(s)
    is_sparse = bool(s.optional_integer("num_local_experts", most=MAX_EXPERTS))
    shared, dense = "shared_intermediate_size", "intermediate_size"
    s.has("attention_multiplier")  # which says nothing where no block has attention
    some = None
    if is_sparse:
        some = experts(
            s,
            RouterConfig("softmax_of_used", renormalise=False),
            count="num_local_experts",
            inner=dense,
            shared=mlp(s, shared) if s.optional_integer(shared) else None,
        )
    return BlockConfig(
        granite_attention(s, rope=_granite_rope(s)) if attends else None,
        None if is_sparse else mlp(s, dense if s.is_gguf else shared),
        experts=some,
        norm=norm,
        mlp_norm=norm,
        residual_multiplier=scalar(s, "residual_multiplier"),
        state=None if attends else mamba(s, _expanded(s), norm),
    )


GRANITEMOEHYBRID = Family(
    types=("granitemoehybrid",),
    architectures=("GraniteMoeHybridForCausalLM",),
    defaults=usual(
        *(32000, 4096, 11008, 32, 32, None, 2048),
        bos_token_id=1,
        attention_bias=False,
        num_local_experts=8,
        num_experts_per_tok=2,
        shared_intermediate_size=1024,
        position_embedding_type=None,
        **GRANITE_FACTORS | _MAMBA,
    ),
    block=_granite_block,
    client=granite_client,
    tensors={
        **mamba_names("mamba"),
        "mlp.router": "block_sparse_moe.router.layer",
        **stack("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
        **fused("shared_mlp.input_linear", "mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
        **fused("shared_mlp.input_linear", "mlp.gate_proj", "mlp.up_proj"),
        **dict.fromkeys(("mlp.shared_experts.down_proj", "mlp.down_proj"), "shared_mlp.output_linear"),
    },
    aliases={"layers_block_type": "layer_types"},
    gguf=GGUFFamily(
        "granitehybrid",
        neighbours=True,
        keys={
            **_KEYS.gguf,
            "expert_count": "num_local_experts",
            "logit_scale": "logits_scaling",
            "expert_shared_feed_forward_length": "shared_intermediate_size",
            "rope.scaling.finetuned": "position_embedding_type",
        },
        tensors=GGUF_MAMBA,
    ),
)

ROWS = (BAMBA, GRANITEMOEHYBRID)
