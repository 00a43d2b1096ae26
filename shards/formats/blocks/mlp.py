"""The MLP of a block."""

from __future__ import annotations

from dataclasses import dataclass

from ....swarm.errors import UnsupportedModelError
from ..values.bounds import MAX_WIDTH, SCALES, check_between, check_count, check_one_of

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "clamped")
"""``gelu`` with erf, ``relu2``: relu squared, ``clamped``: that of gpt-oss (``MlpConfig``)."""


@dataclass(frozen=True, slots=True)
class MlpConfig:
    """``gated``: down(activation(gate(x)) * up(x)); else down(activation(up(x))). ``bias`` of all of them.

    Activation "clamped", of gated MLPs: with gate at most ``limit`` and up from -limit to limit,
    gate * sigmoid(``alpha`` * gate) * (up + 1). ``sparsity``, of gated MLPs: before its activation gate is
    max(0, gate - m - q * d), m and d being mean and deviation of the row, and q the quantile of the normal
    distribution below which this part lies; 0: gate itself. ``gate_factor``, of gated MLPs: what gate(x) is
    multiplied by before all else.
    """

    inner: int
    activation: str = "silu"
    gated: bool = True
    bias: bool = False
    alpha: float = 1.702
    limit: float = 7.0
    sparsity: float = 0.0
    gate_factor: float = 1.0

    def __post_init__(self) -> None:
        check_count("the inner size of an MLP", self.inner, MAX_WIDTH)
        check_one_of("activation", self.activation, ACTIVATIONS)
        if self.activation == "clamped" and not self.gated:
            raise UnsupportedModelError("activation clamped is for gated MLPs")
        if not 0 <= self.sparsity < 1 or (self.sparsity and not self.gated):
            raise UnsupportedModelError(f"a sparsity of {self.sparsity} of an MLP is not supported")
        if self.gate_factor != 1 and not self.gated:
            raise UnsupportedModelError("a gate factor of an MLP without a gate is not supported")
        check_between("the gate factor of an MLP", self.gate_factor, (0.0, SCALES[1]))
        check_between("the limit of an MLP", self.limit, SCALES)
        check_between("the alpha of an MLP", self.alpha, SCALES)
