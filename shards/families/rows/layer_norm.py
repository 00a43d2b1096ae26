"""Families with LayerNorm: Cohere, StarCoder, StableLM, Nemotron."""

from __future__ import annotations

from typing import Any

from ...formats.blocks.attention import HeadNorm
from ...formats.blocks.block import BlockConfig
from ..family import Family, GGUFFamily
from ..pieces import attention, layer_norm, mlp, pre_norm, scalar, usual
from ..rope import rope
from ..settings import FULL, SLIDING, Settings, every


def _cohere_client(s: Settings) -> dict[str, Any]:
    return {"final_norm": layer_norm(s), "logit_multiplier": scalar(s, "logit_scale")}


def _cohere_block(s: Settings, kind: str, *, turns: bool) -> BlockConfig:
    """Attention and MLP beside each other, after one norm."""
    bias = s.flag("attention_bias")
    normed = s.flag("use_qk_norm", False)
    return BlockConfig(
        attention(
            s,
            rope=rope(s, interleaved=True) if turns else None,
            window=s.window() if kind == SLIDING else 0,
            qk_norm=HeadNorm(layer_norm(s), per_head=True) if normed else None,
            bias=bias,
            out_bias=bias,
        ),
        mlp(s),
        norm=layer_norm(s),
        parallel=True,
    )


COHERE = Family(
    types=("cohere",),
    architectures=("CohereForCausalLM",),
    defaults=usual(
        *(256000, 8192, 22528, 40, 64, None, 8192),
        logit_scale=0.0625,
        layer_norm_eps=1e-5,
        bos_token_id=5,
        tie_word_embeddings=True,
        attention_bias=False,
        use_qk_norm=False,
        rope_theta=500000.0,
    ),
    block=lambda s: _cohere_block(s, FULL, turns=True),
    client=_cohere_client,
    gguf=GGUFFamily("command-r", neighbours=True),
)


def _cohere2_block(s: Settings) -> BlockConfig:
    kind = s.layer_type(every(s.integer("sliding_window_pattern", least=1)))
    return _cohere_block(s, kind, turns=kind == SLIDING and s.window() > 0)


COHERE2 = Family(
    types=("cohere2",),
    architectures=("Cohere2ForCausalLM",),
    defaults=usual(
        *(256000, 8192, 22528, 40, 64, None, 8192),
        logit_scale=0.0625,
        layer_norm_eps=1e-5,
        bos_token_id=5,
        tie_word_embeddings=True,
        attention_bias=False,
        sliding_window=4096,
        sliding_window_pattern=4,
    ),
    block=_cohere2_block,
    client=_cohere_client,
    gguf=GGUFFamily("cohere2", neighbours=True),
)

STARCODER2 = Family(
    types=("starcoder2",),
    architectures=("Starcoder2ForCausalLM",),
    defaults=usual(
        *(49152, 3072, 12288, 30, 24, 2, 4096),
        hidden_act="gelu_pytorch_tanh",
        norm_epsilon=1e-5,
        bos_token_id=50256,
        use_bias=True,
        sliding_window=None,
        tie_word_embeddings=True,
    ),
    block=lambda s: pre_norm(
        s,
        attention(s, window=s.window(), bias=s.flag("use_bias"), out_bias=s.flag("use_bias")),
        mlp(s, gated=False, bias=s.flag("use_bias")),
        norm=layer_norm(s, "norm_epsilon", bias=True),
    ),
    client=lambda s: {"final_norm": layer_norm(s, "norm_epsilon", bias=True)},
    tensors={"mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"},
    gguf=GGUFFamily("starcoder2", keys={"attention.layer_norm_epsilon": "norm_epsilon"}),
)


def _stablelm_block(s: Settings) -> BlockConfig:
    norm, parallel = layer_norm(s, bias=True), s.flag("use_parallel_residual")
    return BlockConfig(
        attention(s, rope=rope(s, partial=True), bias=s.flag("use_qkv_bias")),
        mlp(s),
        norm=norm,
        mlp_norm=None if parallel else norm,
        parallel=parallel,
    )


STABLELM = Family(
    types=("stablelm",),
    architectures=("StableLmForCausalLM",),
    defaults=usual(
        *(50304, 2560, 6912, 32, 32, 32, 4096),
        layer_norm_eps=1e-5,
        bos_token_id=0,
        use_qkv_bias=False,
        use_parallel_residual=False,
        partial_rotary_factor=0.25,
    ),
    block=_stablelm_block,
    client=lambda s: {"final_norm": layer_norm(s, bias=True)},
    gguf=GGUFFamily("stablelm", settings={"use_parallel_residual": False}),
)

NEMOTRON = Family(
    types=("nemotron",),
    architectures=("NemotronForCausalLM",),
    defaults=usual(
        *(256000, 6144, 24576, 32, 48, None, 4096),
        hidden_act="relu2",
        norm_eps=1e-5,
        bos_token_id=2,
        attention_bias=False,
        mlp_bias=False,
        partial_rotary_factor=0.5,
    ),
    block=lambda s: pre_norm(
        s,
        attention(
            s,
            rope=rope(s, partial=True),
            bias=s.flag("attention_bias"),
            out_bias=s.flag("attention_bias"),
        ),
        mlp(s, gated=False, bias=s.flag("mlp_bias")),
        norm=layer_norm(s, "norm_eps", 1.0, bias=True),
    ),
    client=lambda s: {"final_norm": layer_norm(s, "norm_eps", 1.0, bias=True)},
    gguf=GGUFFamily("nemotron", keys={"attention.layer_norm_epsilon": "norm_eps"}),
)

ROWS = (COHERE, COHERE2, STARCODER2, STABLELM, NEMOTRON)
