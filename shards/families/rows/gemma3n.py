"""Gemma 3n: four residual streams, a learned residual, values of each token beside them. Its text part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...formats.blocks.attention import HeadNorm
from ...formats.blocks.block import MAX_STREAMS, BlockConfig, LaurelConfig, StreamsConfig
from ...formats.blocks.mlp import MlpConfig
from ...formats.values.bounds import MAX_WIDTH
from ..family import Family
from ..pieces import attention, mlp, rms, usual
from ..rope import rope
from ..settings import FULL, SLIDING, Settings, every
from .gemma import OF_ANOTHER, SANDWICH, THETA, kv_of_kind, sandwich, side, sideband_client

_SPARSE_BLOCKS, _SPARSITY = 10, 0.95
"""Of a file that says nothing: so many blocks, if there are more, are so sparse."""


def _kind(s: Settings) -> str:
    return s.layer_type(every(5))


def _own(s: Settings, key: str, values: Sequence[Any]) -> Any:
    """This block's of a list with one for each."""
    if len(values) != s.n_blocks:
        raise s.wrong(key, f"a number for each of {s.n_blocks} blocks")
    return values[s.block]


def _mlp(s: Settings) -> MlpConfig:
    key, pattern = "intermediate_size", "activation_sparsity_pattern"
    if isinstance(given := s.value(key), list):
        s = s.with_values({key: _own(s, key, given)})
    if s.is_null(pattern):
        sparsity = _SPARSITY if s.block < _SPARSE_BLOCKS < s.n_blocks else 0.0
    else:
        sparsity = _own(s, pattern, s.numbers(pattern, least=0, below=1.0))
    return replace(mlp(s, activation="hidden_activation"), sparsity=sparsity)


def _streams(s: Settings) -> StreamsConfig:
    count = s.integer("altup_num_inputs", least=2, most=MAX_STREAMS)
    active = s.integer("altup_active_idx", most=count - 1)
    return StreamsConfig(count, active, rms(s), s.flag("altup_correct_scale"))


def _block(s: Settings) -> BlockConfig:
    kind, kv_of = _kind(s), kv_of_kind(s, _kind)
    bias = s.flag("attention_bias")
    return sandwich(
        s,
        attention(
            s,
            scale=1.0,
            rope=rope(s, kind, theta_key=THETA[kind], scaled=kind == FULL),
            window=s.window() if kind == SLIDING else 0,
            qk_norm=HeadNorm(rms(s)),
            v_norm=None if kv_of is not None else rms(s, weighted=False),
            bias=bias,
            out_bias=bias,
        ),
        _mlp(s),
        0.0,
        side=side(s),
        kv_of=kv_of,
        laurel=LaurelConfig(s.integer("laurel_rank", least=1, most=MAX_WIDTH), rms(s)),
        streams=_streams(s),
    )


GEMMA3N = Family(
    types=("gemma3n_text",),
    architectures=("Gemma3nForCausalLM",),
    defaults=usual(
        *(262400, 2048, 16384, 35, 8, 2, 32768),
        head_dim=256,
        hidden_activation="gelu_pytorch_tanh",
        bos_token_id=2,
        tie_word_embeddings=True,
        attention_bias=False,
        sliding_window=512,
        final_logit_softcapping=30.0,
        vocab_size_per_layer_input=262144,
        hidden_size_per_layer_input=256,
        num_kv_shared_layers=15,
        altup_num_inputs=4,
        altup_active_idx=0,
        altup_correct_scale=True,
        laurel_rank=64,
        activation_sparsity_pattern=None,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
    ),
    block=_block,
    client=lambda s: {**sideband_client(s), "streams": _streams(s).count},
    tensors=SANDWICH,
    ignored=rf"{OF_ANOTHER}|.*altup\.correct_output_scale",
    wrappers=("gemma3n",),
)

ROWS = (GEMMA3N,)
