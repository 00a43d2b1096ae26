"""What the dashboard is made of: the figures of the process that serves it, as plain numbers and names.

Nothing here holds a text that somebody asked or was answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ...swarm.runtime.histogram import Distribution
from ...swarm.types import Hop


@dataclass(frozen=True, slots=True)
class RunningAnswer:
    """An answer that is being made. ``hops``: its route now, empty before there is one. ``tokens_per_s``:
    over the last seconds. ``waiting``: what it waits for, for people; "" while it goes on. ``repairs``: so
    far."""

    id: str
    model: str
    hops: tuple[Hop, ...] = ()
    age_s: float = 0.0
    tokens: int = 0
    tokens_per_s: float = 0.0
    waiting: str = ""
    repairs: int = 0


@dataclass(frozen=True, slots=True)
class SeenRepair:
    """A route that was repaired. ``id``: no other's. ``at``: seconds of Unix time when it was seen. ``kind``,
    ``lost`` (peer ids) and ``cause`` as in ``hops.trace.Repair``; ``seconds``: how long the answer stood
    still."""

    id: str
    at: float
    answer: str
    model: str
    kind: str
    lost: tuple[str, ...]
    cause: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Counters:
    """Of this process's answers since its start. ``failed``: those that ended with an error.
    ``first_token_s`` and ``token_s``: seconds until the first token, and for each one after it."""

    answers: int = 0
    failed: int = 0
    repairs: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    first_token_s: Distribution = field(default_factory=Distribution)
    token_s: Distribution = field(default_factory=Distribution)


@dataclass(frozen=True, slots=True)
class OwnWork:
    """What the serving node in this process has done since its start. ``tokens``: that went through its
    blocks; ``peers``: for how many peers; ``bytes_in`` and ``bytes_out``: of their streams."""

    peer_id: str
    uptime_s: float = 0.0
    prompt_tokens: int = 0
    tokens: int = 0
    peers: int = 0
    sessions: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    repairs: int = 0


class Source(Protocol):
    """The figures of the process that serves the dashboard. Every method answers at once, from memory."""

    def answers(self) -> Sequence[RunningAnswer]:
        """Those that are being made now."""

    def repairs(self) -> Sequence[SeenRepair]:
        """The last ones, oldest first; at most some dozens are kept."""

    def counters(self) -> Counters | None:
        """None in a process that makes no answers."""

    def own(self) -> OwnWork | None:
        """None in a process that serves no blocks."""


class NoFigures:
    """Of a process that neither makes answers nor serves blocks: it only looks."""

    def answers(self) -> Sequence[RunningAnswer]:
        return ()

    def repairs(self) -> Sequence[SeenRepair]:
        return ()

    def counters(self) -> Counters | None:
        return None

    def own(self) -> OwnWork | None:
        return None
