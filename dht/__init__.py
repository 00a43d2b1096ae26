"""Who serves what: signed, expiring announcements and the directories that hold them.

``Directory`` is what clients and nodes program against. ``HivemindDirectory`` keeps it in a Kademlia DHT over
the node's own transport; ``MemoryDirectory`` in this process, for tests and simulations.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .directory import REFRESH_S, TTL_S, Directory
from .memory import MemoryDirectory, MemoryStore

if TYPE_CHECKING:
    from .kademlia.directory import HivemindDirectory as HivemindDirectory

_LAZY = {"HivemindDirectory": ".kademlia.directory"}
"""Names whose modules import hivemind, which costs a second and 280 MB: loaded when first used."""

__all__ = [
    "REFRESH_S",
    "TTL_S",
    "Directory",
    "HivemindDirectory",
    "MemoryDirectory",
    "MemoryStore",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)
