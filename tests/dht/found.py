"""What a DHT of a test finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from swarm_node.dht.records.entry_check import Entry


@dataclass
class FoundEntries:
    """``is_alone``: only one node was asked."""

    entries: Mapping[str, Mapping[str, Entry]]
    is_alone: bool = False
