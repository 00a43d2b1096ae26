"""What one block of a model computes, in frozen types that every backend and every cost estimate reads.

In these terms a block is, with x (tokens, hidden) and all norms optional:

    a = attention_out_norm(attention_factor * attention(norm(x)) + state_factor * state(norm(x)))
    sequential:   x += m * a;   x += m * mlp_out_norm(mlp_factor * mlp(mlp_norm(x)))
    parallel:     x += m * (a + mlp_out_norm(mlp_factor * mlp(mlp_norm(x)))), without mlp_norm: mlp(norm(x))
    with a side:  x += side.norm(projection(side.activation(gate(x)) * values))
    x *= scalar

With ``laurel`` (arXiv 2411.07501), after attention: x = (x + n + laurel.norm(right(left(n)))) / sqrt(2), with
n = norm(x) from before it. With ``streams`` (alternating updates, arXiv 2301.13310) the residual is several
x_i, and

    p_i = x_i + sum over j of predict(route(x_active))_ij * x_j,   route(y) = tanh(router(norm(y) / hidden))
    y = what the above makes of p_active in the place of x, without side
    x_i = p_i + (correct(route(y))_i + 1) * (y - p_active)
    with a side, which reads x_active * scale: its values are added to all but the first x_i

where ``attention`` or ``state`` (``state.py``), or both of them, may be missing, ``mlp`` is a dense MLP,
experts, both or missing, and m the ``residual_multiplier``. How a file lays its weights
out (fused, transposed, interleaved) is no part of this: readers of files undo it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ....swarm.errors import CheckpointError, UnsupportedModelError
from ..values.bounds import MAX_WIDTH, SCALES, check_between, check_count, check_one_of
from .attention import AttentionConfig
from .experts import ExpertsConfig
from .mlp import ACTIVATIONS, MlpConfig
from .norm import NormConfig
from .rope import RopeConfig
from .state import RecurrenceConfig, ShortConvConfig

MAX_STREAMS = 16
"""Residual streams of one block; models have 4."""


@dataclass(frozen=True, slots=True)
class SideConfig:
    """``values`` that a block reads of each token beside the residual stream: see the module."""

    values: int
    activation: str
    norm: NormConfig

    def __post_init__(self) -> None:
        check_count("a block's values beside the residual", self.values, MAX_WIDTH)
        check_one_of("activation", self.activation, ACTIVATIONS)
        if self.activation == "clamped":
            raise UnsupportedModelError("activation clamped is for gated MLPs")


@dataclass(frozen=True, slots=True)
class LaurelConfig:
    """A learned residual beside attention, of ``rank``: see the module."""

    rank: int
    norm: NormConfig

    def __post_init__(self) -> None:
        check_count("the rank of a learned residual", self.rank, MAX_WIDTH)


@dataclass(frozen=True, slots=True)
class StreamsConfig:
    """``count`` residual streams, of which the block computes with one, ``active``: see the module.
    ``scaled``: what the side reads is multiplied by a learned row."""

    count: int
    active: int
    norm: NormConfig
    scaled: bool

    def __post_init__(self) -> None:
        check_count("residual streams", self.count, MAX_STREAMS)
        if not 0 <= self.active < self.count:
            raise CheckpointError(f"stream {self.active} of {self.count} is active")


@dataclass(frozen=True, slots=True)
class BlockConfig:
    """See the module. ``scalar``: the file has one number that the block's output is multiplied by.

    ``kv_of``: number of the earlier block whose keys and values this one reads: it makes and caches none.
    ``index_of``: number of the earlier block whose indexer says which tokens this one sees.
    """

    attention: AttentionConfig | None
    mlp: MlpConfig | None
    experts: ExpertsConfig | None = None
    norm: NormConfig | None = None
    mlp_norm: NormConfig | None = None
    attention_out_norm: NormConfig | None = None
    mlp_out_norm: NormConfig | None = None
    parallel: bool = False
    residual_multiplier: float = 1.0
    scalar: bool = False
    side: SideConfig | None = None
    kv_of: int | None = None
    index_of: int | None = None
    laurel: LaurelConfig | None = None
    streams: StreamsConfig | None = None
    state: RecurrenceConfig | ShortConvConfig | None = None
    attention_factor: float = 1.0
    state_factor: float = 1.0
    mlp_factor: float = 1.0

    def __post_init__(self) -> None:
        attention = self.attention
        if self.kv_of is not None and (
            attention is None or attention.latent or attention.v_norm or attention.keys_as_values
        ):
            raise UnsupportedModelError("a block that reads another's keys and values has none of its own")
        if self.index_of is not None and (
            attention is None or attention.latent is None or attention.latent.indexer or attention.reach
        ):
            raise UnsupportedModelError("a block that uses another's indexer has latent attention and no own")
        if not (attention or self.state or self.mlp or self.experts):
            raise CheckpointError("a block computes nothing")
        if self.laurel is not None and (self.parallel or self.norm is None or self.residual_multiplier != 1):
            raise UnsupportedModelError("a learned residual in such a block is not supported")
        if not (self.mixes and self.transforms) and (self.parallel or self.laurel or self.streams):
            raise UnsupportedModelError("such a block of one part alone is not supported")
        for name in ("residual_multiplier", "attention_factor", "state_factor", "mlp_factor"):
            check_between(f"a block's {name}", getattr(self, name), (0.0, SCALES[1]))
        both = self.experts and (self.experts.norm or self.experts.dense_out_norm or self.experts.out_norm)
        if both and self.mlp is None:
            raise UnsupportedModelError("experts with norms of their own and no dense MLP are not supported")

    @property
    def rope(self) -> RopeConfig | None:
        """Of its attention, if it has one."""
        return None if self.attention is None else self.attention.rope

    @property
    def mixes(self) -> bool:
        """Whether a token's result depends on tokens before it."""
        return self.attention is not None or self.state is not None

    @property
    def transforms(self) -> bool:
        return self.mlp is not None or self.experts is not None

    @property
    def reads(self) -> int | None:
        """Number of the earlier block that has to be computed on the same machine."""
        return self.index_of if self.kv_of is None else self.kv_of

    @property
    def is_indexed(self) -> bool:
        """Whether an indexer, its own or another's, says which tokens attention sees."""
        latent = self.attention.latent if self.attention else None
        return self.index_of is not None or (latent is not None and latent.indexer is not None)


def needs_torch(block: BlockConfig) -> bool:
    """Whether only torch computes such a block."""
    sparse = block.mlp is not None and block.mlp.sparsity
    return bool(block.streams or block.laurel or sparse)
