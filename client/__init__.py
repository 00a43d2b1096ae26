"""The client: generate text with a model that a swarm of peers serves.

    from swarm_node.client import SwarmModel, generate

Names are loaded when they are first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .async_model import AsyncSwarmModel
    from .decoding.answer import TokenEvent
    from .decoding.sampling import SamplingParams
    from .generation import Generation
    from .guided.guide import Guide
    from .hops.trace import HopTimings, Timings
    from .streams import BridgedTextStream, SyncTextStream, TextStream
    from .swarm_model import SwarmModel, generate

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
    "Guide": "guided.guide",
    "HopTimings": "hops.trace",
    "SamplingParams": "decoding.sampling",
    "SwarmModel": "swarm_model",
    "SyncTextStream": "streams",
    "TextStream": "streams",
    "Timings": "hops.trace",
    "TokenEvent": "decoding.answer",
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
