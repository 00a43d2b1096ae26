"""A ``ModelConfig`` of a model that only transformers knows."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ....swarm.errors import UnsupportedModelError
from ..blocks.attention import AttentionConfig
from ..blocks.block import BlockConfig
from ..blocks.mlp import MlpConfig
from ..blocks.norm import NormConfig
from ..config import ModelConfig
from ..foreign_config import ANOTHER, ForeignConfig
from ..hf.config import end_ids, native_dtype
from ..quantized.settings import quantization
from ..values.bounds import MAX_VOCAB, MAX_WIDTH
from ..values.fields import Fields
from ..values.shown import shown
from .layered import KeysAndValues, Layer, LayeredModel, quiet, unusable
from .own_keys import CONTEXTS, LONGEST, own_keys

_TOKENS = 7
"""A dry run has this many tokens: a number that no other dimension is likely to have."""
_UNSAID_CONTEXT = 2048
"""Tokens of the longest sequence of a model whose configuration does not say it."""
_MAX_KINDS = 64
"""At most this many different blocks are called to see what they cache: each takes some hundredths of a
second."""


def foreign_config(document: dict[str, Any], generation: dict[str, Any], where: str) -> ModelConfig:
    """As ``hf.config.hf_config``. UnsupportedModelError for a model that is not a causal language model of
    transformers', or of which a node could not hold a part."""
    with quiet():
        try:
            return _foreign_config(document, generation, where)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(error.message, hint=f"{error.hint} {ANOTHER}".strip()) from None


def _refuse_quantized(read: Fields) -> None:
    settings = quantization(read)
    if settings is not None or read.section("quantization") is not None:
        method = settings.method if settings else "MLX"
        raise UnsupportedModelError(
            f"{read.where}: weights quantized by {method} are not supported where transformers computes",
            hint="Use the unquantized checkpoint.",
        )


def _foreign_config(document: dict[str, Any], generation: dict[str, Any], where: str) -> ModelConfig:
    read = Fields(document, where)
    family = read.text("model_type")
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        code = "; code that a model brings (auto_map) is never run" if "auto_map" in document else ""
        raise UnsupportedModelError(
            f"{where}: model family {shown(family)} is not supported, and transformers has no causal "
            f"language model of that type{code}"
        )
    architectures = read.texts("architectures")
    if architectures and MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family] not in architectures:
        raise UnsupportedModelError(f"{where}: {shown(architectures[0])} is no causal language model")
    _refuse_quantized(read)
    said = json.dumps(own_keys(document, where), sort_keys=True)
    made = LayeredModel(said)
    own = Fields({key: getattr(made.config, key, None) for key in _USED}, where)
    contexts = [each.optional_integer(key, least=1) for each in (own, read) for key in CONTEXTS]
    hidden = own.integer("hidden_size", least=1, most=MAX_WIDTH)
    blocks, front = _blocks(made, hidden)
    layers = made.path.rpartition(".")[2]
    return ModelConfig(
        family=family,
        blocks=blocks,
        hidden_size=hidden,
        vocab_size=own.integer("vocab_size", least=1, most=MAX_VOCAB),
        final_norm=NormConfig(1e-5),
        max_position_embeddings=min(LONGEST, *filter(None, contexts)) if any(contexts) else _UNSAID_CONTEXT,
        tie_word_embeddings=own.value("tie_word_embeddings") is True,
        bos_token_id=own.optional_integer("bos_token_id", most=MAX_VOCAB - 1),
        eos_token_ids=end_ids(own, generation),
        native_dtype=native_dtype(read),
        foreign=ForeignConfig(said, layers, front),
    )


_USED = (*CONTEXTS, "hidden_size", "vocab_size", "tie_word_embeddings", "bos_token_id", "eos_token_id")


class _KeptError(Exception):
    """Raised from within a layer once it is known what it caches."""


class _Recorder(DynamicLayer):
    """A layer's cache: the shapes of what would be kept."""

    kept: tuple[torch.Size, torch.Size] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        self.kept = key_states.shape, value_states.shape
        raise _KeptError

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0


def _blocks(made: LayeredModel, hidden: int) -> tuple[tuple[BlockConfig, ...], tuple[str, ...]]:
    """What each layer caches of a token, found by calling it, without weights: equal ones are one object. And
    ``ForeignConfig.front``."""
    front: tuple[str, ...] = ()
    width = made.model.get_input_embeddings().embedding_dim
    if width != hidden:
        raise UnsupportedModelError(f"{made.name} embeds tokens in {width} values, its blocks have {hidden}")
    recorders = [_Recorder() for _ in made.layers]
    known: dict[Any, _Recorder] = {}
    x = torch.zeros((1, _TOKENS, hidden), device="meta")

    def around(number: int, forward: Layer, entered: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if number == 0 and entered.shape != x.shape:
            raise UnsupportedModelError(
                f"{made.name} has hidden states of shape {list(entered.shape)} between its blocks"
            )
        _check_inputs(made, [*args, *kwargs.values()])
        like = known.setdefault(_kind(number, made.layers[number]), recorders[number])
        if like is not recorders[number]:
            recorders[number].kept = like.kept
            return x
        if len(known) > _MAX_KINDS:
            raise UnsupportedModelError(f"{made.name} has more than {_MAX_KINDS} kinds of blocks")
        try:
            forward(x, *args, **kwargs)
        except _KeptError:
            return x
        raise UnsupportedModelError(
            f"block {number} of {made.name} keeps no keys and values of its own",
            hint="Models whose blocks keep another state, or share one, cannot be cut between machines.",
        )

    try:
        with torch.no_grad(), torch.device("meta"):
            front = made.visit(around, x, KeysAndValues(made.name, [*recorders]))
    except UnsupportedModelError:
        raise
    except Exception as error:  # noqa: BLE001  whatever transformers' code raises
        if any(recorder.kept is None for recorder in recorders):
            raise unusable(error) from None
    same: dict[BlockConfig, BlockConfig] = {}
    blocks = [_block(made, recorder.kept, hidden) for recorder in recorders]
    return tuple(same.setdefault(block, block) for block in blocks), front


def _kind(number: int, layer: nn.Module) -> Any:
    """Equal for layers that cache the same: of the same modules and shapes, with the same settings apart from
    their ``number`` and from factors."""
    return tuple(
        (
            name,
            type(module),
            *((key, tuple(each.shape)) for key, each in module.named_parameters(recurse=False)),
            *(
                (key, type(each), each)
                for key, each in vars(module).items()
                if isinstance(each, (int, str)) and (type(each) is not int or each != number)
            ),
        )
        for name, module in layer.named_modules()
    )


def _check_inputs(made: LayeredModel, inputs: list[Any]) -> None:
    for each in inputs:
        if isinstance(each, Tensor) and each.is_floating_point() and each.shape[:2] == (1, _TOKENS):
            raise UnsupportedModelError(
                f"the blocks of {made.name} read more of each token than its hidden states",
                hint="Such a model cannot be cut between machines.",
            )


def _block(made: LayeredModel, kept: tuple[torch.Size, torch.Size] | None, hidden: int) -> BlockConfig:
    if kept is None:
        raise UnsupportedModelError(f"{made.name} does not run all of its blocks")
    keys, values = kept
    if len(keys) != 4 or keys[0] != 1 or keys[2] != _TOKENS or keys != values:
        raise UnsupportedModelError(
            f"a block of {made.name} keeps keys of shape {list(keys)} and values of shape {list(values)}"
        )
    attention = AttentionConfig(keys[1], keys[1], keys[3], scale=1.0, rope=None)
    return BlockConfig(attention, MlpConfig(hidden))
