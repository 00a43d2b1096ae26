"""A transformers model whose decoder layers are the swarm: ``AutoSwarmModelForCausalLM`` (extra ``hf``).

Names are loaded when they are first used; transformers is imported then, and nowhere else in the client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...shards.models.devices import require_torch
from ...swarm.errors import UsageError
from ...swarm.runtime.extras import install_extra

if TYPE_CHECKING:
    from .cache import SwarmCache
    from .model import AutoSwarmModelForCausalLM, SwarmModelForCausalLM

__all__ = ["AutoSwarmModelForCausalLM", "SwarmCache", "SwarmModelForCausalLM"]

_HOMES = {"AutoSwarmModelForCausalLM": "model", "SwarmCache": "cache", "SwarmModelForCausalLM": "model"}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_torch(name, "Use swarm_node.client.SwarmModel, which does without")
    try:
        value = getattr(import_module(f".{home}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise UsageError(
            f"{name} needs transformers, which is not installed",
            hint=f"In the checkout: {install_extra('hf')}",
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
