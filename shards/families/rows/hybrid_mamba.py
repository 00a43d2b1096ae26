"""Families that mix Mamba-2 with attention: Bamba, Granite 4, Falcon-H1, Nemotron-H and Nemotron 3."""

from __future__ import annotations

from typing import Any

from ....swarm.errors import UnsupportedModelError
from ....swarm.types import MAX_BLOCKS
from ...formats.blocks.block import BlockConfig
from ...formats.blocks.experts import MAX_EXPERTS, ExpertsConfig, RouterConfig
from ...formats.blocks.mlp import MlpConfig
from ...formats.blocks.norm import NormConfig
from ...formats.blocks.rope import RopeConfig
from ...formats.values.bounds import MAX_WIDTH, SCALES
from ..experts import corrected_router, each_expert, experts
from ..family import Family, GGUFFamily
from ..mamba import GGUF_MAMBA, MambaKeys, mamba, mamba_names, mixer_kind
from ..names import Names, either, fused, mlp_named, stack
from ..pieces import attention, eps, mlp, rms, rms_client, scalar, usual
from ..rope import rope
from ..settings import FULL, LINEAR, Settings
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
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
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
        **either(
            stack("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
            each_expert("block_sparse_moe.switch_mlp"),
        ),
        **fused("shared_mlp.input_linear", "mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
        "mlp.shared_experts.down_proj": "shared_mlp.output_linear",
        **either(
            {**fused("shared_mlp.input_linear", *_GATE_UP), "mlp.down_proj": "shared_mlp.output_linear"},
            mlp_named("mlp", "mlp"),
        ),
    },
    aliases={"layers_block_type": "layer_types"},
    mlx=True,
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


def _multipliers(s: Settings, key: str, count: int) -> tuple[float, ...]:
    found = s.numbers(key, above=0.0, below=SCALES[1]) or (1.0,) * count
    if len(found) != count:
        raise s.wrong(key, f"{count} numbers")
    return found


def _multiplied(s: Settings, key: str, bias: str) -> float:
    """What the input of projections is multiplied by, and so what comes out of them, if they have no bias."""
    found = scalar(s, key)
    if found != 1 and s.flag(bias):
        raise UnsupportedModelError(f"{s.named(key)} is {found}: with {bias} that is not supported")
    return found


def _falcon_block(s: Settings) -> BlockConfig:
    bias, norm = s.flag("attention_bias"), rms(s)
    into = _multiplied(s, "attention_in_multiplier", "attention_bias")
    into_state = _multiplied(s, "ssm_in_multiplier", "mamba_proj_bias")
    gate, down = _multipliers(s, "mlp_multipliers", 2)
    expanded, inner = _expanded(s), s.optional_integer("mamba_d_ssm", least=1, most=MAX_WIDTH)
    return BlockConfig(
        attention(
            s,
            scale=s.head_dim**-0.5 * into**2 * scalar(s, "key_multiplier"),
            bias=bias,
            out_bias=bias,
        ),
        mlp(s, bias=s.flag("mlp_bias"), gate_factor=gate),
        norm=norm,
        mlp_norm=norm,
        state=mamba(
            s,
            inner or expanded,
            norm if s.flag("mamba_rms_norm") else None,
            gate_first=not s.flag("mamba_norm_before_gate"),
            out_bias=s.flag("projectors_bias"),
            factors=tuple(into_state * each for each in _multipliers(s, "ssm_multipliers", 5)),
        ),
        attention_factor=into * scalar(s, "attention_out_multiplier"),
        state_factor=scalar(s, "ssm_out_multiplier"),
        mlp_factor=down,
    )


def _falcon_client(s: Settings) -> dict[str, Any]:
    return {
        "final_norm": rms(s),
        "embedding_multiplier": scalar(s, "embedding_multiplier"),
        "logit_multiplier": scalar(s, "lm_head_multiplier"),
    }


FALCON_H1 = Family(
    types=("falcon_h1",),
    architectures=("FalconH1ForCausalLM",),
    defaults=usual(
        *(128000, 4096, 14336, 32, 32, 8, 8192),
        rms_norm_eps=1e-5,
        bos_token_id=1,
        attention_bias=False,
        mlp_bias=False,
        projectors_bias=False,
        mamba_d_ssm=1024,
        mamba_rms_norm=False,
        mamba_norm_before_gate=True,
        mlp_multipliers=None,
        ssm_multipliers=None,
        **dict.fromkeys(
            ("lm_head_multiplier", "embedding_multiplier", "key_multiplier", "attention_in_multiplier")
            + ("attention_out_multiplier", "ssm_in_multiplier", "ssm_out_multiplier"),
            1.0,
        )
        | _MAMBA,
    ),
    block=_falcon_block,
    client=_falcon_client,
    tensors={**_FEED_FORWARD, **mamba_names("mamba")},
    gguf=GGUFFamily(  # whose weights have been multiplied, as MLX's have
        "falcon-h1",
        settings={"mamba_norm_before_gate": False},
        keys=_KEYS.gguf,
        tensors={**GGUF_MAMBA, "post_attention_layernorm.weight": ("ffn_norm", "ffn_norm.weight")},
    ),
)


_NEMOTRON_KEYS = MambaKeys(
    heads="mamba_num_heads",
    head_dim="mamba_head_dim",
    state="ssm_state_size",
    groups="n_groups",
    taps="conv_kernel",
    conv_bias="use_conv_bias",
    bias="use_bias",
    activation="mamba_hidden_act",
)
_MOE, _MLP = "moe", "mlp"
_LETTERS = {"M": LINEAR, "*": FULL, "E": _MOE, "-": _MLP}
"""Of ``hybrid_override_pattern``."""


def _nemotron_layers(s: Settings) -> dict[str, Any]:
    """Each block's type, in older files by a letter; how many there are says how many blocks."""
    pattern = s.optional_text("hybrid_override_pattern")
    kinds: tuple[str, ...] = (LINEAR, _MOE, FULL, _MLP)
    if s.is_given("layer_types"):
        kinds = s.texts("layer_types")
    elif pattern is not None:
        if len(pattern) > MAX_BLOCKS or not {*pattern} <= _LETTERS.keys():
            raise s.wrong("hybrid_override_pattern", f"up to {MAX_BLOCKS} of the letters {''.join(_LETTERS)}")
        kinds = tuple(_LETTERS[letter] for letter in pattern)
    return {"layer_types": list(kinds), "num_hidden_layers": len(kinds)}


def _nemotron_kind(s: Settings) -> str:
    """In GGUF files, by the sizes that a block has."""
    if not s.is_gguf:
        return s.layer_type(known=(FULL, LINEAR, _MOE, _MLP))
    if s.integer("intermediate_size", most=MAX_WIDTH):
        return _MOE if s.optional_integer("n_routed_experts") else _MLP
    return mixer_kind(s)


def _nemotron_norm(s: Settings) -> NormConfig:
    return NormConfig(eps(s, "layer_norm_epsilon"))


def _nemotron_mlp(s: Settings, inner: str, *, bias: bool = False) -> MlpConfig:
    return mlp(s, inner, "mlp_hidden_act", gated=False, bias=bias)


def _nemotron_experts(s: Settings) -> ExpertsConfig:
    latent, bias = s.optional_integer("moe_latent_size", least=1, most=MAX_WIDTH) or 0, s.flag("mlp_bias")
    if s.integer("n_shared_experts") != 1:
        raise s.wrong("n_shared_experts", "1")
    if latent and bias:
        raise UnsupportedModelError(f"{s.named('moe_latent_size')} beside mlp_bias is not supported")
    return experts(
        s,
        corrected_router(s),
        count="n_routed_experts",
        mlp=_nemotron_mlp(s, "moe_intermediate_size"),
        shared=_nemotron_mlp(s, "moe_shared_expert_intermediate_size", bias=bias),
        latent=latent,
    )


def _nemotron_block(s: Settings) -> BlockConfig:
    """Of one part alone."""
    kind, norm = _nemotron_kind(s), _nemotron_norm(s)
    if kind == FULL:
        return BlockConfig(attention(s, rope=None), None, norm=norm)
    if kind == LINEAR:
        return BlockConfig(None, None, norm=norm, state=mamba(s, None, norm, _NEMOTRON_KEYS))
    if kind == _MOE:
        return BlockConfig(None, None, _nemotron_experts(s), mlp_norm=norm)
    return BlockConfig(None, _nemotron_mlp(s, "intermediate_size", bias=s.flag("mlp_bias")), mlp_norm=norm)


_NEMOTRON_EXPERTS: Names = {
    "mlp.router": "mixer.gate",
    "mlp.router.correction": "mixer.gate.e_score_correction_bias",
    "mlp.latent_in_proj": "mixer.fc1_latent_proj",
    "mlp.latent_out_proj": "mixer.fc2_latent_proj",
    **{
        name: own
        for part, mlx in (("up", "fc1"), ("down", "fc2"))
        for name, own in (
            (f"mlp.{part}_proj", f"mixer.{part}_proj"),
            (f"mlp.experts.{{}}.{part}_proj", (f"mixer.experts.{{}}.{part}_proj", f"mixer.switch_mlp.{mlx}")),
            (f"mlp.shared_experts.{part}_proj", f"mixer.shared_experts.{part}_proj"),
        )
    },
}

NEMOTRON_H = Family(
    types=("nemotron_h",),
    architectures=("NemotronHForCausalLM",),
    defaults=usual(
        *(131072, 4096, 21504, 4, 32, 8, 4096),
        head_dim=128,
        bos_token_id=1,
        layer_norm_epsilon=1e-5,
        mlp_hidden_act="relu2",
        mlp_bias=False,
        mamba_num_heads=128,
        mamba_head_dim=64,
        mamba_hidden_act="silu",
        ssm_state_size=128,
        n_groups=8,
        conv_kernel=4,
        use_conv_bias=True,
        use_bias=False,
        time_step_limit=(0.0, float("inf")),
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=7688,
        moe_shared_expert_intermediate_size=7688,
        moe_latent_size=None,
        routed_scaling_factor=1.0,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        router_correction=True,
        num_nextn_predict_layers=0,
    ),
    block=_nemotron_block,
    client=lambda s: {"final_norm": _nemotron_norm(s)},
    tensors={
        **mamba_names("mixer"),
        **_NEMOTRON_EXPERTS,
        **{f"self_attn.{part}_proj": f"mixer.{part}_proj" for part in "qkvo"},
        **dict.fromkeys(("input_layernorm", "post_attention_layernorm"), "norm"),
        "model.embed_tokens": "model.embeddings",
        "model.norm": "model.norm_f",
    },
    aliases={"layers_block_type": "layer_types", "num_local_experts": "n_routed_experts"}
    | {
        "mamba_n_groups": "n_groups",
        "mamba_d_conv": "conv_kernel",
        "mamba_dt_limit": "time_step_limit",
        "mamba_conv_bias": "use_conv_bias",
    },
    derived=_nemotron_layers,
    fixed={"sliding_window": (None,), "mamba_proj_bias": (False,)},
    ignored=r"mtp\..*",
    mlx=True,
    gguf=GGUFFamily(
        "nemotron_h",
        with_experts="nemotron_h_moe",
        settings={"scoring_func": "sigmoid", "use_bias": False},
        keys={
            **_NEMOTRON_KEYS.gguf,
            "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
            "expert_count": "n_routed_experts",
            "expert_shared_feed_forward_length": "moe_shared_expert_intermediate_size",
            "moe_latent_size": "moe_latent_size",
        },
        tensors={**GGUF_MAMBA, "post_attention_layernorm": "attn_norm"},
    ),
)
"""Steps are limited by ``time_step_limit``, as in NVIDIA's code and llama.cpp. transformers has
``time_step_min`` for their least, in chunks of tokens alone."""

ROWS = (BAMBA, GRANITEMOEHYBRID, FALCON_H1, NEMOTRON_H)
