"""How a block attends, and what it caches of a token."""

from __future__ import annotations

from dataclasses import dataclass

from ....swarm.errors import CheckpointError, UnsupportedModelError
from ..values.bounds import (
    MAX_CONTEXT,
    MAX_WIDTH,
    SCALES,
    check_between,
    check_count,
    check_one_of,
    check_softcap,
)
from ..values.shown import shown
from .norm import NormConfig
from .rope import RopeConfig


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """Norm of q and k. ``over``: "head" normalises each head by itself, "all" the whole row of q and of k.
    ``per_head``: the file has a weight for each head, not one that they share. ``after_rope``: q and k are
    turned first."""

    norm: NormConfig
    over: str = "head"
    per_head: bool = False
    after_rope: bool = False

    def __post_init__(self) -> None:
        check_one_of("norm of q and k over", self.over, ("head", "all"))


@dataclass(frozen=True, slots=True)
class IndexerConfig:
    """Which tokens attention sees (DeepSeek-V3.2): of those that it could see, a token sees the ``top`` with
    the largest sum over ``heads`` index heads of weight * relu(q·k), of equal ones the earlier.

    q is made of q's latent; k, normed, and the heads' weights are made of the block's input. q and k have
    ``head_dim`` values, of which the first ones are turned as those of attention are; all heads share k,
    which is cached. ``interleaved``: as in ``RopeConfig``, of the rows that make these q and k.
    """

    heads: int
    head_dim: int
    top: int
    norm: NormConfig
    interleaved: bool = False

    def __post_init__(self) -> None:
        check_count("an indexer's heads", self.heads, MAX_WIDTH)
        check_count("an indexer's head_dim", self.head_dim, MAX_WIDTH)
        check_count("the width of an indexer's heads", self.heads * self.head_dim, MAX_WIDTH)
        check_count("the tokens that an indexer chooses", self.top, MAX_CONTEXT)


@dataclass(frozen=True, slots=True)
class LatentConfig:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): what is cached of a token is its latent,
    ``kv_rank`` values, normed, and one rotated key of ``rope_dim`` values that all heads share.

    A head's q is ``nope_dim`` values, compared with the latent by the head's matrix, and ``rope_dim`` rotated
    ones; its output has ``value_dim`` values. ``q_rank`` 0: q has no latent of its own. ``indexer``: which
    tokens are seen; None: all, or those that another block's says (``BlockConfig.index_of``).
    """

    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    norm: NormConfig
    q_rank: int = 0
    indexer: IndexerConfig | None = None

    def __post_init__(self) -> None:
        for name in ("kv_rank", "nope_dim", "rope_dim", "value_dim"):
            check_count(f"latent attention's {name}", getattr(self, name), MAX_WIDTH)
        if not 0 <= self.q_rank <= MAX_WIDTH:
            raise CheckpointError(f"latent attention's q_rank is {self.q_rank}")
        if self.indexer is not None and (not self.q_rank or self.indexer.head_dim < self.rope_dim):
            raise CheckpointError(
                "an indexer without a latent of q, or with heads smaller than their turned part"
            )


@dataclass(frozen=True, slots=True)
class QueryScale:
    """q at position p is multiplied by 1 + beta * ln(1 + floor((p + offset) / period))."""

    beta: float
    period: int
    offset: int = 0

    def __post_init__(self) -> None:
        check_between("the beta of query scaling", self.beta, (0.0, SCALES[1]))
        check_count("the period of query scaling", self.period, MAX_CONTEXT)
        if self.offset not in (0, 1):
            raise CheckpointError(f"the offset of query scaling is {self.offset}, expected 0 or 1")


@dataclass(frozen=True, slots=True)
class KvShape:
    """What a block caches of a token: ``heads`` keys of ``key_dim`` values and as many values of
    ``value_dim``. ``shared``: the values are the first ``value_dim`` of the keys, and not kept twice.
    ``index_dim``: values of the one key of its indexer; 0: it has none."""

    heads: int
    key_dim: int
    value_dim: int
    shared: bool = False
    index_dim: int = 0

    @property
    def index(self) -> KvShape | None:
        """What is kept for the indexer, behind the keys and values, as a shape by itself."""
        return KvShape(1, self.index_dim, self.index_dim, shared=True) if self.index_dim else None


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """Causal grouped-query attention.

    ``scale`` multiplies q·k. ``window``: a token sees itself and the ``window - 1`` before it; 0: all.
    ``chunk``: it sees those of its own chunk of so many positions, counted from 0. ``softcap`` c, if not 0:
    scores become c * tanh(score / c). ``sinks``: a learned score a head takes part in the softmax, without a
    value. ``bias`` of q, k and v. ``keys_as_values``: there is no v projection, v is k as projected (before
    norm and rope). ``v_norm``: each head's. ``gate``: the output is multiplied by sigmoid of a projection of
    the block's normed input, as wide as the output ("channel") or one value a head ("head").
    With ``latent``, ``kv_heads`` is 1 and ``head_dim`` is nope_dim + rope_dim.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: RopeConfig | None
    window: int = 0
    chunk: int = 0
    softcap: float = 0.0
    sinks: bool = False
    bias: bool = False
    out_bias: bool = False
    qk_norm: HeadNorm | None = None
    v_norm: NormConfig | None = None
    keys_as_values: bool = False
    gate: str | None = None
    query_scale: QueryScale | None = None
    latent: LatentConfig | None = None

    def __post_init__(self) -> None:
        for name in ("heads", "kv_heads", "head_dim"):
            check_count(f"attention's {name}", getattr(self, name), MAX_WIDTH)
        check_count("the width of all heads", self.heads * self.head_dim, MAX_WIDTH)
        if self.heads % self.kv_heads:
            raise CheckpointError(
                f"{self.heads} attention heads cannot be shared by {self.kv_heads} key/value heads"
            )
        check_between("the scale of attention", self.scale, (0.0, SCALES[1]))
        for name in ("window", "chunk"):
            if not 0 <= getattr(self, name) <= MAX_CONTEXT:
                raise CheckpointError(f"attention's {name} is {shown(getattr(self, name))}")
        if self.window and self.chunk:
            raise UnsupportedModelError("attention with a window and with chunks is not supported")
        check_softcap("attention", self.softcap)
        if self.gate is not None:
            check_one_of("output gate", self.gate, ("channel", "head"))
        turned = self.latent.rope_dim if self.latent else self.head_dim
        if self.rope is not None and self.rope.rotary_dim > turned:
            raise CheckpointError(f"{self.rope.rotary_dim} rotated dimensions in heads of {turned}")
        if self.latent is not None:
            self._check_latent(self.latent)

    def _check_latent(self, latent: LatentConfig) -> None:
        if self.head_dim != latent.nope_dim + latent.rope_dim or self.kv_heads != 1:
            raise CheckpointError("the heads of latent attention do not have the sizes of their parts")
        if latent.indexer is not None and self.reach:
            raise UnsupportedModelError("an indexer beside a window or chunks is not supported")
        if self.qk_norm or self.v_norm or self.keys_as_values or self.bias or self.gate or self.sinks:
            raise UnsupportedModelError(
                "latent attention with norms, biases, gates or sinks of heads is not supported"
            )

    @property
    def value_dim(self) -> int:
        """Values of one head's output."""
        return self.latent.value_dim if self.latent else self.head_dim

    @property
    def q_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def out_size(self) -> int:
        """Values of a row of all heads' outputs."""
        return self.heads * self.value_dim

    @property
    def reach(self) -> int:
        """A token sees at most so many positions, its own included; 0: all."""
        return self.window or self.chunk

    @property
    def kv(self) -> KvShape:
        if self.latent is not None:
            rank = self.latent.kv_rank
            indexer = self.latent.indexer
            index_dim = 0 if indexer is None else indexer.head_dim
            return KvShape(1, rank + self.latent.rope_dim, rank, shared=True, index_dim=index_dim)
        return KvShape(self.kv_heads, self.head_dim, self.head_dim)
