"""Blocks that keep a state as most families name them: what rows are put together from."""

from __future__ import annotations

from ...swarm.errors import UnsupportedModelError
from ..formats.values.bounds import MAX_WIDTH
from .names import Stored
from .pieces import activation_of
from .settings import FULL, Settings

GGUF_A_LOG = Stored("ssm_a", log=True)


def check_silu(settings: Settings, key: str = "hidden_act") -> None:
    """UnsupportedModelError where the activation that ``key`` says, which a recurrence has behind its
    convolution, is another than silu."""
    if activation_of(settings, key) != "silu":
        raise UnsupportedModelError(
            f"{settings.named(key)} is {settings.shown(key)}: a recurrence with another activation than silu "
            "is not supported"
        )


def kind_by_heads(settings: Settings, other: str) -> str:
    """Of a GGUF file that has no key/value heads in blocks of the kind ``other``."""
    return FULL if settings.integer("num_key_value_heads", most=MAX_WIDTH) else other
