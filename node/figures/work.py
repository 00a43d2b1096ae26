"""What a node has done since it started, over all the spans that it has served. Counted in the event loop,
where each thing happens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from ...swarm.fairness.recent import RecentMap
from ...swarm.protocol.messages import Busy, ErrorMessage, Message, Refused
from ...swarm.runtime.histogram import Distribution, Histogram
from ...swarm.transport.direct_maddrs import Way

QUEUE_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128)
MAX_PEERS = 65_536
"""Peers that are remembered as served. One that comes back after so many others counts once more."""

REFUSALS: tuple[type[Message], ...] = (ErrorMessage, Refused, Busy)
BUSY = "busy"
"""The code of BUSY, which has none."""


class SessionEnd(StrEnum):
    """Why a session is over."""

    CLOSED = "closed"
    """Its client closed it."""
    IDLE = "idle"
    RECLAIMED = "reclaimed"
    """Another peer needed its room."""
    STREAM_ENDED = "stream_ended"
    """Its client's stream broke, or was ended for what it sent."""
    NODE_LEFT = "node_left"
    """This node drained, or gave its blocks up."""


class StreamSide(StrEnum):
    """Whose streams bytes went over."""

    INCOMING = "incoming"
    """Streams that clients, and the hops before this one, opened."""
    NEXT_HOP = "next_hop"
    """Streams that this node opened to the hops after it."""


@dataclass(frozen=True, slots=True)
class Bytes:
    received: int = 0
    sent: int = 0


Link = tuple[StreamSide, Way]
"""A class of links: bytes are counted by it and not by peer, as peers are many."""


class CountedStream(Protocol):
    """``traffic``: what went over it so far."""

    @property
    def link_class(self) -> Link: ...

    @property
    def traffic(self) -> Bytes: ...


@dataclass(frozen=True, slots=True)
class WorkTotals:
    """``WorkDone`` at one moment. ``sessions_ended``: by SessionEnd. ``refused``: what peers were told in
    place of what they asked for, by code. ``replays``: of journals, which repairs of routes ask for;
    ``attaches``: sessions that got another hop before them, for the same reason. ``last_load_s``: seconds
    that the last of ``loads`` took."""

    prefill_tokens: int
    decode_tokens: int
    sessions_opened: int
    sessions_ended: Mapping[str, int]
    peers_served: int
    refused: Mapping[str, int]
    replays: int
    attaches: int
    queue_wait_s: Distribution
    batch_sessions: Distribution
    traffic: Mapping[Link, Bytes]
    loads: int
    last_load_s: float

    @property
    def tokens(self) -> int:
        return self.prefill_tokens + self.decode_tokens


class WorkDone:
    """One a node. Each method counts one thing."""

    def __init__(self) -> None:
        self._prefill_tokens = 0
        self._decode_tokens = 0
        self._opened = 0
        self._ended: Counter[str] = Counter()
        self._peers: RecentMap[str, None] = RecentMap(MAX_PEERS)
        self._peers_served = 0
        self._refused: Counter[str] = Counter()
        self._replays = 0
        self._attaches = 0
        self._queue_wait_s = Histogram(QUEUE_BOUNDS_S)
        self._batch_sessions = Histogram(BATCH_BOUNDS)
        self._streams: set[CountedStream] = set()  # that have not ended
        self._traffic: dict[Link, Bytes] = {}  # of those that have
        self._loads = 0
        self._last_load_s = 0.0

    def stepped(self, tokens: int, queue_s: float, *, decoding: bool) -> None:
        """A step of a session was computed, ``queue_s`` seconds of which it waited."""
        if decoding:
            self._decode_tokens += tokens
        else:
            self._prefill_tokens += tokens
        self._queue_wait_s.add(queue_s)

    def computed_batch(self, sessions: int) -> None:
        self._batch_sessions.add(sessions)

    def opened_session(self, peer_id: str) -> None:
        self._opened += 1
        self._peers_served += peer_id not in self._peers
        self._peers[peer_id] = None

    def ended_session(self, why: SessionEnd) -> None:
        self._ended[why] += 1

    def refused(self, message: Message) -> None:
        """One of REFUSALS was sent."""
        self._refused[getattr(message, "code", BUSY)] += 1

    def replayed(self) -> None:
        self._replays += 1

    def attached(self) -> None:
        self._attaches += 1

    def began_stream(self, stream: CountedStream) -> None:
        self._streams.add(stream)

    def ended_stream(self, stream: CountedStream) -> None:
        self._streams.discard(stream)
        _add(self._traffic, stream)

    def loaded_span(self, seconds: float) -> None:
        self._loads += 1
        self._last_load_s = seconds

    def totals(self) -> WorkTotals:
        traffic = dict(self._traffic)
        for stream in self._streams:
            _add(traffic, stream)
        return WorkTotals(
            prefill_tokens=self._prefill_tokens,
            decode_tokens=self._decode_tokens,
            sessions_opened=self._opened,
            sessions_ended=dict(self._ended),
            peers_served=self._peers_served,
            refused=dict(self._refused),
            replays=self._replays,
            attaches=self._attaches,
            queue_wait_s=self._queue_wait_s.totals(),
            batch_sessions=self._batch_sessions.totals(),
            traffic=traffic,
            loads=self._loads,
            last_load_s=self._last_load_s,
        )


def _add(traffic: dict[Link, Bytes], stream: CountedStream) -> None:
    known, more = traffic.get(stream.link_class, Bytes()), stream.traffic
    traffic[stream.link_class] = Bytes(known.received + more.received, known.sent + more.sent)
