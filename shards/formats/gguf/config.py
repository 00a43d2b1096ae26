"""A ``ModelConfig`` from the metadata of a GGUF file, read as llama.cpp reads it.

Its keys become transformers' by one table, and the family's row reads these. A key of the architecture that
is not read, or not known here, has to have a value with which it changes nothing, or is refused by name.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

from ....swarm.errors import CheckpointError, UnsupportedModelError
from ....swarm.types import MAX_BLOCKS
from ...families.family import Family
from ...families.model import model_config
from ...families.rows.table import BY_GGUF, unsupported_family
from ...families.settings import FULL, LINEAR, SLIDING, Settings
from ..advice.pooling import pooling_of_gguf
from ..advice.sampling import SamplingAdvice
from ..blocks.rope import THETAS
from ..config import ModelConfig
from ..tensors import main_qtype
from ..values.bounds import MAX_CONTEXT, MAX_VOCAB, MAX_WIDTH, SCALES
from ..values.fields import Fields
from .header import GGUFArray, GGUFHeader
from .reader import GGUFSource
from .unread import GATING, check_unread

FREQUENCIES = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
"""Tensors that belong to the settings."""
KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.scale": "attention_multiplier",
    "attention.temperature_scale": "llama_4_scaling_beta",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "logit_scale": "logit_scale",
    "residual_scale": "residual_multiplier",
    "embedding_scale": "embedding_multiplier",
    "use_parallel_residual": "use_parallel_residual",
    "rope.freq_base_swa": "rope_local_base_freq",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_count": "n_shared_experts",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob",
    "expert_gating_func": "scoring_func",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "leading_dense_block_count": "first_k_dense_replace",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.key_length_mla": "qk_head_dim",
    "attention.value_length_mla": "v_head_dim",
}
"""Keys of an architecture, without its name → transformers'."""
OFF_AT_ZERO = frozenset(
    ("sliding_window", "attention_multiplier", "llama_4_scaling_beta", "attn_logit_softcapping")
    + ("final_logit_softcapping", "logit_scale", "residual_multiplier", "embedding_multiplier")
    + ("q_lora_rank", "kv_lora_rank", "routed_scaling_factor", "scoring_func")
)
"""Keys with which zero means the same as nothing."""
_NEVER = 1e20
"""A frequency that is divided by so much, or more, turns nothing."""
_ATTENTION_BIAS = r"blk\.[0-9]+\.attn_(q|k|v|qkv|output)\.bias"
_CONV_BIAS = r"blk\.[0-9]+\.ssm_conv1d\.bias"
_MLP_BIAS = r"blk\.[0-9]+\.ffn_(gate|up|down)\.bias"
FLAGS = {
    flag: re.compile(pattern)
    for flag, pattern in {
        "attention_bias": _ATTENTION_BIAS,
        "use_qkv_bias": r"blk\.[0-9]+\.attn_(q|k|v|qkv)\.bias",
        "mlp_bias": _MLP_BIAS,
        "use_bias": f"{_ATTENTION_BIAS}|{_MLP_BIAS}",
        "attention_out_bias": r"blk\.[0-9]+\.attn_output\.bias",
        "mamba_conv_bias": _CONV_BIAS,
        "use_conv_bias": _CONV_BIAS,
        "mamba_rms_norm": r"blk\.[0-9]+\.ssm_norm\.weight",
        "qkv_bias": r"blk\.[0-9]+\.attn_(q|k|v|qkv)\.bias",
        "lm_head_bias": r"output\.bias",
        **dict.fromkeys(("router_correction", "use_expert_bias"), r"blk\.[0-9]+\.exp_probs_b(\.bias)?"),
        "conv_bias": r"blk\.[0-9]+\.shortconv\..*\.bias",
        "use_qk_norm": r"blk\.[0-9]+\.attn_q_norm\.weight",
    }.items()
}
"""Flags of transformers that a GGUF file does not have, and the tensors that say them."""


def gguf_config(source: GGUFSource) -> ModelConfig:
    """CheckpointError for metadata missing or wrong, UnsupportedModelError for other architectures."""
    header = source.header
    where = str(header.file.path)
    file = Fields(header.metadata, where)
    architecture = file.optional_text("general.architecture") or ""
    has_experts = not file.is_one_of(f"{architecture}.expert_count", (0,))
    _refuse_other_kinds(file, architecture, source)
    family = BY_GGUF.get((architecture, has_experts)) or BY_GGUF.get((architecture, not has_experts))
    if family is None:
        raise unsupported_family(architecture or None, where)
    if "token_embd.weight" not in source.manifest:
        raise CheckpointError(f"{where} has no tensor token_embd.weight")
    own = Fields(_own_values(header, f"{architecture}."), where, f"{architecture}.")
    translation = _Translation(source, family, own)
    settings = translation.settings(file)
    config = model_config(
        family,
        settings,
        eos_token_ids=gguf_eos_ids(header),
        native_dtype=main_qtype({name: info for name, info in source.manifest.items() if ".weight" in name}),
    )
    check_unread(own, settings, translation.keys, config)
    return replace(
        config,
        sampling=SamplingAdvice.of_gguf(header.metadata),
        pooling=pooling_of_gguf(architecture, header.metadata),
    )


def _refuse_other_kinds(file: Fields, architecture: str, source: GGUFSource) -> None:
    """UnsupportedModelError for files that belong to a model and are none, as llama.cpp marks them."""
    kind = file.optional_text("general.type") or ""
    if architecture == "clip" or kind == "mmproj":
        what, hint = "what a model sees and hears with (mmproj)", "Give the GGUF file of the model beside it."
    elif kind == "imatrix" or file.has("imatrix.datasets"):
        what = "a record of which weights matter (imatrix), made for quantizing"
        hint = "Give the GGUF file of the model."
    elif kind == "adapter" or file.has("adapter.type"):
        what, hint = (
            "an adapter (LoRA)",
            "Merge it first: llama-export-lora -m MODEL --lora ADAPTER -o OUTPUT",
        )
    elif architecture == "controlvector":
        what, hint = "a control vector", "Give the GGUF file of the model."
    elif architecture and not source.manifest:
        what, hint = "a vocabulary without weights", "Give the GGUF file of the model."
    else:
        return
    raise UnsupportedModelError(f"{file.where} is no model but {what}", hint=hint)


def gguf_eos_ids(header: GGUFHeader) -> tuple[int, ...]:
    """The tokens for the end of text, of turn and of message, if the file names them."""
    read = Fields(header.metadata, str(header.file.path))
    found = (
        read.optional_integer(f"tokenizer.ggml.{name}_token_id", most=MAX_VOCAB - 1)
        for name in ("eos", "eot", "eom")
    )
    return tuple(dict.fromkeys(token for token in found if token is not None))


def _own_values(header: GGUFHeader, prefix: str) -> dict[str, Any]:
    """The keys of the architecture, without its name. What llama.cpp allows to differ from block to block may
    be a list: of one number many times, it is that number."""
    found: dict[str, Any] = {}
    for key, value in header.metadata.items():
        if key.startswith(prefix):
            if isinstance(value, GGUFArray) and value.count <= MAX_BLOCKS:
                numbers = header.numbers(key)
                value = numbers[0] if len(set(numbers)) == 1 else value
            found[key.removeprefix(prefix)] = value
    return found


class _Translation:
    """Of one model's keys. ``own``: those of its architecture. ``keys``: those of them that the family may
    read → transformers'."""

    def __init__(self, source: GGUFSource, family: Family, own: Fields) -> None:
        assert family.gguf is not None
        self._source, self._header = source, source.header
        self._family, self._gguf, self._own = family, family.gguf, own
        self.keys = {**KEYS, **family.gguf.keys}
        self._values: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        self._per_block: dict[str, list[Any]] = {}
        self._turned = _turned(self._factors(FREQUENCIES))

    def settings(self, file: Fields) -> Settings:
        for key, theirs in self.keys.items():
            self._names[theirs] = self._own.key(key)
            if self._own.has(key):
                value = self._value(key, theirs)
                if not (theirs in OFF_AT_ZERO and value == 0):
                    self._values[theirs] = value
        if "scoring_func" in self._values:
            self._values["scoring_func"] = GATING[self._own.integer("expert_gating_func", least=1, most=3)]
        for flag, pattern in FLAGS.items():
            if flag in self._family.defaults and flag not in self._gguf.settings:
                self._values[flag] = any(map(pattern.fullmatch, self._source.manifest))
        if "attention_k_eq_v" in self._family.defaults:
            ends = [name.rpartition(".attn_")[2] for name in self._source.manifest]
            self._values["attention_k_eq_v"] = ends.count("v.weight") < ends.count("k.weight")
        self._values |= {
            "vocab_size": self._source.manifest["token_embd.weight"].shape[0],
            "tie_word_embeddings": "output.weight" not in self._source.manifest,
            "bos_token_id": file.optional_integer("tokenizer.ggml.bos_token_id", most=MAX_VOCAB - 1),
        }
        if behind := self._next_blocks():
            self._values["num_hidden_layers"] = self._own.integer("block_count") - behind
        self._values["num_nextn_predict_layers"] = behind
        self._layer_types()
        self._recurrent_layers(behind)
        self._indexer_types(behind)
        self._rope()
        defaults = {
            key: value for key, value in self._family.defaults.items() if key not in self.keys.values()
        }
        return Settings(
            {**defaults, **self._gguf.settings, **self._values},
            self._own.where,
            self._names,
            self._per_block,
            interleaved=self._gguf.neighbours,
            frequency_factors=() if self._turned else self._factors(FREQUENCIES),
            is_gguf=True,
        )

    def _value(self, key: str, theirs: str) -> Any:
        """Of a list, which has a number for each block, the first."""
        value = self._own.value(key)
        if not isinstance(value, GGUFArray):
            return value
        blocks = self._own.integer("block_count", least=1, most=MAX_BLOCKS)
        if value.count != blocks:
            raise CheckpointError(
                f"{self._own.named(key)} is a list of {value.count} items, "
                f"expected one for each of {blocks} blocks"
            )
        self._per_block[theirs] = self._header.numbers(self._own.key(key))
        return self._per_block[theirs][0]

    def _next_blocks(self) -> int:
        """How many of the last blocks guess further tokens; each has tensors that no other block has."""
        key = "nextn_predict_layers"
        blocks = self._own.integer("block_count", most=MAX_BLOCKS)
        behind = self._own.optional_integer(key, most=blocks) or 0
        if behind and "num_nextn_predict_layers" not in self._family.defaults:
            raise UnsupportedModelError(f"{self._own.named(key)} is {behind}: this family has no such blocks")
        for number in range(blocks - behind, blocks):
            if not any(name.startswith(f"blk.{number}.nextn.") for name in self._source.manifest):
                raise UnsupportedModelError(
                    f"{self._own.named(key)} is {behind}, but block {number} has no tensor nextn.*"
                )
        return behind

    def _indexer_types(self, behind: int) -> None:
        """Of each block, whether it has an indexer of its own: where no key says it, its tensors do."""
        if "indexer_types" not in self._family.defaults:
            return
        key, blocks = "attention.indexer.types", range(self._own.integer("block_count") - behind)
        own = self._flags(key, behind) or [
            f"blk.{number}.indexer.attn_k.weight" in self._source.manifest for number in blocks
        ]
        self._names["indexer_types"] = self._own.key(key)
        self._values["indexer_types"] = ["full" if each else "shared" for each in own]

    def _recurrent_layers(self, behind: int) -> None:
        """Of each block, whether it has a recurrence: in files that do not leave it to a period."""
        key = "attention.recurrent_layers"
        if "full_attention_interval" in self._family.defaults and (found := self._flags(key, behind)):
            self._names["layer_types"] = self._own.key(key)
            self._values["layer_types"] = [LINEAR if each else FULL for each in found]

    def _flags(self, key: str, behind: int) -> list[Any]:
        """True or false, or 1 or 0, of each block; one for all stands for as many. Files may list those that
        guess further tokens, too. Empty: the file does not have the key."""
        if not self._own.has(key):
            return []
        blocks, given = self._own.integer("block_count") - behind, self._own.value(key)
        is_list = isinstance(given, GGUFArray)
        found = self._header.numbers(self._own.key(key)) if is_list else [given] * blocks
        if len(found) not in (blocks, blocks + behind) or any(each not in (0, 1) for each in found):
            raise CheckpointError(f"{self._own.named(key)} is not true or false for each of {blocks} blocks")
        return found[:blocks]

    def _layer_types(self) -> None:
        """``sliding_window_pattern``: of each block, whether it has a window; or n: each n-th has none."""
        key = "attention.sliding_window_pattern"
        if not self._own.has(key):
            return
        blocks = self._own.integer("block_count", least=1, most=MAX_BLOCKS)
        if isinstance(self._own.value(key), GGUFArray):
            found = self._header.numbers(self._own.key(key))
            kinds = [SLIDING if slides else FULL for slides in found]
        else:
            period = self._own.integer(key, least=1, most=MAX_BLOCKS)
            kinds = [FULL if (block + 1) % period == 0 else SLIDING for block in range(blocks)]
        self._names["layer_types"] = self._own.key(key)
        self._values["layer_types"] = kinds[:blocks]

    def _rope(self) -> None:
        """A factor without a type scales linearly, one of 0 does nothing, and type none ignores it."""
        read = self._own
        kind = read.text("rope.scaling.type", "linear")
        name = "rope.scaling.factor" if read.has("rope.scaling.factor") else "rope.scale_linear"
        factor = read.number(name, 0.0, above=-SCALES[0], below=SCALES[1]) or 1.0
        if kind == "none" or (kind == "linear" and factor == 1.0):
            kind, factor = "default", 1.0
        long, short = self._factors(LONG), self._factors(SHORT)
        if long and short:
            kind = "longrope"
        elif kind == "longrope":
            raise UnsupportedModelError(f"{read.named('rope.scaling.type')} is longrope, without its factors")
        if kind not in ("default", "linear", "yarn", "longrope"):
            raise UnsupportedModelError(
                f"{read.named('rope.scaling.type')} is {read.shown('rope.scaling.type')}, "
                "expected none, linear, yarn or longrope"
            )
        context = read.integer("context_length", least=1, most=MAX_CONTEXT)
        original = read.integer("rope.scaling.original_context_length", 0, most=MAX_CONTEXT) or context
        found: dict[str, Any] = {
            "rope_type": kind,
            "original_max_position_embeddings": original,
            "factor": context / original if kind == "longrope" else factor,
            "beta_fast": read.number("rope.scaling.yarn_beta_fast", 32.0, above=SCALES[0], below=SCALES[1]),
            "beta_slow": read.number("rope.scaling.yarn_beta_slow", 1.0, above=SCALES[0], below=SCALES[1]),
            "truncate": self._gguf.truncate,
        }
        if self._gguf.mscale and read.has("rope.scaling.yarn_log_multiplier"):
            given = read.number("rope.scaling.yarn_log_multiplier", least=0, below=SCALES[1])
            found |= dict.fromkeys(("mscale", "mscale_all_dim"), self._gguf.mscale * given)
        if kind == "longrope":
            found |= {
                "long_factor": list(long),
                "short_factor": list(short),
            }
        if self._turned:
            if kind not in ("default", "linear"):
                raise UnsupportedModelError(
                    f"{read.named('rope.scaling.type')} is {kind}, beside {FREQUENCIES}"
                )
            found |= {"rope_type": "proportional", "partial_rotary_factor": self._turned}
        own = read.number("rope.scaling.attn_factor", 1.0, above=0.0, below=SCALES[1])
        if own != 1.0:  # times what YaRN's formula has; else that alone counts
            stretched = kind == "yarn" and factor > 1
            found["attention_factor"] = own * (0.1 * math.log(factor) + 1.0) if stretched else own
        self._values |= {"rope_parameters": found, "original_max_position_embeddings": original}
        self._values["rope_theta"] = read.number("rope.freq_base", 10_000.0, above=THETAS[0], below=THETAS[1])
        self._names["rope_theta"] = read.key("rope.freq_base")
        self._turned_part()

    def _turned_part(self) -> None:
        read = self._own
        hidden = read.integer("embedding_length", least=1, most=MAX_WIDTH)
        heads = self._values.get("num_attention_heads")
        if type(heads) is not int or heads < 1 or "rope.dimension_count" in self._gguf.keys:
            return
        head_dim = read.integer("attention.key_length", hidden // heads, least=1, most=MAX_WIDTH)
        turned = read.integer("rope.dimension_count", head_dim, least=1, most=head_dim)
        self._names["partial_rotary_factor"] = read.key("rope.dimension_count")
        # A little more, so that times the head's size it is not less than ``turned``.
        part = 1.0 if turned == head_dim else math.nextafter(turned / head_dim, math.inf)
        self._values["partial_rotary_factor"] = part

    def _factors(self, name: str) -> tuple[float, ...]:
        """``rope_freqs.weight``: how the converter stores llama3 scaling, as one divisor per frequency."""
        tensor = self._source.manifest.get(name)
        if tensor is None:
            return ()
        if tensor.qtype != "F32":
            raise UnsupportedModelError(f"{name} has type {tensor.qtype}, expected F32")
        if tensor.nbytes > 4 * MAX_WIDTH:
            raise CheckpointError(f"{self._header.file.path}: {name} has {tensor.nbytes} bytes")
        return tuple(self._source.tensor(name).dequantize().reshape(-1).tolist())


def _turned(factors: tuple[float, ...]) -> float:
    """The part of the dimensions that turn, if factors say nothing but that the others do not; else 0.0."""
    first = sum(factor == 1.0 for factor in factors)
    if not 0 < first < len(factors) or factors[:first] != (1.0,) * first or min(factors[first:]) < _NEVER:
        return 0.0
    return math.nextafter(first / len(factors), math.inf)
