"""Mixers that keep a state of fixed size a session, in the place of keys and values of every token.

All of it is computed in float32. A state begins as zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

from ....swarm.errors import CheckpointError, UnsupportedModelError
from ..values.bounds import MAX_WIDTH, SCALES, check_between, check_count, check_one_of
from .norm import NormConfig

RULES = ("delta", "plain")
DECAYS = ("head", "channel")
STATE_GATES = ("silu", "sigmoid")
MAX_TAPS = 64
"""Inputs of a short convolution; models have 3 or 4."""
MAX_STATE = 2**28
"""Values of one block's state; models have up to 2^20."""


@dataclass(frozen=True, slots=True)
class StateShape:
    """What a block keeps of a session, float32, one after the other: ``heads`` matrices (key_dim, value_dim),
    then the last ``rows`` inputs of its convolution, of ``channels`` values each, the oldest first."""

    heads: int
    key_dim: int
    value_dim: int
    rows: int
    channels: int

    @property
    def matrices(self) -> int:
        """Values of all matrices."""
        return self.heads * self.key_dim * self.value_dim

    @property
    def floats(self) -> int:
        return self.matrices + self.rows * self.channels

    @property
    def nbytes(self) -> int:
        return 4 * self.floats


@dataclass(frozen=True, slots=True)
class RecurrenceConfig:
    """Linear attention: a head has a matrix S (key_dim, value_dim), which a token decays, adds to and reads.
    With x a row of the block's normed input:

        q, k, v = silu(conv(q_proj x)), silu(conv(k_proj x)), silu(conv(v_proj x))
        S = decay * S;   S += k (outer product) u;   o = q S (+ skip * v)
        y = gated(o);   out_proj y

    conv: each channel's own weights of its last ``taps`` inputs, the newest last, and with ``conv_bias`` a
    bias. A key head is that of ``heads`` / ``key_heads`` value heads, one after the other: value head h has
    key head h // (heads / key_heads) or, with ``tiled``, h % key_heads.

    Rule "delta" (Gated DeltaNet, arXiv 2412.06464; KDA, arXiv 2510.26692): q and k of a head are divided by
    sqrt(sum of squares + 1e-6), then q by sqrt(key_dim). u = beta * (v - k S), S being decayed, and
    beta = ``beta_scale`` * sigmoid(beta_proj x). With d = decay_proj x + decay_bias, one value a head or, by
    ``decay`` "channel", one a channel of its key, ln(decay) = -exp(a_log) * softplus(d).
    Rule "plain" (Mamba-2, arXiv 2405.21060, which calls q C, k B and v x): u = step * v and
    ln(decay) = -exp(a_log) * step, with step = softplus(decay_proj x + decay_bias) within ``steps``.
    ``skip``: a learned number a head, of "plain".

    gated(o): ``norm`` over each of ``norm_groups`` equal parts of all heads' o, with a weight that heads
    share or, without ``norm_shared``, one of all; times ``gate`` of z = gate_proj x, which with
    ``gate_first`` comes before the norm. ``gate_rank``, ``decay_rank``: these projections are products of
    two, with so many values between; 0: they are not. ``bias``: of the projections of x, ``out_bias`` of
    out_proj. ``factors``: what z, v, k, q and decay_proj x are multiplied by, before all else (Falcon-H1).
    """

    heads: int
    key_heads: int
    key_dim: int
    value_dim: int
    taps: int
    rule: str
    norm: NormConfig | None
    norm_groups: int
    norm_shared: bool = False
    gate: str = "silu"
    gate_first: bool = False
    gate_rank: int = 0
    decay: str = "head"
    decay_rank: int = 0
    beta_scale: float = 1.0
    steps: tuple[float, float] = (0.0, float("inf"))
    skip: bool = False
    tiled: bool = False
    conv_bias: bool = False
    bias: bool = False
    out_bias: bool = False
    factors: tuple[float, float, float, float, float] = (1.0, 1.0, 1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("heads", "key_heads", "key_dim", "value_dim", "norm_groups"):
            check_count(f"a recurrence's {name}", getattr(self, name), MAX_WIDTH)
        check_count("a recurrence's taps", self.taps, MAX_TAPS)
        check_count("the values of a block's state", self.state.floats, MAX_STATE)
        check_count("the width of all heads", self.inner, MAX_WIDTH)
        check_count("the width of all keys", self.key_size, MAX_WIDTH)
        check_one_of("rule of a recurrence", self.rule, RULES)
        check_one_of("decay of a recurrence", self.decay, DECAYS)
        check_one_of("gate of a recurrence", self.gate, STATE_GATES)
        if self.heads % self.key_heads or self.inner % self.norm_groups:
            raise CheckpointError(
                f"{self.heads} heads of a recurrence cannot be shared by {self.key_heads} key heads and "
                f"{self.norm_groups} groups of a norm"
            )
        for name in ("gate_rank", "decay_rank"):
            if not 0 <= getattr(self, name) <= MAX_WIDTH:
                raise CheckpointError(f"a recurrence's {name} is {getattr(self, name)}")
        check_between("a recurrence's beta_scale", self.beta_scale, SCALES)
        if not 0 <= self.steps[0] <= self.steps[1]:
            raise CheckpointError(f"the steps of a recurrence are limited to {self.steps}")
        for factor in self.factors:
            check_between("a factor of a recurrence", abs(factor), (0.0, SCALES[1]))
        if self.rule == "plain" and (self.decay != "head" or self.decay_rank):
            raise UnsupportedModelError("a plain recurrence with such a decay is not supported")
        if self.rule == "delta" and self.skip:
            raise UnsupportedModelError("a delta rule with a skip is not supported")
        if self.norm_shared and self.norm_groups != self.heads:
            raise UnsupportedModelError("a norm that heads share is over each of them")
        if self.norm is not None and (self.norm.kind != "rms" or self.norm.bias):
            raise UnsupportedModelError("a recurrence with another norm than RMS is not supported")

    @property
    def inner(self) -> int:
        """Values of v, of z and of y, all heads together."""
        return self.heads * self.value_dim

    @property
    def key_size(self) -> int:
        """Values of q and of k, all key heads together."""
        return self.key_heads * self.key_dim

    @property
    def channels(self) -> int:
        """Channels of the convolution: those of q, k and v."""
        return 2 * self.key_size + self.inner

    @property
    def decay_size(self) -> int:
        """Values of decay_proj x."""
        return self.heads * (self.key_dim if self.decay == "channel" else 1)

    @property
    def state(self) -> StateShape:
        return StateShape(self.heads, self.key_dim, self.value_dim, self.taps - 1, self.channels)


@dataclass(frozen=True, slots=True)
class ShortConvConfig:
    """A gated short convolution (LFM2): out_proj(c * conv(b * v)), with b, c and v = b_proj x, c_proj x and
    v_proj x, of ``width`` values each, and conv as ``RecurrenceConfig``'s. ``bias``: of all of them."""

    width: int
    taps: int
    bias: bool = False

    def __post_init__(self) -> None:
        check_count("a short convolution's width", self.width, MAX_WIDTH)
        check_count("a short convolution's taps", self.taps, MAX_TAPS)

    @property
    def state(self) -> StateShape:
        return StateShape(0, 0, 0, self.taps - 1, self.width)
