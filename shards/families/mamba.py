"""Mamba-2 as families name it: what rows are put together from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...swarm.errors import CheckpointError
from ..formats.blocks.norm import NormConfig
from ..formats.blocks.state import MAX_TAPS, RecurrenceConfig
from ..formats.values.bounds import MAX_WIDTH, SCALES
from .names import Names, fused
from .recurrences import GGUF_A_LOG, check_silu, kind_by_heads
from .settings import FULL, LINEAR, Settings

_NO_LIMIT = (math.inf, {"__float__": "Infinity"})
"""How files write that there is none: as Python does, and as transformers 5 does."""


@dataclass(frozen=True, slots=True)
class MambaKeys:
    """What a family calls the sizes of Mamba-2, and the settings beside them. GGUF files have ``inner``."""

    heads: str = "mamba_n_heads"
    head_dim: str = "mamba_d_head"
    state: str = "mamba_d_state"
    groups: str = "mamba_n_groups"
    taps: str = "mamba_d_conv"
    conv_bias: str = "mamba_conv_bias"
    bias: str = "mamba_proj_bias"
    inner: str = "mamba_d_ssm"
    activation: str = "hidden_act"

    @property
    def gguf(self) -> dict[str, str]:
        """llama.cpp's keys of them → these."""
        return {
            "ssm.conv_kernel": self.taps,
            "ssm.inner_size": self.inner,
            "ssm.state_size": self.state,
            "ssm.time_step_rank": self.heads,
            "ssm.group_count": self.groups,
        }


def mamba(
    s: Settings, inner: int | None, norm: NormConfig | None, keys: MambaKeys = MambaKeys(), **more: Any
) -> RecurrenceConfig:
    """Mamba-2. ``inner``: values of all heads; None: those of the heads. ``norm``: of its output. ``more``:
    fields that the family has otherwise."""
    check_silu(s, keys.activation)
    heads, groups = (s.integer(key, least=1, most=MAX_WIDTH) for key in (keys.heads, keys.groups))
    if s.is_gguf:
        inner = s.integer(keys.inner, least=1, most=MAX_WIDTH)
    is_auto = s.is_gguf or s.is_null(keys.head_dim) or s.value(keys.head_dim) == "auto"
    if inner is not None and is_auto:
        head_dim = inner // heads
    else:
        head_dim = s.integer(keys.head_dim, least=1, most=MAX_WIDTH)
    if inner is not None and heads * head_dim != inner:
        raise CheckpointError(
            f"{s.named(keys.heads)} is {heads}: that many heads of {head_dim} are not Mamba's {inner} values"
        )
    bias = s.flag(keys.bias)
    return RecurrenceConfig(
        heads=heads,
        key_heads=groups,
        key_dim=s.integer(keys.state, least=1, most=MAX_WIDTH),
        value_dim=head_dim,
        taps=s.integer(keys.taps, least=1, most=MAX_TAPS),
        rule="plain",
        norm=norm,
        norm_groups=groups,
        steps=_steps(s),
        skip=True,
        conv_bias=s.flag(keys.conv_bias),
        bias=bias,
        **{"gate_first": True, "out_bias": bias, **more},
    )


def _steps(s: Settings) -> tuple[float, float]:
    """``time_step_limit``: what a step is at least and at most."""
    key = "time_step_limit"
    given = [0.0, math.inf] if s.is_null(key) else s.value(key)
    if isinstance(given, list | tuple) and len(given) == 2:
        least, most = (math.inf if each in _NO_LIMIT else each for each in given)
        if {type(least), type(most)} <= {int, float} and 0 <= least <= min(most, SCALES[1]):
            return float(least), float(most) if most < SCALES[1] else math.inf
    raise s.wrong(key, "two numbers from 0 on, the smaller one first")


def mixer_kind(s: Settings) -> str:
    """FULL or LINEAR: by ``layer_types``, in GGUF files by whether the block has heads of keys."""
    return kind_by_heads(s, LINEAR) if s.is_gguf else s.layer_type(LINEAR, (FULL, LINEAR))


_Z_X_B_C_DT = ("state.gate_proj", "state.v_proj", "state.k_proj", "state.q_proj", "state.decay_proj")
_X_B_C = ("state.v_conv", "state.k_conv", "state.q_conv")


def mamba_names(begin: str) -> Names:
    """Of HuggingFace files, where the names of a mixer begin with ``begin``."""
    return {
        **fused(f"{begin}.in_proj", *_Z_X_B_C_DT),
        **fused(f"{begin}.conv1d", *_X_B_C),
        "state.a_log": f"{begin}.A_log",
        "state.decay_bias": f"{begin}.dt_bias",
        "state.skip": f"{begin}.D",
        "state.norm": f"{begin}.norm",
        "state.out_proj": f"{begin}.out_proj",
    }


GGUF_MAMBA: Names = {
    **fused("ssm_in", *_Z_X_B_C_DT),
    **fused("ssm_conv1d", *_X_B_C),
    "state.a_log": GGUF_A_LOG,
    "state.decay_bias": "ssm_dt.bias",
    "state.skip": "ssm_d",
    "state.norm": "ssm_norm",
    "state.out_proj": "ssm_out",
}
