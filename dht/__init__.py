"""Who serves what: signed, expiring announcements and the directories that hold them.

``Directory`` is what clients and nodes program against. ``kademlia`` keeps it in a DHT over the node's own
transport, ``delegated`` asks nodes that do; ``MemoryDirectory`` is for tests and simulations.
"""

from __future__ import annotations

from .directory import REFRESH_S, TTL_S, Directory
from .memory import MemoryDirectory, MemoryStore

__all__ = ["REFRESH_S", "TTL_S", "Directory", "MemoryDirectory", "MemoryStore"]
