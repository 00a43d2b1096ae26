"""Blocks that keep a state, and blocks of one part alone, with made-up weights: see ``block_cases``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from swarm_node.shards.formats.blocks.block import BlockConfig
from swarm_node.shards.formats.blocks.mlp import MlpConfig
from swarm_node.shards.formats.blocks.state import RecurrenceConfig, ShortConvConfig
from tests.shards.models.block_cases import (
    HIDDEN,
    INNER,
    OFFSET,
    PLAIN,
    RMS,
    SOFTMAX,
    attention,
    block,
    block_configs,
    experts,
    sparse,
)

MOST = float("inf")


def delta(**changes: Any) -> RecurrenceConfig:
    """Gated DeltaNet: four heads of 16 by 24, two of keys."""
    plain = RecurrenceConfig(4, 2, 16, 24, 4, "delta", RMS, norm_groups=4, norm_shared=True)
    return replace(plain, **changes)


def channels(**changes: Any) -> RecurrenceConfig:
    """KDA: a decay for each channel of a key, projections of a rank."""
    plain = delta(key_heads=4, value_dim=16, gate="sigmoid", gate_rank=12, decay="channel", decay_rank=8)
    return replace(plain, **changes)


def mamba(**changes: Any) -> RecurrenceConfig:
    """Mamba-2: six heads of 16 by 8, of two groups."""
    plain = RecurrenceConfig(
        *(6, 2, 16, 8, 4, "plain", RMS), norm_groups=2, gate_first=True, skip=True, conv_bias=True
    )
    return replace(plain, **changes)


def kept(state: RecurrenceConfig | ShortConvConfig, **changes: Any) -> BlockConfig:
    """A state in the place of attention."""
    return block(**{"attention": None, "state": state, **changes})


def alone(mixer: BlockConfig) -> BlockConfig:
    """Without its MLP."""
    return replace(mixer, mlp=None, experts=None, mlp_norm=None)


MLP_ALONE = block(attention=None, norm=None, mlp=MlpConfig(INNER, "relu2", gated=False))
EXPERTS_ALONE = replace(sparse(SOFTMAX, shared=MlpConfig(48)), attention=None, norm=None)
GATED = block(attention(gate="channel"), norm=OFFSET, mlp_norm=OFFSET)

STATES: dict[str, tuple[BlockConfig, ...]] = {
    # the delta rule
    "delta": (kept(delta()),) * 2,
    "delta, a key a head": (kept(delta(key_heads=4, norm=OFFSET)),),
    "delta, one key": (kept(delta(key_heads=1)),),
    "delta, tiled": (kept(delta(tiled=True)),),
    "delta, beta to 2": (kept(delta(beta_scale=2.0)),),
    "delta, biases": (kept(delta(conv_bias=True, bias=True, out_bias=True)),),
    "delta, ranks": (kept(delta(gate_rank=5, decay_rank=3)),),
    "delta, gate first": (kept(delta(gate_first=True, gate="sigmoid", norm_shared=False)),),
    "delta, one norm": (kept(delta(norm_shared=False, norm_groups=1)),),
    "delta, norm without weights": (kept(delta(norm=PLAIN)),),
    "delta, no norm": (kept(delta(norm=None)),),
    "delta, factors": (kept(delta(factors=(0.5, 2.0, 0.7, 1.5, 3.0))),),
    "delta, two taps": (kept(delta(taps=2)),),
    "delta, one tap": (kept(delta(taps=1)),),
    "channels": (kept(channels()),) * 2,
    "channels, no ranks": (kept(channels(key_heads=2, gate_rank=0, decay_rank=0, bias=True)),),
    # the plain rule
    "mamba": (kept(mamba()),) * 2,
    "mamba, limited steps": (kept(mamba(steps=(0.03, 0.06))),),
    "mamba, gate after": (kept(mamba(gate_first=False, norm_groups=1)),),
    "mamba, shared norm": (kept(mamba(norm_groups=6, norm_shared=True)),),
    "mamba, no norm": (kept(mamba(norm=None, skip=False)),),
    "mamba, tiled": (kept(mamba(tiled=True)),),
    "mamba, a key a head": (kept(mamba(key_heads=6, conv_bias=False)),),
    "mamba, biases": (kept(mamba(bias=True, out_bias=True)),),
    "mamba, ranks": (kept(mamba(gate_rank=5)),),
    "mamba, factors": (kept(mamba(factors=(0.5, 2.0, 0.7, 1.5, 3.0), taps=2)),),
    # short convolutions
    "short convolution": (kept(ShortConvConfig(HIDDEN, 3)),) * 2,
    "short convolution, biases": (kept(ShortConvConfig(40, 2, bias=True)),),
    # both mixers, one part alone, factors
    "attention beside mamba": (
        block(
            attention(),
            state=mamba(),
            mlp=MlpConfig(INNER, gate_factor=0.3),
            attention_factor=0.5,
            state_factor=1.5,
            mlp_factor=0.7,
        ),
    )
    * 2,
    "attention beside a short convolution": (
        block(state=ShortConvConfig(48, 4), attention_out_norm=RMS, mlp_out_norm=RMS),
    ),
    "factors": (block(attention_factor=0.4, mlp_factor=2.5, mlp=MlpConfig(INNER, gate_factor=0.5)),),
    "one part alone": (alone(block()), MLP_ALONE, alone(kept(delta())), EXPERTS_ALONE),
    "parallel": (kept(mamba(), parallel=True, mlp_norm=None), kept(delta(), parallel=True)),
    "scaled": (kept(mamba(), residual_multiplier=0.22, mlp=None, experts=experts(SOFTMAX), scalar=True),),
    # more columns than a CPU's registers hold, and some that are no whole vector
    "delta, wide heads": (kept(delta(heads=2, norm_groups=2, key_dim=7, value_dim=150)),),
    "channels, wide heads": (kept(channels(heads=2, key_heads=2, norm_groups=2, value_dim=128)),),
    "mamba, wide heads": (kept(mamba(heads=2, key_dim=5, value_dim=90)),),
    # as models have them
    "qwen 3.5": (*(kept(delta(), norm=OFFSET, mlp_norm=OFFSET),) * 3, GATED),
    "nemotron": (alone(kept(mamba())), MLP_ALONE, alone(block(attention(rope=None))), EXPERTS_ALONE),
    "different states": (
        kept(channels()),
        kept(ShortConvConfig(HIDDEN, 3)),
        kept(delta()),
        block(attention(window=9)),
    ),
}
"""Blocks that keep a state, and those whose parts may be missing or have factors."""


@st.composite
def recurrences(draw: st.DrawFn) -> RecurrenceConfig:
    rule = draw(st.sampled_from(["delta", "plain"]))
    key_heads, served = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 3]))
    heads, value_dim = key_heads * served, draw(st.sampled_from([4, 8, 20]))
    norm_shared = draw(st.booleans())
    groups = heads if norm_shared else draw(st.sampled_from([1, key_heads, heads]))
    of_rule: dict[str, Any] = {
        "steps": draw(st.sampled_from([(0.0, MOST), (0.02, 0.1)])),
        "skip": draw(st.booleans()),
    }
    if rule == "delta":
        of_rule = {
            "decay": draw(st.sampled_from(["head", "channel"])),
            "decay_rank": draw(st.sampled_from([0, 5])),
            "beta_scale": draw(st.sampled_from([1.0, 2.0])),
        }
    return RecurrenceConfig(
        heads,
        key_heads,
        key_dim=draw(st.sampled_from([4, 16, 20])),
        value_dim=value_dim,
        taps=draw(st.integers(1, 4)),
        rule=rule,
        norm=draw(st.sampled_from([None, RMS, PLAIN, OFFSET])),
        norm_groups=groups,
        tiled=draw(st.booleans()),
        norm_shared=norm_shared,
        gate=draw(st.sampled_from(["silu", "sigmoid"])),
        gate_first=draw(st.booleans()),
        gate_rank=draw(st.sampled_from([0, 6])),
        conv_bias=draw(st.booleans()),
        bias=draw(st.booleans()),
        out_bias=draw(st.booleans()),
        factors=draw(st.sampled_from([(1.0,) * 5, (0.5, 2.0, 0.7, 1.5, 3.0)])),
        **of_rule,
    )


@st.composite
def short_convs(draw: st.DrawFn) -> ShortConvConfig:
    return ShortConvConfig(draw(st.sampled_from([24, HIDDEN])), draw(st.integers(1, 4)), draw(st.booleans()))


@st.composite
def blocks_with_states(draw: st.DrawFn) -> BlockConfig:
    """Any block that keeps a state, beside attention or without, and with an MLP or none."""
    changed = replace(draw(block_configs()), state=draw(recurrences() | short_convs()))
    if draw(st.integers(0, 2)):
        changed = replace(changed, attention=None)
    if draw(st.integers(0, 3)) == 0:
        changed = replace(changed, mlp=None, experts=None, parallel=False)
    factors = ("attention_factor", "state_factor", "mlp_factor")
    return replace(changed, **{name: draw(st.sampled_from([1.0, 0.6])) for name in factors})
