"""OLMo and EXAONE: norms after attention and MLP alone."""

from __future__ import annotations

from ...formats.blocks.attention import HeadNorm
from ...formats.blocks.block import BlockConfig
from ...formats.blocks.rope import RopeConfig
from ..family import Family, GGUFFamily
from ..names import Names
from ..pieces import attention, mlp, rms, rms_client, usual
from ..rope import rope
from ..settings import FULL, SLIDING, Settings, every

POST: Names = {
    "self_attn.out_norm": "post_attention_layernorm",
    "mlp.out_norm": "post_feedforward_layernorm",
}


def olmo_block(s: Settings, rope: RopeConfig | None, window: int = 0) -> BlockConfig:
    bias, norm = s.flag("attention_bias"), rms(s)
    return BlockConfig(
        attention(
            s,
            rope=rope,
            window=window,
            qk_norm=HeadNorm(norm, over="all"),
            bias=bias,
            out_bias=bias,
        ),
        mlp(s),
        attention_out_norm=norm,
        mlp_out_norm=norm,
    )


def _by_kind(s: Settings, kind: str) -> BlockConfig:
    return olmo_block(s, rope(s, kind, scaled=kind == FULL), s.window() if kind == SLIDING else 0)


OLMO2 = Family(
    types=("olmo2",),
    architectures=("Olmo2ForCausalLM",),
    defaults=usual(*(50304, 4096, 11008, 32, 32, None, 2048), rms_norm_eps=1e-5, attention_bias=False),
    block=lambda s: _by_kind(s, s.layer_type() if s.is_gguf else FULL),
    client=rms_client,
    tensors=POST,
    gguf=GGUFFamily("olmo2"),  # and OLMo 3's, which have windows
)

OLMO3 = Family(
    types=("olmo3",),
    architectures=("Olmo3ForCausalLM",),
    defaults=usual(
        *(50304, 4096, 11008, 32, 32, None, 2048),
        rms_norm_eps=1e-5,
        attention_bias=False,
        sliding_window=4096,
        rope_theta=500000.0,
    ),
    block=lambda s: _by_kind(s, s.layer_type(every(4))),
    client=rms_client,
    tensors=POST,
)


def _exaone4_block(s: Settings) -> BlockConfig:
    """With windows, blocks without one have no rope."""
    window, norm = s.window(), rms(s)

    def otherwise(block: int) -> str:  # a file with layer_types may call the pattern "LLLG"
        return every(s.optional_integer("sliding_window_pattern") or 1)(block) if window else FULL

    s.has("sliding_window_pattern")
    kind = s.layer_type(otherwise)
    slides = window > 0 and kind == SLIDING
    return BlockConfig(
        attention(
            s,
            rope=rope(s) if slides or not window else None,
            window=window if slides else 0,
            qk_norm=HeadNorm(norm),
        ),
        mlp(s),
        attention_out_norm=norm,
        mlp_out_norm=norm,
    )


EXAONE4 = Family(
    types=("exaone4",),
    architectures=("Exaone4ForCausalLM",),
    defaults=usual(
        *(102400, 4096, 16384, 32, 32, 32, 2048),
        rms_norm_eps=1e-5,
        bos_token_id=0,
        sliding_window=4096,
        sliding_window_pattern=4,
    ),
    block=_exaone4_block,
    client=rms_client,
    tensors=POST,
    gguf=GGUFFamily("exaone4"),
)

ROWS = (OLMO2, OLMO3, EXAONE4)
