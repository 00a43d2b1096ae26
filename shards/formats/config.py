"""What a model is, in one frozen type that both checkpoint formats fill in.

All numbers are checked here and in the settings of its blocks, so that all code may trust a ``ModelConfig``:
sizes are positive and bounded, head counts divide, the rope settings are complete for their type.

What is handed over at a boundary of two blocks is a *row* a token: what the next block reads. It begins with
the residual stream; of a model with a sideband, the values that each block from there on reads beside it
follow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...swarm.boundaries import Boundaries
from ...swarm.errors import CheckpointError
from ...swarm.types import MAX_BLOCKS, MAX_ROW
from .advice.pooling import Pooling
from .advice.sampling import NO_ADVICE, SamplingAdvice
from .blocks.block import BlockConfig
from .blocks.norm import NormConfig
from .foreign_config import ForeignConfig
from .qtypes import Quantization
from .values.bounds import (
    MAX_CONTEXT,
    MAX_VOCAB,
    MAX_WIDTH,
    SCALES,
    check_between,
    check_count,
    check_softcap,
)
from .values.shown import shown

MAX_MODEL_EXPERTS = 1 << 16
"""Experts of all blocks together; models have up to 31,000. Each has tensors, and all of them get a name."""


@dataclass(frozen=True, slots=True)
class SidebandConfig:
    """What the client makes of a token for every block beside the residual stream, ``values`` each.

    With e the row that goes into the first block, all blocks' values of a token are
    scale * (norm(projection_scale * projection(e)) + embedding_scale * embedding[token]), the norm over each
    block's. ``vocab_size``: rows of that embedding; tokens beyond it have that of token 0.
    """

    values: int
    vocab_size: int
    norm: NormConfig
    projection_scale: float
    embedding_scale: float
    scale: float

    def __post_init__(self) -> None:
        check_count("values of a block beside the residual", self.values, MAX_WIDTH)
        check_count("vocabulary of the values beside the residual", self.vocab_size, MAX_VOCAB)
        for name in ("projection_scale", "embedding_scale", "scale"):
            check_between(f"the sideband's {name}", getattr(self, name), (0.0, SCALES[1]))


@dataclass(frozen=True, slots=True)
class NextConfig:
    """What guesses the token after the next one (multi-token prediction, arXiv 2412.19437), of each of the
    blocks behind the last. With h what the model's head multiplies at a position, and e the embedding of the
    token that follows, x = block(projection([norm(e), norm(h)])), and the model's head times norm(x) says the
    token after that. Each norm has a weight of its own. For a further guess, norm(x) takes the place of h,
    and the guess that of the token that follows.
    """

    block: BlockConfig
    norm: NormConfig


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """``family``: transformers' ``model_type``, for people. ``blocks``: each one's settings; equal ones are
    one object.

    The client's part: rows of the embedding times ``embedding_multiplier`` go into the first block; what
    leaves the last one goes through ``final_norm`` and the head (``head_bias``: which has a bias), times
    ``logit_multiplier``, and where ``logit_softcap`` c is not 0, c * tanh(logit / c).
    ``max_position_embeddings``: tokens of the longest sequence, rope scaling counted (``lengthened``).
    ``next_blocks``: blocks that the file may have behind the last, to guess further tokens; ``next``: what
    they compute, where that is known. They are on no route: see ``with_next``. ``native_dtype``: the file's
    main weight type, such as ``BF16`` or ``Q4_1``; for people and for ``auto``.
    ``quantization``: what a HuggingFace configuration says of quantized matrices.
    ``sideband``: what its blocks' ``side`` reads. ``streams``: residual streams of its blocks, one after the
    other in a row, ``hidden_size`` values each. Where there are several, the client makes the others of e by
    a projection each, and their mean, after a projection of each but the first, is what the final norm reads.
    What is projected is scaled to the root mean square of the first.
    ``foreign``: transformers' own layers compute the model; ``blocks`` then tell no more than what each
    caches, and the client's part is transformers' own, too. ``sampling``: for who has no wish of their own.
    ``pooling``: of a model that is one for embeddings.
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
    next: NextConfig | None = None
    native_dtype: str = "F32"
    quantization: Quantization | None = None
    sideband: SidebandConfig | None = None
    streams: int = 1
    foreign: ForeignConfig | None = None
    sampling: SamplingAdvice = NO_ADVICE
    pooling: Pooling | None = None

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

        if any(
            (1 if block.streams is None else block.streams.count) != self.streams for block in self.blocks
        ):
            raise CheckpointError(f"not every block has {self.streams} residual streams")
        if self.row_width(0) > MAX_ROW:
            raise CheckpointError(f"a row has {self.row_width(0)} values, at most {MAX_ROW} are possible")
        self._check_sideband()
        for number, block in enumerate(self.blocks):
            if block.kv_of is not None:
                self._check_kv(number, block, block.kv_of)
            if block.index_of is not None:
                self._check_index(number, block.index_of)

    def _check_sideband(self) -> None:
        made = 0 if self.sideband is None else self.sideband.values
        if any((0 if block.side is None else block.side.values) != made for block in self.blocks):
            raise CheckpointError(
                "the blocks do not read the values beside the residual that the client makes"
            )

    def _check_kv(self, number: int, block: BlockConfig, of: int) -> None:
        if not 0 <= of < number or self.blocks[of].kv_of is not None:
            raise CheckpointError(
                f"block {number} reads keys and values of block {of}, which makes none for it"
            )
        own, theirs = block.attention, self.blocks[of].attention
        if (
            own is None
            or theirs is None
            or own.kv != theirs.kv
            or own.reach != theirs.reach
            or theirs.latent is not None
        ):
            raise CheckpointError(
                f"block {number} cannot read the keys and values of block {of}: other shapes"
            )

    def _check_index(self, number: int, of: int) -> None:
        attention = self.blocks[of].attention if 0 <= of < number else None
        latent = attention.latent if attention else None
        is_before = of == number - 1 or self.blocks[number - 1].index_of == of
        if latent is None or latent.indexer is None or not is_before:
            raise CheckpointError(
                f"block {number} uses the indexer of block {of}, which is not that of the block before it"
            )

    @property
    def n_blocks(self) -> int:
        return len(self.blocks)

    @property
    def with_next(self) -> ModelConfig:
        """The same with the blocks that guess further tokens behind the last, as any other."""
        behind = (self.next.block,) * self.next_blocks if self.next else ()
        return replace(self, blocks=(*self.blocks, *behind), next_blocks=0, next=None)

    @property
    def keeps_states(self) -> bool:
        """Whether any block does."""
        return any(block.state is not None for block in self.blocks)

    def row_width(self, boundary: int) -> int:
        """Values of the row of a token that block ``boundary`` reads, or after the last block the head."""
        beside = 0 if self.sideband is None else self.sideband.values
        return self.residual_width + beside * (self.n_blocks - boundary)

    def seen_tokens(self, block: int) -> int:
        """Tokens that an indexer lets a row of the block see; 0: it has none."""
        of = self.blocks[block].index_of
        attention = self.blocks[block if of is None else of].attention
        indexer = attention.latent.indexer if attention and attention.latent else None
        return 0 if indexer is None else indexer.top

    @property
    def residual_width(self) -> int:
        return self.streams * self.hidden_size

    @property
    def boundaries(self) -> Boundaries:
        """``row_width`` of every boundary, and ``cuts``: none where all may be."""
        widths, cuts = tuple(map(self.row_width, range(self.n_blocks + 1))), self.cuts
        return Boundaries(widths, () if len(cuts) == len(widths) else cuts)

    @property
    def cuts(self) -> tuple[int, ...]:
        """The boundaries where spans may begin and end: no block behind one reads the keys and values of a
        block before it, or uses its indexer."""
        inside = {
            boundary
            for number, block in enumerate(self.blocks)
            if block.reads is not None
            for boundary in range(block.reads + 1, number + 1)
        }
        return tuple(boundary for boundary in range(self.n_blocks + 1) if boundary not in inside)
