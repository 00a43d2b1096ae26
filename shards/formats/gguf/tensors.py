"""The tensors of a GGUF file as its configuration describes them."""

from __future__ import annotations

import re
from dataclasses import replace

from ...families.named_source import NamedSource, next_blocks
from ...families.names import Names
from ...families.places import next_places, places
from ...families.rows.table import FAMILIES
from ..config import ModelConfig
from ..tensors import SIDE_EMBEDDING, SIDE_NORM, SIDE_PROJECTION
from .config import FREQUENCIES, LONG, SHORT, gguf_config
from .reader import GGUFSource

NAMES: Names = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.sinks.weight": "attn_sinks.weight",
    "self_attn.out_norm": "post_attention_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.k_b_proj": "attn_k_b",
    "self_attn.v_b_proj": "attn_v_b",
    "scalar.weight": "layer_output_scale.weight",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.out_norm": "post_ffw_norm",
    "mlp.latent_in_proj": "ffn_latent_down",
    "mlp.latent_out_proj": "ffn_latent_up",
    "mlp.router": "ffn_gate_inp",
    "mlp.router.correction": "exp_probs_b.bias",
    "mlp.router.scale": "ffn_gate_inp.scale",
    "mlp.router.expert_scale": "ffn_down_exps.scale",
    "mlp.experts_norm": "pre_ffw_norm_2",
    "mlp.dense_out_norm": "post_ffw_norm_1",
    "mlp.experts_out_norm": "post_ffw_norm_2",
    "mlp.experts.{}.gate_proj": "ffn_gate_exps",
    "mlp.experts.{}.up_proj": "ffn_up_exps",
    "mlp.experts.{}.down_proj": "ffn_down_exps",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
    "post_per_layer_input_norm": "post_norm",
    SIDE_EMBEDDING.removesuffix(".weight"): "per_layer_token_embd",
    SIDE_PROJECTION: "per_layer_model_proj",
    SIDE_NORM: "per_layer_proj_norm",
}
"""Our names → llama.cpp's, where a family's row has no other."""
_NEXT: Names = {
    "next.embedding_norm": "nextn.enorm",
    "next.hidden_norm": "nextn.hnorm",
    "next.projection": "nextn.eh_proj",
    "next.norm": "nextn.shared_head_norm",
}


def gguf_tensors(source: GGUFSource) -> tuple[ModelConfig, NamedSource]:
    """The configuration and all tensors of the model. CheckpointError, UnsupportedModelError: see
    ``gguf_config`` and ``NamedSource``."""
    config = gguf_config(source)
    gguf = FAMILIES[config.family].gguf
    names = {**NAMES, **(gguf.tensors if gguf else {})}
    found = places(config, names, "blk.{}.", source.manifest)
    where = str(source.header.file.path)
    ropes = {block.rope for block in config.blocks}
    is_long = any(rope is not None and rope.long_factors for rope in ropes)
    read = [FREQUENCIES, *((LONG, SHORT) if is_long else ())]
    family = FAMILIES[config.family].next
    row = (
        replace(family, in_block="blk.{}.", beside="blk.{}.", apart=False, tensors=_NEXT) if family else None
    )
    behind = next_places(config, row, names, source.manifest) if row else {}
    ignored = "|".join([*map(re.escape, read), next_blocks(config, "blk.{}."), *_unread(config)])
    return config, NamedSource(source, found, where, ignored=ignored, bias_optional=True, behind=behind)


def _unread(config: ModelConfig) -> list[str]:
    """Patterns of tensors that files have for blocks that read another's keys and values, for nothing."""
    blocks = (number for number, block in enumerate(config.blocks) if block.kv_of is not None)
    return [rf"blk\.{number}\.attn_(k|v|k_norm)\.weight" for number in blocks]
