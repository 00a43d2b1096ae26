"""What one check has found, in words that may be told to anybody, and details that may not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Health(StrEnum):
    """UNKNOWN: it could not be found out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """``check``: its name, a word or two. ``says``: what is so, without an address, path, key or name of a
    person or peer: that is what ``swarm-node doctor --share`` tells. ``advice``: what to do, with commands
    that may hold such; "" where there is nothing to do. ``details``: for whom it concerns, by name."""

    check: str
    health: Health
    says: str
    advice: str = ""
    details: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self, *, share: bool = False) -> dict[str, object]:
        public: dict[str, object] = {"check": self.check, "health": str(self.health), "says": self.says}
        return public if share else {**public, "advice": self.advice, "details": dict(self.details)}
