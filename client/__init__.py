"""The client: generate text with a model that a swarm of peers serves.

    from swarm_node.client import SwarmModel, generate

Names are loaded when they are first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .answer import TokenEvent
    from .async_model import AsyncSwarmModel
    from .generation import Generation
    from .guided import Guide
    from .sampling import SamplingParams
    from .streams import BridgedTextStream, SyncTextStream, TextStream
    from .swarm_model import SwarmModel, generate
    from .trace import HopTimings, Timings

__all__ = [
    "AsyncSwarmModel",
    "BridgedTextStream",
    "Generation",
    "Guide",
    "HopTimings",
    "SamplingParams",
    "SwarmModel",
    "SyncTextStream",
    "TextStream",
    "Timings",
    "TokenEvent",
    "generate",
]

_HOMES = {
    "AsyncSwarmModel": "async_model",
    "BridgedTextStream": "streams",
    "Generation": "generation",
    "Guide": "guided",
    "HopTimings": "trace",
    "SamplingParams": "sampling",
    "SwarmModel": "swarm_model",
    "SyncTextStream": "streams",
    "TextStream": "streams",
    "Timings": "trace",
    "TokenEvent": "answer",
    "generate": "swarm_model",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
