"""Experts: a token's row goes through a few MLPs out of many, which a router chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from .mlp import MlxMlp, activation
from .tensors.device import evaluated, optional
from .tensors.linear import ExpertLinears, MlxLinear
from .tensors.norm import MlxNorm, normed

if TYPE_CHECKING:
    from ..formats.blocks.experts import ExpertsConfig, RouterConfig
    from ..models.block_weights import ExpertsWeights

SORTED_ROWS = 64
"""This many rows or more are put in the order of their experts, so that an expert's weights are read once.
Fewer rows seldom share an expert."""


class MlxExperts:
    """``experts(x, chosen, weights)``: x (T, hidden), numbers of experts (T, used) and the weight of each →
    (T, hidden), the weighted sum of each row's experts."""

    def __init__(self, settings: ExpertsConfig, gate_up: ExpertLinears, down: ExpertLinears) -> None:
        self._gate_up, self._down = gate_up, down
        self._activate = activation(settings.mlp)
        self._scale_input = settings.router.scale_input

    def __call__(self, x: mx.array, chosen: mx.array, weights: mx.array) -> mx.array:
        rows = x[:, None, None]  # (T, 1, 1, hidden)
        if self._scale_input:
            rows = rows * weights[..., None, None].astype(x.dtype)  # (T, used, 1, hidden)
        experts, order = chosen, None
        if chosen.size >= SORTED_ROWS:
            order = mx.argsort(chosen.reshape(-1))
            experts = chosen.reshape(-1)[order]
            rows = rows.reshape(-1, 1, x.shape[-1])
            rows = rows[order // (chosen.size // len(rows))]  # (T * used, 1, hidden)
        inner = self._activate(self._gate_up(rows, experts, in_order=order is not None))
        out = self._down(inner, experts, in_order=order is not None)
        if order is not None:
            out = out[mx.argsort(order)]
        out = out.reshape(*chosen.shape, -1)  # (T, used, hidden)
        if not self._scale_input:
            out = out * weights[..., None]
        return out.sum(axis=1).astype(x.dtype)


class ExpertsLayer:
    """The experts of a block, their router, what all tokens go through, and a dense MLP beside them."""

    def __init__(
        self,
        settings: ExpertsConfig,
        weights: ExpertsWeights[MlxNorm, MlxLinear, MlxExperts],
        dense: MlxMlp | None,
        dtype: str,
    ) -> None:
        self._router, self._dense = _Router(settings, weights, dtype), dense
        self._reads_residual = settings.router.norm is not None
        self._experts = weights.experts
        self._shared = None
        if settings.shared is not None and weights.shared is not None:
            self._shared = MlxMlp(settings.shared, weights.shared)
        self._shared_gate = weights.shared_gate
        self._latent_in, self._latent_out = weights.latent_in, weights.latent_out
        self._norm, self._out_norm = weights.norm, weights.out_norm
        self._dense_out_norm = weights.dense_out_norm

    def __call__(self, x: mx.array, residual: mx.array) -> mx.array:
        """``x`` (T, hidden), as the block has normed it; ``residual`` (T, hidden), before that → the same."""
        read = x if self._norm is None else self._norm(residual)
        inner = read if self._latent_in is None else self._latent_in(read)
        out = self._experts(inner, *self._router(residual if self._reads_residual else read))
        if self._latent_out is not None:
            out = self._latent_out(out)
        if self._shared is not None:
            shared = self._shared(read)
            if self._shared_gate is not None:
                shared = shared * mx.sigmoid(self._shared_gate(read))
            out = out + shared
        out = normed(self._out_norm, out)
        return out if self._dense is None else normed(self._dense_out_norm, self._dense(x)) + out


class _Router:
    """``router(x)``: x (T, hidden) → numbers of experts (T, used) and their weights, float32."""

    def __init__(
        self,
        settings: ExpertsConfig,
        weights: ExpertsWeights[MlxNorm, MlxLinear, MlxExperts],
        dtype: str,
    ) -> None:
        self._settings, self._used, self._linear = settings.router, settings.used, weights.router
        self._norm = None
        if settings.router.norm is not None and weights.scale is not None:
            scale = weights.scale * np.float32(len(weights.scale) ** -0.5)
            self._norm = MlxNorm(settings.router.norm, evaluated(scale, dtype), None)
        self._correction = optional(weights.correction, "float32")
        self._expert_scale = optional(weights.expert_scale, "float32")

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        settings = self._settings
        logits = self._linear(x if self._norm is None else self._norm(x)).astype(mx.float32)
        scores = _scores(logits, settings.scores)
        choice = scores if self._correction is None else scores + self._correction
        if settings.used_groups < settings.groups:
            choice = _in_best_groups(choice, settings)
        chosen = mx.argsort(-choice, axis=-1)[:, : self._used]
        if settings.scores == "sparsemixer":
            weights = _sparsemixer(logits, chosen, settings.jitter)
        else:
            weights = mx.take_along_axis(scores, chosen, axis=-1)
        if settings.scores == "softmax_of_used":
            weights = mx.softmax(weights, axis=-1)
        if settings.renormalise:
            weights = weights / (weights.sum(axis=-1, keepdims=True) + settings.sum_floor)
        if settings.scaling != 1.0:
            weights = weights * settings.scaling
        if self._expert_scale is not None:
            weights = weights * self._expert_scale[chosen]
        return chosen, weights


def _scores(logits: mx.array, kind: str) -> mx.array:
    if kind == "softmax":
        return mx.softmax(logits, axis=-1)
    return mx.sigmoid(logits) if kind == "sigmoid" else logits


def _in_best_groups(choice: mx.array, settings: RouterConfig) -> mx.array:
    """``choice`` (T, experts), -inf for experts of the groups that do not take part."""
    grouped = choice.reshape(len(choice), settings.groups, -1)
    best = mx.topk(grouped, 2 if settings.group_scores == "top2" else 1, axis=-1).sum(axis=-1)
    unused = settings.groups - settings.used_groups
    worst = mx.argpartition(best, unused - 1, axis=-1)[:, :unused, None]
    return mx.put_along_axis(grouped, worst, mx.array(-mx.inf), axis=1).reshape(choice.shape)


def _sparsemixer(logits: mx.array, chosen: mx.array, jitter: float) -> mx.array:
    """The weights (T, used) of the ``chosen`` experts, best first: an expert's share among those that come
    close to it, by 2 * ``jitter`` in proportion, and were not chosen before it (arXiv 2409.12136)."""
    left, weights = logits, []
    for at in range(chosen.shape[1]):
        expert = chosen[:, at : at + 1]
        best = mx.take_along_axis(logits, expert, axis=-1)
        far = (best - logits) / mx.maximum(mx.abs(logits), best) > 2 * jitter
        shares = mx.softmax(mx.where(far, -mx.inf, left), axis=-1)
        weights.append(mx.take_along_axis(shares, expert, axis=-1))
        left = mx.put_along_axis(left, expert, mx.array(-mx.inf), axis=-1)
    return mx.concatenate(weights, axis=-1)
