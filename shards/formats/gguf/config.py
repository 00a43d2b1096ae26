"""A ``ModelConfig`` from the metadata of a GGUF file, read as llama.cpp reads it.

Keys of the architecture that change what a model computes are read, or have to have the value at which they
change nothing; a key that is not known here is refused by name.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from ....swarm.errors import CheckpointError, UnsupportedModelError
from ....swarm.types import MAX_BLOCKS
from ..block_config import AttentionConfig, BlockConfig, MlpConfig, NormConfig
from ..bounds import MAX_CONTEXT, MAX_VOCAB, MAX_WIDTH, SCALES
from ..config import ModelConfig, unsupported_family
from ..fields import Fields
from ..rope_config import THETAS, RopeConfig, lengthened
from ..tensors import TensorInfo, main_qtype
from .header import GGUFArray, GGUFHeader

ARCHITECTURE = "llama"
READ_WITH_METADATA = frozenset(("rope_freqs.weight",))
"""Tensors that belong to the settings."""
HARMLESS = frozenset(
    ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "pooling_type", "decoder_start_token_id")
    + ("attention.layer_norm_epsilon", "attention.group_norm_epsilon")
)
"""Keys that change nothing: those of other heads than a language model's, or of norms that Llama does not
have. Keys of experts and windows change nothing if there are none."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("attention.causal",), (True,)),
    **dict.fromkeys(
        ("attention.clamp_kqv", "attention.max_alibi_bias", "attn_logit_softcapping")
        + ("final_logit_softcapping", "use_parallel_residual", "nextn_predict_layers", "expert_shared_count")
        + ("rope.scaling.yarn_log_multiplier", "attention.shared_kv_layers"),
        (0,),
    ),
    **dict.fromkeys(("logit_scale", "residual_scale", "embedding_scale"), (0, 1)),
    **dict.fromkeys(("rope.scaling.yarn_ext_factor",), (1, -1)),
    **dict.fromkeys(("rope.scaling.yarn_attn_factor",), (1,)),
}
"""Keys that we do not read, and the values with which they change nothing."""
_OF_HEADS = {
    "attention.value_length": "keys and values of different sizes are",
    "rope.dimension_count": "rotary embedding over part of a head is",
}
_BIAS = {
    "attention": re.compile(r"blk\.[0-9]+\.attn_(q|k|v|output)\.bias"),
    "mlp": re.compile(r"blk\.[0-9]+\.ffn_(gate|up|down)\.bias"),
}


def gguf_config(header: GGUFHeader) -> ModelConfig:
    """CheckpointError for metadata missing or wrong, UnsupportedModelError for other architectures."""
    file = Fields(header.metadata, str(header.file.path))
    architecture = file.optional_text("general.architecture")
    if architecture != ARCHITECTURE:
        raise unsupported_family(architecture)
    if file.integer("split.count", 1) > 1:
        raise UnsupportedModelError(
            f"{header.file.path} is one part of a split GGUF model",
            hint="Join the parts first: llama-gguf-split --merge FIRST_PART OUTPUT.",
        )
    if "token_embd.weight" not in header.tensors:
        raise CheckpointError(f"{header.file.path} has no tensor token_embd.weight")
    read = Fields(_settings(header), str(header.file.path), f"{ARCHITECTURE}.")
    hidden = read.integer("embedding_length", least=1, most=MAX_WIDTH)
    n_heads = read.integer("attention.head_count", least=1, most=MAX_WIDTH)
    head_dim = read.integer("attention.key_length", hidden // n_heads, least=1, most=MAX_WIDTH)
    context = read.integer("context_length", least=1, most=MAX_CONTEXT)
    rope = _rope(read, context, head_dim, _frequency_factors(header))
    norm = NormConfig(read.number("attention.layer_norm_rms_epsilon", above=0.0, below=SCALES[1]))
    bias = any(map(_BIAS["attention"].fullmatch, header.tensors))
    block = BlockConfig(
        attention=AttentionConfig(
            heads=n_heads,
            kv_heads=read.integer("attention.head_count_kv", n_heads, least=1, most=MAX_WIDTH),
            head_dim=head_dim,
            scale=head_dim**-0.5,
            rope=rope,
            bias=bias,
            out_bias=bias,
        ),
        mlp=MlpConfig(
            read.integer("feed_forward_length", least=1, most=MAX_WIDTH),
            bias=any(map(_BIAS["mlp"].fullmatch, header.tensors)),
        ),
        norm=norm,
        mlp_norm=norm,
    )
    config = ModelConfig(
        family="llama",
        blocks=(block,) * read.integer("block_count", least=1, most=MAX_BLOCKS),
        hidden_size=hidden,
        vocab_size=header.tensors["token_embd.weight"].shape[0],
        final_norm=norm,
        max_position_embeddings=lengthened(context, rope),
        tie_word_embeddings="output.weight" not in header.tensors,
        bos_token_id=file.optional_integer("tokenizer.ggml.bos_token_id", most=MAX_VOCAB - 1),
        eos_token_ids=gguf_eos_ids(header),
        native_dtype=main_qtype(
            {
                t.name: TensorInfo(t.name, t.shape, t.qtype, t.nbytes)
                for t in header.tensors.values()
                if ".weight" in t.name
            }
        ),
    )
    _check_neutral(read, config)
    return config


def gguf_eos_ids(header: GGUFHeader) -> tuple[int, ...]:
    """The tokens for the end of text, of turn and of message, if the file names them."""
    read = Fields(header.metadata, str(header.file.path))
    found = (
        read.optional_integer(f"tokenizer.ggml.{name}_token_id", most=MAX_VOCAB - 1)
        for name in ("eos", "eot", "eom")
    )
    return tuple(dict.fromkeys(token for token in found if token is not None))


def _settings(header: GGUFHeader) -> dict[str, Any]:
    """The keys of the architecture, without its name. What llama.cpp allows to differ from block to block may
    be a list: of one number many times, it is that number."""
    found: dict[str, Any] = {}
    for key, value in header.metadata.items():
        if not key.startswith(f"{ARCHITECTURE}."):
            continue
        if isinstance(value, GGUFArray):
            numbers = header.numbers(key) if value.count <= MAX_BLOCKS else []
            if not numbers or any(number != numbers[0] for number in numbers):
                raise UnsupportedModelError(
                    f"{header.file.path}: {key} differs from block to block, which is not supported"
                )
            value = numbers[0]
        found[key.removeprefix(f"{ARCHITECTURE}.")] = value
    return found


def _check_neutral(read: Fields, config: ModelConfig) -> None:
    """Check that the model has everything that we compute, and nothing else."""
    head_dim = config.blocks[0].attention.head_dim
    for key, what in _OF_HEADS.items():
        if read.integer(key, head_dim) != head_dim:
            raise UnsupportedModelError(
                f"{read.named(key)} is {read.shown(key)} in heads of {head_dim}: {what} not supported"
            )
    if read.integer("expert_count", 0):
        raise UnsupportedModelError(
            f"{read.named('expert_count')} is {read.shown('expert_count')}: mixture-of-experts models are "
            "not supported"
        )
    window = read.integer("attention.sliding_window", 0)
    if 0 < window < config.max_position_embeddings:
        raise UnsupportedModelError(
            f"{read.named('attention.sliding_window')} is {window}: sliding-window attention is not "
            f"supported in a context of {config.max_position_embeddings}"
        )
    scale = read.number("attention.scale", 0.0)
    if scale and not math.isclose(scale, head_dim**-0.5, rel_tol=1e-6):
        raise UnsupportedModelError(f"{read.named('attention.scale')} is {scale}, which is not supported")
    for key, values in NEUTRAL.items():
        if not read.is_one_of(key, values):
            raise UnsupportedModelError(f"{read.named(key)} is {read.shown(key)}, which is not supported")
    for key in read.unread():
        # Zero means off: some tools write every key that llama.cpp has, for any architecture.
        of_others = key.startswith("expert_") or key.endswith("_swa")
        if not (key in HARMLESS or of_others or read.is_one_of(key, (0,))):
            raise UnsupportedModelError(
                f"{read.named(key)} is {read.shown(key)}: what it means is not known here",
                hint="Use a file that a current converter of llama.cpp has made.",
            )


def _frequency_factors(header: GGUFHeader) -> tuple[float, ...]:
    """``rope_freqs.weight``: how the converter stores llama3 scaling, as one divisor per frequency."""
    tensor = header.tensors.get("rope_freqs.weight")
    if tensor is None:
        return ()
    if tensor.qtype != "F32":
        raise UnsupportedModelError(f"rope_freqs.weight has type {tensor.qtype}, expected F32")
    if tensor.nbytes > 4 * MAX_WIDTH:
        raise CheckpointError(f"{header.file.path}: rope_freqs.weight has {tensor.nbytes} bytes")
    raw = header.file.slice(tensor.offset, tensor.nbytes)
    return tuple(raw.copy().view(np.dtype("<f4")).tolist())


def _rope(read: Fields, context: int, rotary_dim: int, factors: tuple[float, ...]) -> RopeConfig:
    """A factor without a type scales linearly, one of 0 does nothing, and type none ignores it."""
    kind = read.text("rope.scaling.type", "linear")
    name = "rope.scaling.factor" if read.has("rope.scaling.factor") else "rope.scale_linear"
    factor = read.number(name, 0.0, above=-SCALES[0], below=SCALES[1]) or 1.0
    if kind == "none" or (kind == "linear" and factor == 1.0):
        kind, factor = "default", 1.0
    if kind not in ("default", "linear", "yarn"):
        raise UnsupportedModelError(
            f"{read.named('rope.scaling.type')} is {read.shown('rope.scaling.type')}, "
            "expected none, linear or yarn"
        )
    return RopeConfig(
        rotary_dim,
        theta=read.number("rope.freq_base", 10_000.0, above=THETAS[0], below=THETAS[1]),
        type=kind,
        factor=factor,
        original_max_position_embeddings=read.integer(
            "rope.scaling.original_context_length", 0, most=MAX_CONTEXT
        )
        or context,
        beta_fast=read.number("rope.scaling.yarn_beta_fast", 32.0, above=SCALES[0], below=SCALES[1]),
        beta_slow=read.number("rope.scaling.yarn_beta_slow", 1.0, above=SCALES[0], below=SCALES[1]),
        attention_factor=_attention_factor(read, kind, factor),
        frequency_factors=factors,
    )


def _attention_factor(read: Fields, kind: str, factor: float) -> float | None:
    """Of the file, times what YaRN's formula has; None where that alone counts."""
    own = read.number("rope.scaling.attn_factor", 1.0, above=0.0, below=SCALES[1])
    if own == 1.0:
        return None
    return own * (0.1 * math.log(factor) + 1.0) if kind == "yarn" and factor > 1 else own
