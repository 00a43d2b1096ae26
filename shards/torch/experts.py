"""Experts: a router chooses some for each row, and each chosen one's weights are used once a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .mlp import Mlp
from .tensors.norm import norm_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..formats.blocks.experts import ExpertsConfig
    from ..models.block_weights import ExpertsWeights, MlpWeights
    from .tensors.device import Target
    from .tensors.linear import Linear
    from .tensors.norm import Norm

    TorchExperts = ExpertsWeights[Norm, Linear, list[MlpWeights[Linear]]]


class Experts:
    """``experts(x, stream)``: what the experts read and the residual stream, both (T, hidden) → (T, hidden)
    float32."""

    def __init__(self, settings: ExpertsConfig, weights: TorchExperts, target: Target) -> None:
        self._router = Router(settings, weights, target)
        self._scale_input = settings.router.scale_input
        self._count = settings.count
        self._experts = [Mlp(settings.mlp, held, target) for held in weights.experts]
        self._shared = None
        if settings.shared is not None and weights.shared is not None:
            self._shared = Mlp(settings.shared, weights.shared, target)
        self._shared_gate = weights.shared_gate
        self._latent_in, self._latent_out = weights.latent_in, weights.latent_out
        self._sigmoid = target.per_row(torch.sigmoid)

    def __call__(self, x: Tensor, stream: Tensor) -> Tensor:
        read = x if self._latent_in is None else self._latent_in(x).to(x.dtype)
        out = self._sum(read, *self._router(x, stream))
        if self._latent_out is not None:
            out = self._latent_out(out.to(x.dtype)).float()
        if self._shared is not None:
            shared = self._shared(x)
            if self._shared_gate is not None:
                shared = shared * self._sigmoid(self._shared_gate(x))
            out += shared
        return out

    def _sum(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Of what the ``chosen`` experts (T, used) make of each row, by ``weights``: in the order of their
        numbers, whatever other rows there are."""
        tokens, used = chosen.shape
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        numbers = chosen.flatten()
        order = numbers.argsort(stable=True)
        counts = torch.bincount(numbers, minlength=self._count).tolist()
        rows_of, weights_of = (order // used).split(counts), weights.flatten()[order, None].split(counts)
        for expert, rows, weight in zip(self._experts, rows_of, weights_of, strict=True):
            if not len(rows):
                continue
            everything = len(rows) == tokens
            inputs = x if everything else x[rows]
            made = expert(inputs * weight).float() if self._scale_input else expert(inputs) * weight
            if everything:
                out += made
            else:
                out.index_add_(0, rows, made)
        return out


class Router:
    """``router(x, stream)`` → the numbers of the chosen experts (T, used), best first, and their weights
    (T, used) float32. Of equal scores the lower number is better."""

    def __init__(self, settings: ExpertsConfig, weights: TorchExperts, target: Target) -> None:
        self._settings, self._used = settings.router, settings.used
        self._linear = weights.router
        self._rowwise = target.rowwise
        self._norm: Norm | None = None
        if settings.router.norm is not None and weights.scale is not None:
            scale = target.tensor(weights.scale * len(weights.scale) ** -0.5)
            self._norm = target.per_row(norm_of(settings.router.norm, scale))

        def numbers(values: NDArray[np.float32] | None) -> Tensor | None:
            return None if values is None else torch.from_numpy(values).to(target.device)

        self._correction, self._expert_scale = numbers(weights.correction), numbers(weights.expert_scale)

    def __call__(self, x: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self._linear(x if self._norm is None else self._norm(stream)).float()
        if not self._rowwise:
            return self._choose(outputs)
        chosen, weights = zip(*map(self._choose, outputs.split(1)), strict=True)
        return torch.cat(chosen), torch.cat(weights)

    def _choose(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        settings = self._settings
        scores = outputs
        if settings.scores in ("softmax", "sigmoid"):
            scores = outputs.softmax(-1) if settings.scores == "softmax" else outputs.sigmoid()
        ranked = scores if self._correction is None else scores + self._correction
        chosen = _best(ranked if settings.groups == 1 else self._best_groups(ranked), self._used)
        if settings.scores == "sparsemixer":
            weights = _mixed(outputs, chosen, settings.jitter)
        else:
            weights = scores.gather(1, chosen)
        if settings.scores == "softmax_of_used":
            weights = weights.softmax(-1)
        if settings.renormalise:
            weights = weights / (weights.sum(-1, keepdim=True) + settings.sum_floor)
        if settings.scaling != 1:
            weights = weights * settings.scaling
        if self._expert_scale is not None:
            weights = weights * self._expert_scale[chosen]
        return chosen, weights

    def _best_groups(self, ranked: Tensor) -> Tensor:
        """``ranked``, -inf in the groups that take no part."""
        groups = ranked.unflatten(1, (self._settings.groups, -1))
        best = groups.amax(-1) if self._settings.group_scores == "max" else groups.topk(2).values.sum(-1)
        used = _best(best, self._settings.used_groups)
        unused = torch.ones_like(best, dtype=torch.bool).scatter_(1, used, False)
        return groups.masked_fill(unused[..., None], float("-inf")).flatten(1)


def _best(scores: Tensor, count: int) -> Tensor:
    """The places of the ``count`` largest numbers of each row, largest first."""
    return scores.sort(stable=True, descending=True).indices[:, :count]


def _mixed(outputs: Tensor, chosen: Tensor, jitter: float) -> Tensor:
    """The weights of SparseMixer (arXiv 2409.12136) after training: an expert's share among those that come
    close to it; for the second, the first is out."""
    weights, left = [], outputs
    for expert in chosen.split(1, 1):
        best = outputs.gather(1, expert)
        far = (best - outputs) / outputs.abs().maximum(best) > 2 * jitter
        weights.append(left.masked_fill(far, float("-inf")).softmax(-1).gather(1, expert))
        left = left.scatter(1, expert, float("-inf"))
    return torch.cat(weights, 1)
