"""A model that the gateway offers, as the lists of every API tell of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from ...async_model import AsyncSwarmModel


@dataclass(frozen=True, slots=True)
class Offered:
    """``id``: its name here. ``since``: seconds since the epoch."""

    id: str
    model: AsyncSwarmModel
    since: int

    @property
    def offered_at(self) -> str:
        """As RFC 3339."""
        return rfc3339(self.since)


def rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
