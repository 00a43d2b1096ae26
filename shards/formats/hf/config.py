"""A ``ModelConfig`` from a HuggingFace ``config.json``, with transformers' defaults for each ``model_type``.

A key that changes what a model computes is read, or has to have the value at which it changes nothing. Tests
compare that with the keys and the defaults of transformers' configuration classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....swarm.errors import CheckpointError, UnsupportedModelError
from ....swarm.types import MAX_BLOCKS
from .. import bounded_json
from ..block_config import AttentionConfig, BlockConfig, MlpConfig, NormConfig
from ..bounded_json import JsonBounds
from ..bounds import MAX_CONTEXT, MAX_VOCAB, MAX_WIDTH, SCALES
from ..config import ModelConfig, unsupported_family
from ..fields import Fields
from ..rope_config import lengthened
from ..shown import shown
from .rope import hf_rope

BOUNDS = JsonBounds(nbytes=16 << 20, values=1 << 19)
"""The bounds of each small file: config.json has some kilobytes, a tokenizer_config.json up to 1.2 MB."""
MAX_END_TOKENS = 256
"""At most this many tokens may end a text; models have three at most."""
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class Family:
    """What transformers assumes for a key that a config.json of one ``model_type`` lacks. ``n_kv_heads``
    None: as many as attention heads. ``biases``: the class knows ``attention_bias`` and ``mlp_bias``."""

    architecture: str
    intermediate_size: int
    n_kv_heads: int | None
    context: int
    window: int | None
    biases: bool


FAMILIES = {
    "llama": Family("LlamaForCausalLM", 11008, None, 2048, None, biases=True),
    "mistral": Family("MistralForCausalLM", 14336, 8, 131072, 4096, biases=False),
}

NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("is_causal",), (True,)),
    **dict.fromkeys(("is_encoder_decoder",), (False,)),
    **dict.fromkeys(
        ("use_bidirectional_attention", "use_qk_norm", "qk_layernorm", "alibi", "use_alibi")
        + ("attn_temperature_tuning", "add_cross_attention"),
        (False, None),
    ),
    **dict.fromkeys(
        ("attention_chunk_size", "attn_logit_softcapping", "final_logit_softcapping", "clip_qkv")
        + ("query_pre_attn_scalar", "attention_multiplier", "transformers_weights", "fusion_config")
        + ("compression_config",),
        (None,),
    ),
    **dict.fromkeys(
        ("logit_scale", "logits_scaling", "embedding_multiplier", "residual_multiplier", "rotary_pct"),
        (1, None),
    ),
    **dict.fromkeys(
        ("num_local_experts", "num_experts", "n_routed_experts", "num_kv_shared_layers"), (0, None)
    ),
    **dict.fromkeys(("no_rope_layers", "per_layer_config"), ([], {}, None)),
}
"""Keys that we do not read, and the values with which they change nothing. Some of them transformers ignores
in these families, but a file that has them means another computation."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a small file; CheckpointError for anything else."""
    document = bounded_json.read_json(path, BOUNDS)
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} holds no JSON object", hint="Download it again.")
    return document


def hf_config(document: dict[str, Any], generation: dict[str, Any], where: str) -> ModelConfig:
    """``generation``: generation_config.json, whose end-of-text ids win, as in transformers; may be empty.

    CheckpointError for values of the wrong type, UnsupportedModelError for models we cannot run.
    """
    read = Fields(document, where)
    family = _family(read)
    n_heads = read.integer("num_attention_heads", 32, least=1, most=MAX_WIDTH)
    hidden = read.integer("hidden_size", 4096, least=1, most=MAX_WIDTH)
    positions = read.integer("max_position_embeddings", family.context, least=1, most=MAX_CONTEXT)
    head_dim = _head_dim(read, hidden, n_heads)
    rope = hf_rope(read, positions, head_dim)
    context = lengthened(positions, rope)
    n_blocks = read.integer("num_hidden_layers", 32, least=1, most=MAX_BLOCKS)
    _check_window(read, family, context, is_scaled=rope.type != "default")
    _check_layers(read, n_blocks)
    _check_neutral(read, family)
    check_quantization(read)
    bias = family.biases and read.flag("attention_bias", False)
    norm = NormConfig(read.number("rms_norm_eps", 1e-6, above=0.0, below=SCALES[1]))
    block = BlockConfig(
        attention=AttentionConfig(
            heads=n_heads,
            kv_heads=read.optional_integer("num_key_value_heads", family.n_kv_heads, least=1, most=MAX_WIDTH)
            or n_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5,
            rope=rope,
            bias=bias,
            out_bias=bias,
        ),
        mlp=MlpConfig(
            read.integer("intermediate_size", family.intermediate_size, least=1, most=MAX_WIDTH),
            bias=family.biases and read.flag("mlp_bias", False),
        ),
        norm=norm,
        mlp_norm=norm,
    )
    return ModelConfig(
        family="llama",
        blocks=(block,) * n_blocks,
        hidden_size=hidden,
        vocab_size=read.integer("vocab_size", 32000, least=1, most=MAX_VOCAB),
        final_norm=norm,
        max_position_embeddings=context,
        tie_word_embeddings=read.flag("tie_word_embeddings", False),
        bos_token_id=read.optional_integer("bos_token_id", 1, most=MAX_VOCAB - 1),
        eos_token_ids=_end_ids(
            read, Fields(generation, str(Path(where).with_name("generation_config.json")))
        ),
        native_dtype=_DTYPES.get(
            read.optional_text("dtype") or read.optional_text("torch_dtype") or "", "F32"
        ),
    )


def _family(read: Fields) -> Family:
    """By ``model_type``, as in transformers; by the architecture where that is missing."""
    ours = {family.architecture.lower(): name for name, family in FAMILIES.items()}
    architectures = read.texts("architectures")
    known = [
        ours[each.lower()] for each in architectures if each.lower() in ours
    ]  # "LLaMAForCausalLM" of 2023
    name = read.optional_text("model_type") or next(iter(known), None)
    family = FAMILIES.get(name or "")
    if family is None:
        raise unsupported_family(name or (architectures[0] if architectures else None))
    if architectures and not known:
        raise unsupported_family(architectures[0])
    return family


def _head_dim(read: Fields, hidden: int, n_heads: int) -> int:
    given = read.optional_integer("head_dim", least=1, most=MAX_WIDTH)
    if given is None and hidden % n_heads:
        raise CheckpointError(
            f"{read.named('hidden_size')} is {hidden}, which {n_heads} attention heads cannot share"
        )
    return given or hidden // n_heads


def _check_window(read: Fields, family: Family, context: int, *, is_scaled: bool) -> None:
    """Refuse a sliding window that is shorter than the context: a longer one hides nothing."""
    window = read.optional_integer("sliding_window", family.window, least=1)
    if window is not None and window < context:
        missing = "" if read.has("sliding_window") else ", transformers' default where the key is missing"
        raise UnsupportedModelError(
            f"{read.named('sliding_window')} is {window}{missing}: sliding-window attention is not supported "
            f"in a context of {context}",
            hint=_window_hint(window, is_scaled),
        )


def _window_hint(window: int, is_scaled: bool) -> str:
    without = 'If the model has no window, write "sliding_window": null into its config.json.'
    if is_scaled:  # then what is computed may depend on max_position_embeddings
        return without
    return f'Texts of up to {window} tokens need none: write "max_position_embeddings": {window}. {without}'


def _check_layers(read: Fields, n_blocks: int) -> None:
    """Check that every block attends to all earlier tokens."""
    kinds = read.texts("layer_types")
    for kind in kinds:
        if kind not in ("full_attention", "attention"):
            raise UnsupportedModelError(
                f"{read.named('layer_types')} has {shown(kind)}, which is not supported"
            )
    if kinds and len(kinds) != n_blocks:
        raise read.wrong("layer_types", f"a type for each of {n_blocks} blocks")


def _check_neutral(read: Fields, family: Family) -> None:
    neutral = NEUTRAL if family.biases else {**NEUTRAL, "attention_bias": (False,), "mlp_bias": (False,)}
    for key, values in neutral.items():
        if not read.is_one_of(key, values):
            raise UnsupportedModelError(f"{read.named(key)} is {read.shown(key)}, which is not supported")
    activation = read.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModelError(f"activation {shown(activation)} is not supported; silu is")


def _end_ids(read: Fields, generation: Fields) -> tuple[int, ...]:
    source = generation if generation.has("eos_token_id") else read
    return source.integers("eos_token_id", most=MAX_VOCAB - 1, entries=MAX_END_TOKENS)


def check_quantization(read: Fields) -> None:
    """UnsupportedModelError for weights that cannot be read as they lie in the file: we read what MLX wrote,
    and plain weights.

    Bits and groups of MLX's matrices are not taken from here: the tensors' shapes say them.
    """
    by_mlx = read.section("quantization")
    other = read.section("quantization_config")
    method = None if other is None else other.optional_text("quant_method")
    # MLX writes its settings twice, the second time under the name that transformers reads.
    if other is not None and (by_mlx is None or method not in (None, "mlx", "affine")):
        raise UnsupportedModelError(
            f"checkpoints quantized with {shown(method)} are not supported",
            hint="Use the unquantized checkpoint, one quantized by MLX, or a GGUF file.",
        )
    for settings in filter(None, (by_mlx, other)):
        for part in (settings, *(inner for _, inner in settings.inner())):
            _check_affine(part)


def _check_affine(part: Fields) -> None:
    """The modes' tensors look alike, so the name alone tells them apart."""
    for key in ("bits", "group_size"):
        part.optional_integer(key, most=1024)
    mode = part.optional_text("mode")
    if mode not in (None, "affine"):
        raise UnsupportedModelError(
            f"checkpoints quantized by MLX in mode {shown(mode)} are not supported",
            hint="Those in mode affine, MLX's default, are.",
        )
