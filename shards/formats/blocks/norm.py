"""The norms of a block."""

from __future__ import annotations

from dataclasses import dataclass

from ....swarm.errors import CheckpointError
from ..values.bounds import SCALES, check_between, check_one_of

NORMS = ("rms", "layer")


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
        check_one_of("norm", self.kind, NORMS)
        check_between("the eps of a norm", self.eps, (0.0, SCALES[1]))
        if self.offset not in (0.0, 1.0):
            raise CheckpointError(f"the offset of a norm is {self.offset}, expected 0 or 1")
