"""Blocks computed plainly: float64, whole sequences, dense masks, one expert and one head after the other. As
the docstrings of ``formats.blocks`` say it, and in no other way."""

from __future__ import annotations

from math import erf
from statistics import NormalDist
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from swarm_node.shards.formats.blocks.mlp import MlpConfig
from swarm_node.shards.formats.blocks.state import RecurrenceConfig
from swarm_node.shards.layers.rope import frequencies

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from swarm_node.shards.checkpoint.checkpoint import Checkpoint
    from swarm_node.shards.formats.blocks.attention import IndexerConfig
    from swarm_node.shards.formats.blocks.block import BlockConfig
    from swarm_node.shards.formats.blocks.experts import ExpertsConfig
    from swarm_node.shards.formats.blocks.norm import NormConfig
    from swarm_node.shards.formats.blocks.rope import RopeConfig
    from swarm_node.swarm.types import Span

    Doubles = NDArray[np.float64]


def reference(
    checkpoint: Checkpoint, x: NDArray[Any], *, span: Span | None = None, long: bool = False
) -> Doubles:
    """``x`` (T, row width), positions from 0 → what leaves the last block of ``span`` (None: all). ``long``:
    as ``Rope``'s."""
    config = checkpoint.config
    out, beside = np.split(x.astype(np.float64), [config.residual_width], 1)
    made: dict[int, tuple[Doubles, Doubles]] = {}
    chosen = None
    for number in range(config.n_blocks) if span is None else range(span.start, span.end):
        settings = config.blocks[number]
        values = 0 if settings.side is None else settings.side.values
        own, beside = np.split(beside, [values], 1)
        block = _Block(checkpoint, number, settings, long, made, chosen)
        out = block(out, own)
        chosen = block.chosen
    return np.concatenate((out, beside), 1)


_KNOWN: WeakKeyDictionary[Checkpoint, dict[str, Doubles]] = WeakKeyDictionary()
"""What a checkpoint's tensors are, by their names."""


class _Block:
    def __init__(
        self,
        checkpoint: Checkpoint,
        number: int,
        settings: BlockConfig,
        long: bool,
        made: dict[int, tuple[Doubles, Doubles]],
        chosen: NDArray[np.bool_] | None,
    ) -> None:
        """``made``: keys and values of the blocks before, and then of this one. ``chosen``: which tokens an
        indexer said last that each one sees."""
        self.chosen = chosen
        self._number, self._made = number, made
        self._checkpoint, self._prefix = checkpoint, f"model.layers.{number}."
        self._settings, self._long = settings, long
        self._known = _KNOWN.setdefault(checkpoint, {})

    def __call__(self, x: Doubles, beside: Doubles) -> Doubles:
        settings = self._settings
        if (streams := settings.streams) is None:
            y = self._block(x)
            y = y + self._side(y, beside)
            return y * self._tensor("scalar.weight") if settings.scalar else y
        x = x.reshape(len(x), streams.count, -1)
        coefs = self._linear("altup.prediction_coefs", self._route(x[:, streams.active]))
        coefs = coefs.reshape(len(x), streams.count, streams.count)
        predicted = x + np.einsum("tij,tjh->tih", coefs, x)
        active = predicted[:, streams.active]
        y = self._block(active)
        coefs = self._linear("altup.correction_coefs", self._route(y)) + 1
        out = predicted + coefs[..., None] * (y - active)[:, None]
        scale = self._tensor("altup.correct_output_scale") if streams.scaled else 1.0
        out[:, 1:] += self._side(out[:, streams.active] * scale, beside)[:, None]
        return out.reshape(len(x), -1)

    def _route(self, x: Doubles) -> Doubles:
        assert self._settings.streams is not None
        normed = self._norm("altup.router_norm", self._settings.streams.norm, x)
        return np.tanh(self._linear("altup.modality_router", normed / x.shape[1]))

    def _side(self, x: Doubles, beside: Doubles) -> Doubles:
        if (side := self._settings.side) is None:
            return np.zeros_like(x)
        gate = self._linear("per_layer_input_gate", x)
        gated = _activation(MlpConfig(side.values, side.activation), gate) * beside
        return self._norm("post_per_layer_input_norm", side.norm, self._linear("per_layer_projection", gated))

    def _block(self, x: Doubles) -> Doubles:
        settings, m = self._settings, self._settings.residual_multiplier
        normed = self._norm("input_layernorm", settings.norm, x)
        a = self._mixed(normed) if settings.mixes else np.zeros_like(x)
        if not settings.parallel:
            x = x + m * a
            if (laurel := settings.laurel) is not None:
                more = self._linear("laurel.linear_right", self._linear("laurel.linear_left", normed))
                x = (x + normed + self._norm("laurel.post_laurel_norm", laurel.norm, more)) / np.sqrt(2)
            normed = x
        elif settings.mlp_norm is not None:
            normed = x
        if not settings.transforms:
            return x
        out = self._both(x, self._norm("post_attention_layernorm", settings.mlp_norm, normed))
        out = self._norm("mlp.out_norm", settings.mlp_out_norm, settings.mlp_factor * out)
        return x + m * (a + out) if settings.parallel else x + m * out

    def _mixed(self, normed: Doubles) -> Doubles:
        """By attention, by a state or by both."""
        settings, mixed = self._settings, np.zeros(1)
        if (attention := settings.attention) is not None:
            attends = self._latent if attention.latent else self._heads
            mixed = mixed + settings.attention_factor * attends(normed)
        if isinstance(state := settings.state, RecurrenceConfig):
            mixed = mixed + settings.state_factor * self._recurrence(state, normed)
        elif state is not None:
            mixed = mixed + settings.state_factor * self._short_conv(normed)
        return self._norm("self_attn.out_norm", settings.attention_out_norm, mixed)

    # tensors

    def _tensor(self, name: str) -> Doubles:
        if (whole := self._prefix + name) not in self._known:
            self._known[whole] = self._checkpoint.tensor(whole).dequantize().astype(np.float64)
        return self._known[whole]

    def _linear(self, name: str, x: Doubles) -> Doubles:
        out = x @ self._tensor(f"{name}.weight").T
        if self._checkpoint.has(f"{self._prefix}{name}.bias"):
            out = out + self._tensor(f"{name}.bias")
        return out

    def _norm(self, name: str, norm: NormConfig | None, x: Doubles) -> Doubles:
        """Of the last dimension of ``x``."""
        if norm is None:
            return x
        if norm.kind == "layer":
            x = x - x.mean(-1, keepdims=True)
        out = x / np.sqrt((x**2).mean(-1, keepdims=True) + norm.eps)
        if norm.weighted:
            out = out * (self._tensor(f"{name}.weight").reshape(-1, x.shape[-1]) + norm.offset)
        return out + self._tensor(f"{name}.bias").reshape(-1, x.shape[-1]) if norm.bias else out

    # attention

    def _heads(self, x: Doubles) -> Doubles:
        settings = self._settings.attention
        tokens, dim = len(x), settings.head_dim
        q = self._linear("self_attn.q_proj", x).reshape(tokens, settings.heads, dim)
        if self._settings.kv_of is None:
            self._made[self._number] = self._keys_and_values(x)
        k, v = self._made[self._number if self._settings.kv_of is None else self._settings.kv_of]
        q = self._turned("q", q)
        group = settings.heads // settings.kv_heads
        out = self._softmax(q, k.repeat(group, 1), v.repeat(group, 1))
        if settings.gate is not None:
            gate = _sigmoid(self._linear("self_attn.gate_proj", x)).reshape(tokens, settings.heads, -1)
            out = out * gate  # a value a channel, or one a head
        return self._linear("self_attn.o_proj", out.reshape(tokens, -1))

    def _keys_and_values(self, x: Doubles) -> tuple[Doubles, Doubles]:
        settings = self._settings.attention
        tokens, dim = len(x), settings.head_dim
        k = self._linear("self_attn.k_proj", x).reshape(tokens, settings.kv_heads, dim)
        v = k if settings.keys_as_values else self._linear("self_attn.v_proj", x).reshape(k.shape)
        return self._turned("k", k), self._norm("self_attn.v_norm", settings.v_norm, v)

    def _turned(self, name: str, part: Doubles) -> Doubles:
        settings = self._settings.attention
        if settings.qk_norm is None:
            return _turn(part, settings.rope, self._long)
        if settings.qk_norm.after_rope:
            return self._head_norm(name, _turn(part, settings.rope, self._long))
        return _turn(self._head_norm(name, part), settings.rope, self._long)

    def _head_norm(self, name: str, x: Doubles) -> Doubles:
        norm = self._settings.attention.qk_norm
        assert norm is not None
        rows = x.reshape(len(x), -1) if norm.over == "all" else x
        return self._norm(f"self_attn.{name}_norm", norm.norm, rows).reshape(x.shape)

    def _latent(self, x: Doubles) -> Doubles:
        """Not absorbed: each head's keys and values are made of the latent."""
        settings = self._settings.attention
        parts = settings.latent
        assert parts is not None
        tokens, heads, rank, nope = len(x), settings.heads, parts.kv_rank, parts.nope_dim
        if parts.q_rank:
            small_q = self._norm("self_attn.q_a_layernorm", parts.norm, self._linear("self_attn.q_a_proj", x))
            q = self._linear("self_attn.q_b_proj", small_q)
        else:
            q = self._linear("self_attn.q_proj", x)
        if parts.indexer is not None:
            self.chosen = self._index(parts.indexer, x, small_q)
        q = q.reshape(tokens, heads, -1)
        kv = self._linear("self_attn.kv_a_proj", x)
        small = self._norm("self_attn.kv_a_layernorm", parts.norm, kv[:, :rank])
        k_b = self._tensor("self_attn.k_b_proj.weight").reshape(heads, rank, nope)
        v_b = self._tensor("self_attn.v_b_proj.weight").reshape(heads, parts.value_dim, rank)
        turned = _turn(kv[:, None, rank:], settings.rope, self._long).repeat(heads, 1)
        keys = np.concatenate((np.einsum("tr,hrn->thn", small, k_b), turned), -1)
        values = np.einsum("tr,hvr->thv", small, v_b)
        q = np.concatenate((q[..., :nope], _turn(q[..., nope:], settings.rope, self._long)), -1)
        return self._linear("self_attn.o_proj", self._softmax(q, keys, values).reshape(tokens, -1))

    def _index(self, indexer: IndexerConfig, x: Doubles, small_q: Doubles) -> NDArray[np.bool_]:
        """(T, T): whether the first sees the second, the causal mask aside."""
        name, rope = "self_attn.indexer", self._settings.attention.rope
        q = self._linear(f"{name}.wq_b", small_q).reshape(len(x), indexer.heads, -1)
        k = self._norm(f"{name}.k_norm", indexer.norm, self._linear(f"{name}.wk", x))
        q, k = _turn(q, rope, self._long), _turn(k[:, None], rope, self._long)[:, 0]
        weights = self._linear(f"{name}.weights_proj", x)
        scores = np.einsum("th,thk->tk", weights, np.maximum(np.einsum("thd,kd->thk", q, k), 0))
        chosen = np.zeros(scores.shape, bool)
        for row in range(len(x)):
            chosen[row, np.argsort(-scores[row, : row + 1], kind="stable")[: indexer.top]] = True
        return chosen

    def _softmax(self, q: Doubles, k: Doubles, v: Doubles) -> Doubles:
        """All (T, heads, a head's dimensions)."""
        settings = self._settings.attention
        at = np.arange(len(q))
        if (scale := settings.query_scale) is not None:
            q = q * (1 + scale.beta * np.log(1 + (at + scale.offset) // scale.period))[:, None, None]
        seen = at[:, None] >= at
        if settings.window:
            seen &= at[:, None] - at < settings.window
        if settings.chunk:
            seen &= at[:, None] // settings.chunk == at // settings.chunk
        if self._settings.is_indexed:
            assert self.chosen is not None
            seen &= self.chosen
        out = np.empty(v.shape)
        sinks = self._tensor("self_attn.sinks.weight") if settings.sinks else None
        for head in range(settings.heads):
            scores = q[:, head] @ k[:, head].T * settings.scale
            if settings.softcap:
                scores = settings.softcap * np.tanh(scores / settings.softcap)
            scores = np.where(seen, scores, -np.inf)
            if sinks is not None:
                scores = np.concatenate((scores, np.full((len(q), 1), sinks[head])), 1)
            out[:, head] = _softmax(scores)[:, : len(q)] @ v[:, head]
        return out

    # states

    def _short_conv(self, x: Doubles) -> Doubles:
        b, c, v = (self._linear(f"state.{part}_proj", x) for part in "bcv")
        return self._linear("state.out_proj", c * self._conv("state.conv", b * v))

    def _recurrence(self, settings: RecurrenceConfig, x: Doubles) -> Doubles:
        """A matrix a head, token by token."""
        of_z, of_v, of_k, of_q, of_decay = settings.factors
        q, k, v = (
            _silu(self._conv(f"state.{part}_conv", self._linear(f"state.{part}_proj", x) * factor))
            for part, factor in (("q", of_q), ("k", of_k), ("v", of_v))
        )
        heads, served = np.arange(settings.heads), settings.heads // settings.key_heads
        of_keys = heads % settings.key_heads if settings.tiled else heads // served
        q, k = (part.reshape(len(x), settings.key_heads, -1)[:, of_keys] for part in (q, k))
        v = v.reshape(len(x), settings.heads, -1)
        raw = self._ranked("decay", settings.decay_rank, x) * of_decay + self._tensor("state.decay_bias")
        raw, rate = raw.reshape(len(x), settings.heads, -1), np.exp(self._tensor("state.a_log"))[:, None]
        if settings.rule == "delta":
            q, k = (part / np.sqrt((part**2).sum(-1, keepdims=True) + 1e-6) for part in (q, k))
            q = q / np.sqrt(settings.key_dim)
            added = settings.beta_scale * _sigmoid(self._linear("state.beta_proj", x))
            log_decay = -rate * np.logaddexp(0, raw)
        else:
            step = np.clip(np.logaddexp(0, raw), *settings.steps)
            added, log_decay = step[..., 0], -rate * step
        out, matrices = np.empty(v.shape), np.zeros((settings.heads, settings.key_dim, settings.value_dim))
        for at in range(len(x)):
            matrices = np.exp(log_decay[at])[..., None] * matrices
            held = np.einsum("hk,hkv->hv", k[at], matrices) if settings.rule == "delta" else 0
            matrices = matrices + np.einsum("hk,hv->hkv", k[at], added[at, :, None] * (v[at] - held))
            out[at] = np.einsum("hk,hkv->hv", q[at], matrices)
        if settings.skip:
            out = out + self._tensor("state.skip")[:, None] * v
        z = self._ranked("gate", settings.gate_rank, x) * of_z
        return self._linear("state.out_proj", self._gated(settings, out.reshape(len(x), -1), z))

    def _gated(self, settings: RecurrenceConfig, o: Doubles, z: Doubles) -> Doubles:
        gate = _silu(z) if settings.gate == "silu" else _sigmoid(z)
        parts = (o * gate if settings.gate_first else o).reshape(len(o), settings.norm_groups, -1)
        normed = self._norm("state.norm", settings.norm, parts).reshape(o.shape)
        return normed if settings.gate_first else normed * gate

    def _conv(self, name: str, x: Doubles) -> Doubles:
        """Of each channel's last inputs."""
        weights = self._tensor(f"{name}.weight")
        taps = weights.shape[1]
        inputs = np.concatenate((np.zeros((taps - 1, x.shape[1])), x))
        out = sum(inputs[tap : tap + len(x)] * weights[:, tap] for tap in range(taps))
        return (
            out + self._tensor(f"{name}.bias") if self._checkpoint.has(f"{self._prefix}{name}.bias") else out
        )

    def _ranked(self, part: str, rank: int, x: Doubles) -> Doubles:
        if not rank:
            return self._linear(f"state.{part}_proj", x)
        return self._linear(f"state.{part}_b_proj", self._linear(f"state.{part}_a_proj", x))

    # MLPs

    def _both(self, x: Doubles, normed: Doubles) -> Doubles:
        """The dense MLP, experts, or both. ``x``: the residual stream."""
        dense, experts = self._settings.mlp, self._settings.experts
        if experts is None:
            assert dense is not None
            return self._mlp("mlp", dense, normed)
        if dense is None:
            return self._experts(experts, x, normed)
        routed = normed if experts.norm is None else self._norm("mlp.experts_norm", experts.norm, x)
        return self._norm(
            "mlp.dense_out_norm", experts.dense_out_norm, self._mlp("mlp", dense, normed)
        ) + self._norm("mlp.experts_out_norm", experts.out_norm, self._experts(experts, x, routed))

    def _mlp(self, name: str, mlp: MlpConfig, x: Doubles) -> Doubles:
        up = self._linear(f"{name}.up_proj", x)
        if not mlp.gated:
            return self._linear(f"{name}.down_proj", _activation(mlp, up))
        gate = self._linear(f"{name}.gate_proj", x) * mlp.gate_factor
        if mlp.sparsity:
            cutoff = gate.mean(1) + gate.std(1) * NormalDist().inv_cdf(mlp.sparsity)
            gate = np.maximum(gate - cutoff[:, None], 0)
        if mlp.activation == "clamped":
            gate, up = np.minimum(gate, mlp.limit), np.clip(up, -mlp.limit, mlp.limit)
            inner = gate * _sigmoid(mlp.alpha * gate) * (up + 1)
        else:
            inner = _activation(mlp, gate) * up
        return self._linear(f"{name}.down_proj", inner)

    def _experts(self, experts: ExpertsConfig, x: Doubles, normed: Doubles) -> Doubles:
        router = experts.router
        routed = normed
        if router.norm is not None:
            plain = self._norm("", router.norm, x)
            routed = plain * self._tensor("mlp.router.scale") * x.shape[1] ** -0.5
        logits = self._linear("mlp.router", routed)
        read = self._linear("mlp.latent_in_proj", normed) if experts.latent else normed
        out = np.zeros(read.shape)
        weights = np.zeros((len(logits), experts.count))
        for row, outputs in enumerate(logits):
            for expert, weight in self._choose(experts, outputs):
                weights[row, expert] = weight
        for expert in range(experts.count):
            if not (of := weights[:, expert] != 0).any():
                continue
            weight = weights[of, expert : expert + 1]
            if router.scale_input:
                out[of] += self._mlp(f"mlp.experts.{expert}", experts.mlp, read[of] * weight)
            else:
                out[of] += self._mlp(f"mlp.experts.{expert}", experts.mlp, read[of]) * weight
        if experts.latent:
            out = self._linear("mlp.latent_out_proj", out)
        if experts.shared is not None:
            shared = self._mlp("mlp.shared_experts", experts.shared, normed)
            if experts.shared_gate:
                shared = shared * _sigmoid(self._linear("mlp.shared_expert_gate", normed))
            out = out + shared
        return out

    def _choose(self, experts: ExpertsConfig, logits: Doubles) -> list[tuple[int, float]]:
        router = experts.router
        if router.scores == "sigmoid":
            scores = _sigmoid(logits)
        elif router.scores == "softmax":
            scores = _softmax(logits)
        else:
            scores = logits
        ranked = scores + self._tensor("mlp.router.correction") if router.correction else scores
        if router.groups > 1:
            groups = np.sort(ranked.reshape(router.groups, -1), 1)
            best = groups[:, -1] if router.group_scores == "max" else groups[:, -2:].sum(1)
            used = np.argsort(-best, kind="stable")[: router.used_groups]
            in_group = np.repeat(np.isin(np.arange(router.groups), used), experts.count // router.groups)
            ranked = np.where(in_group, ranked, -np.inf)
        chosen = np.argsort(-ranked, kind="stable")[: experts.used]
        if router.scores == "softmax_of_used":
            weights = _softmax(scores[chosen])
        elif router.scores == "sparsemixer":
            weights = _mixed(logits, chosen, router.jitter)
        else:
            weights = scores[chosen]
        if router.renormalise:
            weights = weights / (weights.sum() + router.sum_floor)
        weights = weights * router.scaling
        if router.expert_scale:
            weights = weights * self._tensor("mlp.router.expert_scale")[chosen]
        return [*zip(chosen.tolist(), weights.tolist(), strict=True)]


def _mixed(logits: Doubles, chosen: NDArray[Any], jitter: float) -> Doubles:
    """SparseMixer (arXiv 2409.12136), as it is used after training: an expert's weight is its share among
    those that come close to it; for the second, the first is out."""
    weights, left = [], logits.copy()
    for expert in chosen:
        best = logits[expert]
        far = (best - logits) / np.maximum(np.abs(logits), best) > 2 * jitter
        weights.append(_softmax(np.where(far, -np.inf, left))[expert])
        left[expert] = -np.inf
    return np.array(weights)


def _turn(x: Doubles, rope: RopeConfig | None, long: bool) -> Doubles:
    """``x`` (T, heads, dimensions): halves of the first ``rotary_dim`` turned by positions."""
    if rope is None:
        return x
    inv_freq, factor = frequencies(rope, long=long)
    angles = np.arange(len(x))[:, None, None] * inv_freq.astype(np.float64)
    cos, sin = np.cos(angles) * factor, np.sin(angles) * factor
    half, dim = rope.rotary_dim // 2, rope.rotary_dim
    first, second = x[..., :half], x[..., half:dim]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin, x[..., dim:]), -1)


def _activation(mlp: MlpConfig, x: Doubles) -> Doubles:
    if mlp.activation == "silu":
        return _silu(x)
    if mlp.activation == "gelu":
        return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))
    if mlp.activation == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return np.maximum(x, 0) ** (2 if mlp.activation == "relu2" else 1)


def _silu(x: Doubles) -> Doubles:
    return x * _sigmoid(x)


def _sigmoid(x: Doubles) -> Doubles:
    return 1 / (1 + np.exp(-x))


def _softmax(x: Doubles) -> Doubles:
    """Of the last dimension."""
    shares = np.exp(x - x.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)
