"""What one peer may take from a peer that serves pieces, and bounds on bytes a second.

Pure: every call brings ``now`` in seconds.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from ...swarm.errors import UsageError
from ...swarm.fairness.shares import Holder, ShareLimits, Shares

HOUR_S = 3600.0
MAX_PEERS = 1024
"""The use of this many peers is remembered; above it the one that was away for longest is forgotten."""


@dataclass(frozen=True, slots=True)
class ServeLimits:
    """``streams`` at once, of all peers together and of one; ``asks_per_minute`` that one peer may begin.
    While all ``streams`` are open, a peer of a lighter address group gets the place of one of the heaviest.
    ``copies_per_hour``: how often one peer may take the size of the whole model. ``manifests`` and
    ``refusals`` (GETs of what is not here) on one stream. Times in seconds: for the first message, without a
    request, and for a peer to read what it asked for.
    """

    streams: int = 64
    streams_per_peer: int = 4
    asks_per_minute: int = 60
    copies_per_hour: float = 4.0
    manifests: int = 2
    refusals: int = 256
    hello_s: float = 10.0
    idle_s: float = 300.0
    send_s: float = 120.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} {getattr(self, name)} must be more than 0")


@dataclass(slots=True)
class _Upload:
    streams: int = 0
    asks: deque[float] = field(default_factory=deque)
    taken: float = 0.0
    """Bytes taken, less those that were allowed since."""
    counted_at: float = 0.0


class Uploads:
    def __init__(self, limits: ServeLimits) -> None:
        self._limits = limits
        self._uploads: OrderedDict[str, _Upload] = OrderedDict()
        self._shares = Shares(ShareLimits(limits.streams))

    @property
    def streams(self) -> int:
        return int(self._shares.held)

    def enter(self, holder: Holder, now: float) -> str:
        """Count a stream of the peer, or say which limit it exceeds and count nothing."""
        peer = holder.peer_id
        upload = self._uploads.setdefault(peer, _Upload(counted_at=now))
        self._uploads.move_to_end(peer)
        if why := self._refusal(upload, now):
            return why
        if self._shares.take(holder):
            return f"{self._limits.streams} streams are open"
        upload.asks.append(now)
        upload.streams += 1
        self._forget()
        return ""

    def _refusal(self, upload: _Upload, now: float) -> str:
        """Which limit of its own the peer is at."""
        limits = self._limits
        while upload.asks and now - upload.asks[0] > 60.0:
            upload.asks.popleft()
        if len(upload.asks) >= limits.asks_per_minute:
            return f"a peer may ask {limits.asks_per_minute} times a minute"
        if upload.streams >= limits.streams_per_peer:
            return f"{limits.streams_per_peer} streams of yours are open"
        return ""

    def leave(self, holder: Holder) -> None:
        self._uploads[holder.peer_id].streams -= 1
        self._shares.give_back(holder)

    def loser(self, holder: Holder, now: float) -> Holder | None:
        """The peer whose stream ends so that this peer can have one, while too many are open."""
        upload = self._uploads.get(holder.peer_id)
        if self.streams < self._limits.streams or (upload is not None and self._refusal(upload, now)):
            return None
        return self._shares.loser(holder)

    def take(self, peer: str, n_bytes: int, model_bytes: int, now: float) -> bool:
        """Count bytes that the peer wants; False, and nothing counted, if it took too many lately."""
        upload = self._uploads[peer]
        most = self._limits.copies_per_hour * model_bytes
        upload.taken = max(0.0, upload.taken - (now - upload.counted_at) * most / HOUR_S)
        upload.counted_at = now
        if upload.taken + n_bytes > most:
            return False
        upload.taken += n_bytes
        return True

    def _forget(self) -> None:
        for peer in list(self._uploads):
            if len(self._uploads) <= MAX_PEERS:
                return
            if not self._uploads[peer].streams:
                del self._uploads[peer]


BURST_S = 0.25
"""What was not used in this many seconds may be used at once."""


class RateLimit:
    """``bytes_per_s`` None: no bound."""

    def __init__(self, bytes_per_s: float | None = None) -> None:
        if bytes_per_s is not None and not bytes_per_s > 0:
            raise UsageError(f"a bandwidth of {bytes_per_s} bytes a second moves nothing")
        self.bytes_per_s = bytes_per_s
        self._free_at = 0.0

    def delay(self, n_bytes: int, now: float) -> float:
        """Count ``n_bytes``; how many seconds to wait before they may go."""
        if self.bytes_per_s is None:
            return 0.0
        begin = max(self._free_at, now - BURST_S)
        self._free_at = begin + n_bytes / self.bytes_per_s
        return max(0.0, begin - now)
