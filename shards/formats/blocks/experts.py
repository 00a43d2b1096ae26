"""The experts of a block, and the router that chooses among them."""

from __future__ import annotations

from dataclasses import dataclass

from ....swarm.errors import CheckpointError, UnsupportedModelError
from ..values.bounds import MAX_WIDTH, SCALES, check_between, check_count, check_one_of
from .mlp import MlpConfig
from .norm import NormConfig

SCORES = ("softmax", "sigmoid", "softmax_of_used", "sparsemixer")
GROUP_SCORES = ("max", "top2")
MAX_EXPERTS = 4096
"""Experts of one block; models have up to 512."""


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
        check_one_of("router scores", self.scores, SCORES)
        check_one_of("scores of groups of experts", self.group_scores, GROUP_SCORES)
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
    tokens, whose output ``shared_gate`` multiplies by sigmoid of one learned projection. With ``latent`` the
    experts read a projection of their input to so many values, and their sum is projected back; router and
    shared ones read the input itself (Nemotron 3).

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
    latent: int = 0
    norm: NormConfig | None = None
    dense_out_norm: NormConfig | None = None
    out_norm: NormConfig | None = None

    def __post_init__(self) -> None:
        check_count("number of experts", self.count, MAX_EXPERTS)
        check_count("experts of a token", self.used, self.count)
        if self.latent:
            check_count("the latent of experts", self.latent, MAX_WIDTH)
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

    def width(self, hidden: int) -> int:
        """Values that an expert reads and gives, in a model of ``hidden``."""
        return self.latent or hidden
