"""One open session on this node: its step numbers, its lane in the engine, its last answer."""

from __future__ import annotations

from ..swarm.messages import ErrorMessage, Result
from ..swarm.session import HopSession
from .jobs import Lane

MAX_KEPT_ANSWER = 256 * 1024
"""Bytes of the last result kept for a client that asks again: any decode step, not a whole prompt's rows."""


class NodeSession:
    """Owned by the event loop. ``inflight``: steps given to the engine and not answered yet."""

    __slots__ = ("hop", "inflight", "key", "lane", "last_answer", "last_used", "session")

    def __init__(self, session: bytes, key: int, hop: HopSession, lane: Lane, now: float) -> None:
        self.session = session
        self.key = key  # of its reservation: unlike the client's id, never used twice
        self.hop = hop
        self.lane = lane
        self.inflight = 0
        self.last_used = now
        self.last_answer: Result | ErrorMessage | None = None

    def keep(self, answer: Result | ErrorMessage) -> None:
        small = isinstance(answer, ErrorMessage) or len(answer.payload) <= MAX_KEPT_ANSWER
        self.last_answer = answer if small else None
