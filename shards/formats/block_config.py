"""What one block of a model computes, in frozen types that every backend and every cost estimate reads.

In these terms a block is, with x (tokens, hidden) and all norms optional:

    a = attention_out_norm(attention(norm(x)))
    sequential:   x += m * a;   x += m * mlp_out_norm(mlp(mlp_norm(x)))
    parallel:     x += m * (a + mlp_out_norm(mlp(mlp_norm(x)))), without mlp_norm: mlp(norm(x))
    with a side:  x += side.norm(projection(side.activation(gate(x)) * values))
    x *= scalar

With ``laurel`` (arXiv 2411.07501), after attention: x = (x + n + laurel.norm(right(left(n)))) / sqrt(2), with
n = norm(x) from before it. With ``streams`` (alternating updates, arXiv 2301.13310) the residual is several
x_i, and

    p_i = x_i + sum over j of predict(route(x_active))_ij * x_j,   route(y) = tanh(router(norm(y) / hidden))
    y = what the above makes of p_active in the place of x, without side
    x_i = p_i + (correct(route(y))_i + 1) * (y - p_active)
    with a side, which reads x_active * scale: its values are added to all but the first x_i

where ``mlp`` is a dense MLP, experts, or both, and m the ``residual_multiplier``. How a file lays its weights
out (fused, transposed, interleaved) is no part of this: readers of files undo it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...swarm.errors import CheckpointError, UnsupportedModelError
from .bounds import MAX_CONTEXT, MAX_WIDTH, SCALES, check_between, check_count, check_softcap
from .rope_config import RopeConfig
from .shown import shown

NORMS = ("rms", "layer")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "clamped")
"""``gelu`` with erf, ``relu2``: relu squared, ``clamped``: that of gpt-oss (``MlpConfig``)."""
SCORES = ("softmax", "sigmoid", "softmax_of_used", "sparsemixer")
GROUP_SCORES = ("max", "top2")
MAX_STREAMS = 16
"""Residual streams of one block; models have 4."""
MAX_EXPERTS = 4096
"""Experts of one block; models have up to 512."""


@dataclass(frozen=True, slots=True)
class NormConfig:
    """x / sqrt(mean(x²) + eps) * (weight + offset); for "layer" of x minus its mean, and + bias.

    ``weighted``: the file has a weight; else it is 1. ``offset``: 1 where a file keeps weight - 1.
    """

    eps: float
    kind: str = "rms"
    weighted: bool = True
    bias: bool = False
    offset: float = 0.0

    def __post_init__(self) -> None:
        _one_of("norm", self.kind, NORMS)
        check_between("the eps of a norm", self.eps, (0.0, SCALES[1]))
        if self.offset not in (0.0, 1.0):
            raise CheckpointError(f"the offset of a norm is {self.offset}, expected 0 or 1")


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
        _one_of("norm of q and k over", self.over, ("head", "all"))


@dataclass(frozen=True, slots=True)
class LatentConfig:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): what is cached of a token is its latent,
    ``kv_rank`` values, normed, and one rotated key of ``rope_dim`` values that all heads share.

    A head's q is ``nope_dim`` values, compared with the latent by the head's matrix, and ``rope_dim`` rotated
    ones; its output has ``value_dim`` values. ``q_rank`` 0: q has no latent of its own.
    """

    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    norm: NormConfig
    q_rank: int = 0

    def __post_init__(self) -> None:
        for name in ("kv_rank", "nope_dim", "rope_dim", "value_dim"):
            check_count(f"latent attention's {name}", getattr(self, name), MAX_WIDTH)
        if not 0 <= self.q_rank <= MAX_WIDTH:
            raise CheckpointError(f"latent attention's q_rank is {self.q_rank}")


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
    ``value_dim``. ``shared``: the values are the first ``value_dim`` of the keys, and not kept twice."""

    heads: int
    key_dim: int
    value_dim: int
    shared: bool = False


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
            _one_of("output gate", self.gate, ("channel", "head"))
        turned = self.latent.rope_dim if self.latent else self.head_dim
        if self.rope is not None and self.rope.rotary_dim > turned:
            raise CheckpointError(f"{self.rope.rotary_dim} rotated dimensions in heads of {turned}")
        if self.latent is not None:
            self._check_latent(self.latent)

    def _check_latent(self, latent: LatentConfig) -> None:
        if self.head_dim != latent.nope_dim + latent.rope_dim or self.kv_heads != 1:
            raise CheckpointError("the heads of latent attention do not have the sizes of their parts")
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
            return KvShape(1, rank + self.latent.rope_dim, rank, shared=True)
        return KvShape(self.kv_heads, self.head_dim, self.head_dim)


@dataclass(frozen=True, slots=True)
class MlpConfig:
    """``gated``: down(activation(gate(x)) * up(x)); else down(activation(up(x))). ``bias`` of all of them.

    Activation "clamped", of gated MLPs: with gate at most ``limit`` and up from -limit to limit,
    gate * sigmoid(``alpha`` * gate) * (up + 1). ``sparsity``, of gated MLPs: before its activation gate is
    max(0, gate - m - q * d), m and d being mean and deviation of the row, and q the quantile of the normal
    distribution below which this part lies; 0: gate itself.
    """

    inner: int
    activation: str = "silu"
    gated: bool = True
    bias: bool = False
    alpha: float = 1.702
    limit: float = 7.0
    sparsity: float = 0.0

    def __post_init__(self) -> None:
        check_count("the inner size of an MLP", self.inner, MAX_WIDTH)
        _one_of("activation", self.activation, ACTIVATIONS)
        if self.activation == "clamped" and not self.gated:
            raise UnsupportedModelError("activation clamped is for gated MLPs")
        if not 0 <= self.sparsity < 1 or (self.sparsity and not self.gated):
            raise UnsupportedModelError(f"a sparsity of {self.sparsity} of an MLP is not supported")
        check_between("the limit of an MLP", self.limit, SCALES)
        check_between("the alpha of an MLP", self.alpha, SCALES)


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Which experts a token goes to, and with what weight.

    ``scores`` of the router's outputs, of all experts: "softmax", "sigmoid", "softmax_of_used" (over those
    chosen alone; the choice is by the outputs themselves), "sparsemixer" (Phi-3.5-MoE's, of two experts,
    with ``jitter``). ``correction``: a learned number an expert is added to the scores for the choice alone.
    ``groups`` of experts, of which the best ``used_groups`` take part, by their best score ("max") or the sum
    of their two best ("top2"), corrections included. Then the chosen ones' weights: ``renormalise`` divides
    by their sum (+ ``sum_floor``), ``scaling`` multiplies; ``expert_scale``: so does a learned number an
    expert. ``scale_input``: what is multiplied by the weight is the expert's input, not its output.
    ``norm``: the router reads this norm of the residual stream (weightless norm, times the learned
    ``mlp.gate.scale`` and hidden ** -0.5) and not what the experts read (Gemma 4).
    """

    scores: str = "softmax"
    bias: bool = False
    correction: bool = False
    groups: int = 1
    used_groups: int = 1
    group_scores: str = "max"
    renormalise: bool = True
    sum_floor: float = 0.0
    scaling: float = 1.0
    expert_scale: bool = False
    scale_input: bool = False
    jitter: float = 0.0
    norm: NormConfig | None = None

    def __post_init__(self) -> None:
        _one_of("router scores", self.scores, SCORES)
        _one_of("scores of groups of experts", self.group_scores, GROUP_SCORES)
        check_count("groups of experts", self.groups, MAX_EXPERTS)
        check_count("used groups of experts", self.used_groups, self.groups)
        check_between("the scaling of experts", self.scaling, (0.0, SCALES[1]))
        if not 0 <= self.sum_floor < 1 or not 0 <= self.jitter < 1:
            raise CheckpointError("the router's floor or jitter is not from 0 to 1")
        if self.scores == "sparsemixer" and (self.correction or self.groups > 1):
            raise UnsupportedModelError("sparsemixer with corrections or groups is not supported")


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """``used`` of ``count`` experts, each an ``mlp``, weighted and added; beside them ``shared``, for all
    tokens, whose output ``shared_gate`` multiplies by sigmoid of one learned projection.

    In a block with a dense MLP too, both outputs are added. There ``norm``, where it is, is applied to the
    residual stream for the experts (the dense one reads ``mlp_norm``), ``dense_out_norm`` and ``out_norm`` to
    the dense MLP's and the experts' outputs (Gemma 4).
    """

    count: int
    used: int
    mlp: MlpConfig
    router: RouterConfig
    shared: MlpConfig | None = None
    shared_gate: bool = False
    norm: NormConfig | None = None
    dense_out_norm: NormConfig | None = None
    out_norm: NormConfig | None = None

    def __post_init__(self) -> None:
        check_count("number of experts", self.count, MAX_EXPERTS)
        check_count("experts of a token", self.used, self.count)
        if self.count % self.router.groups:
            raise CheckpointError(f"{self.count} experts cannot be divided into {self.router.groups} groups")
        in_groups = self.count // self.router.groups
        if self.used > in_groups * self.router.used_groups:
            raise CheckpointError(
                f"a token takes {self.used} experts of {self.router.used_groups} groups of {in_groups}"
            )
        if self.router.group_scores == "top2" and self.router.groups > 1 and in_groups < 2:
            raise CheckpointError(f"groups of {in_groups} expert have no two best ones")
        if self.router.scores == "sparsemixer" and self.used != 2:
            raise UnsupportedModelError(f"sparsemixer with {self.used} experts a token is not supported")
        if self.shared_gate and self.shared is None:
            raise CheckpointError("a gate of shared experts, of which there are none")


@dataclass(frozen=True, slots=True)
class SideConfig:
    """``values`` that a block reads of each token beside the residual stream: see the module."""

    values: int
    activation: str
    norm: NormConfig

    def __post_init__(self) -> None:
        check_count("a block's values beside the residual", self.values, MAX_WIDTH)
        _one_of("activation", self.activation, ACTIVATIONS)
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
    """

    attention: AttentionConfig
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
    laurel: LaurelConfig | None = None
    streams: StreamsConfig | None = None

    def __post_init__(self) -> None:
        attention = self.attention
        if self.kv_of is not None and (attention.latent or attention.v_norm or attention.keys_as_values):
            raise UnsupportedModelError("a block that reads another's keys and values has none of its own")
        if self.mlp is None and self.experts is None:
            raise CheckpointError("a block has neither an MLP nor experts")
        if self.laurel is not None and (self.parallel or self.norm is None or self.residual_multiplier != 1):
            raise UnsupportedModelError("a learned residual in such a block is not supported")
        check_between("the residual multiplier", self.residual_multiplier, (0.0, SCALES[1]))
        both = self.experts and (self.experts.norm or self.experts.dense_out_norm or self.experts.out_norm)
        if both and self.mlp is None:
            raise UnsupportedModelError("experts with norms of their own and no dense MLP are not supported")


def needs_torch(block: BlockConfig) -> bool:
    """Whether only torch computes such a block."""
    return bool(block.streams or block.laurel or (block.mlp is not None and block.mlp.sparsity))


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UnsupportedModelError(
            f"{what} {shown(value)} is not supported", hint=f"Supported: {', '.join(known)}."
        )
