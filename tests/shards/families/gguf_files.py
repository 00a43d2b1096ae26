"""A model of transformers as a GGUF file: names of the gguf package, and what llama.cpp's converter does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from swarm_node.shards.families.rows.table import FAMILIES
from tests.shards.gguf_files import add_vocabulary

from .gguf_delta import DELTA, state_parts, state_settings
from .gguf_mamba import HYBRID, add_mamba, falcon_scaled, has_rope, mamba_parts, nemotron_parts

NEIGHBOURS = {"llama", "ministral3", "granite", "smollm3", "arcee", "mixtral", "granitemoeshared"}
NEIGHBOURS |= {"granitemoehybrid"}
"""Families with rotated halves for which llama.cpp turns neighbours: rows of q and k are put so."""
ONE_MORE = {"gemma", "gemma2", "gemma3_text", "nemotron"}
"""Families that keep weights of norms less one; the file has them whole."""
NUMBERS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "norm_epsilon": "attention.layer_norm_epsilon",
    "norm_eps": "attention.layer_norm_epsilon",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "logit_scale": "logit_scale",
    "logits_scaling": "logit_scale",
    "residual_multiplier": "residual_scale",
    "embedding_multiplier": "embedding_scale",
    "attention_multiplier": "attention.scale",
    **dict.fromkeys(
        ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), "expert_count"
    ),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "top_k_experts"), "expert_used_count"),
    **dict.fromkeys(("n_shared_experts", "moe_num_shared_experts"), "expert_shared_count"),
    **dict.fromkeys(("first_k_dense_replace", "moe_layer_start_index"), "leading_dense_block_count"),
    **dict.fromkeys(("interleave_moe_layer_step", "moe_layer_interval"), "interleave_moe_layer_step"),
    **dict.fromkeys(
        ("shared_expert_intermediate_size", "shared_intermediate_size"), "expert_shared_feed_forward_length"
    ),
    "moe_intermediate_size": "expert_feed_forward_length",
    "intermediate_size_mlp": "feed_forward_length",
    "routed_scaling_factor": "expert_weights_scale",
    "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
    "q_lora_rank": "attention.q_lora_rank",
    "kv_lora_rank": "attention.kv_lora_rank",
    "qk_head_dim": "attention.key_length_mla",
    "v_head_dim": "attention.value_length_mla",
    "index_n_heads": "attention.indexer.head_count",
    "index_head_dim": "attention.indexer.key_length",
    "index_topk": "attention.indexer.top_k",
}
SAME_FILES = {
    "olmo3": "olmo2",
    "deepseek_v2": "deepseek_v3",
    "glm4_moe_lite": "deepseek_v3",
    "granitemoe": "granitemoeshared",
}
"""Families whose files say that they are another's."""
NEWER = {"deepseek32": "glm-dsa"}
"""Architectures that the gguf package does not know yet → one that has the same names of tensors."""
SIGMOID = {"deepseek_v3", "deepseek_v32", "glm_moe_dsa", "glm4_moe", "glm4_moe_lite", "minimax_m2", "dots1"}
TRANSPOSED = {"gpt_oss", "llama4_text"}
WINDOWED = {"gemma4_text", "gemma2", "gemma3_text", "cohere2", "olmo2", "olmo3", "exaone4"}


def write_gguf(
    model: Any, path: Path, *, quantize: str | None = None, only: str = "", vocabulary: bool = False
) -> Path:
    """``quantize``: a type for matrices whose columns it fits, and whose names have ``only``. ``vocabulary``:
    with one of 50 tokens."""
    config = model.config.get_text_config()
    family = SAME_FILES.get(config.model_type, config.model_type)
    row = FAMILIES[family].gguf
    assert row is not None
    arch = row.architecture
    if family == "nemotron_h" and "moe" in config.layers_block_type:
        arch = row.with_experts
    writer = gguf.GGUFWriter(path, arch)
    _add_settings(writer, arch, config)
    if vocabulary:
        add_vocabulary(writer)
    like = NEWER.get(arch, arch)
    number = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == like)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    for name, value in _state(model).items():
        name = name.replace("layer_scalar", "layer_scalar.weight")
        if family == "falcon_h1":
            value = falcon_scaled(name, value, config)
        parts = _parts(family, name, value, config)
        for part, each in parts or [(name, _converted(family, name, value, config))]:
            stored = part if parts else names.get_name(part, try_suffixes=(".weight", ".bias"))
            assert stored is not None, name
            _add(writer, stored, each, quantize if only in stored else None)
    if factors := _rope_factors(config):
        for kind, each in factors.items():
            writer.add_tensor(f"rope_factors_{kind}.weight", np.array(each, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _state(model: Any) -> dict[str, np.ndarray]:
    tied = model.config.get_text_config().tie_word_embeddings
    return {
        name: value.float().numpy()
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def _parts(family: str, name: str, value: np.ndarray, config: Any) -> list[tuple[str, np.ndarray]]:
    """What the gguf package has no name for, or lies there otherwise: under llama.cpp's names."""
    if family == "nemotron_h":
        return nemotron_parts(name, value, config)
    if ".layers." not in name:
        return []
    block, part = f"blk.{name.split('.')[2]}", name.split(".", 3)[3]
    if parts := state_parts(family, part, value, config):
        return [(f"{block}.{name}", each) for name, each in parts]
    last, kind = part.split(".")[-1].removesuffix("_bias"), "bias" if part.endswith("_bias") else "weight"
    if part.startswith("mamba."):
        return mamba_parts(block, part.removeprefix("mamba."), value, config)
    if part.endswith("e_score_correction_bias"):
        return [(f"{block}.exp_probs_b.bias", value.reshape(-1))]
    if ".router." in part or part.endswith(("router.proj.weight", "mlp.gate.weight", "gate.wg.weight")):
        return [(f"{block}.ffn_gate_inp.{last}", value)]
    if part in ("router.scale", "router.per_expert_scale"):
        return [(f"{block}.{'ffn_gate_inp' if part == 'router.scale' else 'ffn_down_exps'}.scale", value)]
    if family == "gemma4_text" and part.startswith("experts."):
        return [(f"{block}.ffn_{'down' if last == 'down_proj' else 'gate_up'}_exps.weight", value)]
    if ".experts." in part or "shared_mlp.input_linear" in part or "shared_mlp.output_linear" in part:
        end = "_exps" if ".experts." in part else "_shexp"
        if getattr(config, "num_local_experts", None) == 0:
            end = ""
        if family in TRANSPOSED and kind == "weight":
            value = value.swapaxes(1, 2)
        if last == "down_proj" or "output_linear" in part:
            return [(f"{block}.ffn_down{end}.{kind}", value)]
        axis = 1 if end == "_exps" else 0
        both = (value[:, ::2], value[:, 1::2]) if family == "gpt_oss" else np.split(value, 2, axis)
        return [
            (f"{block}.ffn_{each}{end}.{kind}", half) for each, half in zip(("gate", "up"), both, strict=True)
        ]
    if "kv_b_proj" in part:
        heads = value.reshape(config.num_attention_heads, -1, value.shape[1])
        keys, values = np.split(heads, [config.qk_nope_head_dim], 1)
        return [(f"{block}.attn_k_b.weight", keys.swapaxes(1, 2)), (f"{block}.attn_v_b.weight", values)]
    return [(f"{block}.attn_sinks.weight", value)] if part.endswith("sinks") else []


def _add(writer: gguf.GGUFWriter, name: str, value: np.ndarray, quantize: str | None) -> None:
    if quantize is not None and name.endswith(".weight") and value.ndim > 1 and value.shape[-1] % 32 == 0:
        kind = gguf.GGMLQuantizationType[quantize]
        writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, np.ascontiguousarray(value))


def _converted(family: str, name: str, value: np.ndarray, config: Any) -> np.ndarray:
    if family in ONE_MORE and name.endswith("norm.weight"):
        return value + 1
    if family in DELTA and name.endswith("norm.weight"):
        return value + 1
    counts = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    if family in NEIGHBOURS and (count := counts.get(name.split(".")[-2])):
        heads = getattr(config, count)
        halves = value.reshape(heads, 2, len(value) // heads // 2, *value.shape[1:])
        return halves.swapaxes(1, 2).reshape(value.shape)
    return value


def _add_settings(writer: gguf.GGUFWriter, arch: str, config: Any) -> None:
    special = _add_gemma4(writer, arch, config) if config.model_type == "gemma4_text" else ()
    if hybrid := config.model_type in HYBRID:
        special = add_mamba(writer, arch, config)
    of_experts = ("llama4_text", "gpt_oss", "minimax_m2", "hunyuan_v1_moe")
    given = {
        name: value
        for key, name in NUMBERS.items()
        if key not in special and (value := getattr(config, key, None)) is not None
    }
    if config.model_type in of_experts:
        given["expert_feed_forward_length"] = config.intermediate_size
    if config.model_type == "hunyuan_v1_moe":
        given |= {"expert_shared_count": 1, "expert_shared_feed_forward_length": config.intermediate_size}
    if latent := hasattr(config, "kv_lora_rank"):
        given |= {
            "attention.head_count_kv": 1,
            "attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim,
            "attention.value_length": config.kv_lora_rank,
        }
    given |= state_settings(config)
    if isinstance(used := given.get("expert_used_count"), list):
        given["expert_used_count"] = used[0]
    if "shared" in (kinds := getattr(config, "indexer_types", None) or ()):
        writer.add_array(f"{arch}.attention.indexer.types", [kind == "full" for kind in kinds])
    if hasattr(config, "mlp_layer_types"):
        given["leading_dense_block_count"] = config.mlp_layer_types.index("sparse")
    if config.model_type in SIGMOID:
        given["expert_gating_func"] = 2
    if "expert_group_count" in given or latent:
        writer.add_expert_weights_norm(config.norm_topk_prob)
    for name, value in given.items():
        if isinstance(value, float):
            writer.add_float32(f"{arch}.{name}", value)
        elif isinstance(value, list):
            writer.add_array(f"{arch}.{name}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"{arch}.{name}", value)
    if getattr(config, "use_parallel_residual", False):
        writer.add_bool(f"{arch}.use_parallel_residual", True)
    kinds = getattr(config, "layer_types", None)
    if config.model_type in WINDOWED and kinds and getattr(config, "sliding_window", None):
        writer.add_array(
            f"{arch}.attention.sliding_window_pattern", [kind == "sliding_attention" for kind in kinds]
        )
    rope = getattr(config, "rope_parameters", {})
    if not rope:
        return
    if "full_attention" in rope:
        if (local := rope["sliding_attention"]["rope_theta"]) != rope["full_attention"]["rope_theta"]:
            writer.add_float32(f"{arch}.rope.freq_base_swa", local)
        rope = rope["full_attention"]
    if hybrid and not has_rope(config):
        return
    if special and not hybrid:
        writer.add_rope_freq_base(rope["rope_theta"])
        return
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    head_dim = config.qk_rope_head_dim if latent else head_dim
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"] * rope.get("alpha", 1.0) ** (head_dim / (head_dim - 2)))
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_string(f"{arch}.rope.scaling.type", rope["rope_type"])
        writer.add_rope_scaling_factor(rope["factor"])
    if "original_max_position_embeddings" in rope:
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if "mscale_all_dim" in rope:
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"] * (0.1 if latent else 1.0))
    if "short_mscale" in rope:
        writer.add_rope_scaling_attn_factors(rope["short_mscale"])
    if "llama_4_scaling_beta" in rope:
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])


def _add_gemma4(writer: gguf.GGUFWriter, arch: str, config: Any) -> tuple[str, ...]:
    """Blocks without a window have heads of their own; gives the keys that say so."""
    layers = [config.per_layer_config[block] for block in range(config.num_hidden_layers)]
    full, own = layers[-1].head_dim, layers[0].head_dim
    writer.add_key_length(full)
    writer.add_value_length(full)
    writer.add_key_length_swa(own)
    writer.add_value_length_swa(own)
    writer.add_rope_dimension_count(full)
    writer.add_rope_dimension_count_swa(own)
    writer.add_head_count_kv([layer.num_key_value_heads for layer in layers])
    writer.add_shared_kv_layers(config.num_kv_shared_layers)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
    wide = {"reuse": 2 if config.use_double_wide_mlp else 1}
    writer.add_feed_forward_length(
        [config.intermediate_size * wide.get(mode, 1) for mode in config.kv_sharing_modes]
    )
    turned = int(full * config.rope_parameters["full_attention"]["partial_rotary_factor"] / 2)
    writer.add_tensor(
        "rope_freqs.weight", np.array([1.0] * turned + [1e30] * (full // 2 - turned), np.float32)
    )
    return "head_dim", "num_key_value_heads", "intermediate_size"


def _rope_factors(config: Any) -> dict[str, list[float]]:
    rope = getattr(config, "rope_parameters", {})
    if rope.get("rope_type") != "longrope":
        return {}
    return {"long": rope["long_factor"], "short": rope["short_factor"]}
