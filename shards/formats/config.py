"""What a model is, in one frozen type that both checkpoint formats fill in.

All numbers are checked here and in the settings of its blocks, so that all code may trust a ``ModelConfig``:
sizes are positive and bounded, head counts divide, the rope settings are complete for their type.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...swarm.errors import CheckpointError
from ...swarm.types import MAX_BLOCKS
from .block_config import BlockConfig, NormConfig
from .bounds import MAX_CONTEXT, MAX_VOCAB, MAX_WIDTH, SCALES, check_between, check_count, check_softcap
from .foreign_config import ForeignConfig
from .qtypes import Quantization
from .shown import shown

MAX_MODEL_EXPERTS = 1 << 16
"""Experts of all blocks together; models have up to 31,000. Each has tensors, and all of them get a name."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """``family``: transformers' ``model_type``, for people. ``blocks``: each one's settings; equal ones are
    one object.

    The client's part: rows of the embedding times ``embedding_multiplier`` go into the first block; what
    leaves the last one goes through ``final_norm`` and the head (``head_bias``: which has a bias), times
    ``logit_multiplier``, and where ``logit_softcap`` c is not 0, c * tanh(logit / c).
    ``max_position_embeddings``: tokens of the longest sequence, rope scaling counted (``lengthened``).
    ``next_blocks``: blocks that the file may have behind the last, to guess further tokens; nothing reads
    them. ``native_dtype``: the file's main weight type, such as ``BF16`` or ``Q4_1``; for people and for
    ``auto``.
    ``quantization``: what a HuggingFace configuration says of quantized matrices.
    ``foreign``: transformers' own layers compute the model; ``blocks`` then tell no more than what each
    caches, and the client's part is transformers' own, too.
    """

    family: str
    blocks: tuple[BlockConfig, ...]
    hidden_size: int
    vocab_size: int
    final_norm: NormConfig
    max_position_embeddings: int
    embedding_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    logit_softcap: float = 0.0
    head_bias: bool = False
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    next_blocks: int = 0
    native_dtype: str = "F32"
    quantization: Quantization | None = None
    foreign: ForeignConfig | None = None

    def __post_init__(self) -> None:
        check_count("number of blocks", len(self.blocks), MAX_BLOCKS)
        check_count("hidden_size", self.hidden_size, MAX_WIDTH)
        check_count("vocab_size", self.vocab_size, MAX_VOCAB)
        check_count("max_position_embeddings", self.max_position_embeddings, MAX_CONTEXT)
        check_between("embedding_multiplier", self.embedding_multiplier, (0.0, SCALES[1]))
        check_between("logit_multiplier", self.logit_multiplier, (0.0, SCALES[1]))
        experts = sum(block.experts.count for block in self.blocks if block.experts)
        if experts > MAX_MODEL_EXPERTS:
            raise CheckpointError(
                f"all blocks have {experts} experts, at most {MAX_MODEL_EXPERTS} are possible"
            )
        check_softcap("logits", self.logit_softcap)
        for token in (*self.eos_token_ids, *(() if self.bos_token_id is None else (self.bos_token_id,))):
            if not 0 <= token < MAX_VOCAB:
                raise CheckpointError(f"special token id {shown(token)} is outside 0..{MAX_VOCAB - 1}")

    @property
    def n_blocks(self) -> int:
        return len(self.blocks)
