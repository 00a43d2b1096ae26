"""How long to keep away from peers that failed: by reason, and never for another peer's fault."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import Sequence, Set

from ...swarm.errors import (
    BusyError,
    ErrorCode,
    LocalNetworkError,
    ModelMismatchError,
    NetworkError,
    PeerError,
    PeerLateError,
    PeerMuteError,
    PeerTimeoutError,
    RemoteProtocolError,
    SwarmError,
)
from ...swarm.links.link import NotAsAnnouncedError
from ...swarm.peer_health import MAX_PEERS, PeerHealth
from ...swarm.types import NodeInfo, NodeState

DISTRUST_S = 300.0
"""Seconds of the ban of a peer that broke the protocol, or serves another model than it announced."""
UNSUITABLE_S = 60.0
"""Seconds of the ban of a peer that cannot do what we ask: as long as an announcement lives."""
SILENT_S = 8.0
"""A peer that fell silent is banned for at least this many seconds: it costs seconds each time to find that
out."""
MUTE_S = 3600.0
"""Seconds of the ban of a peer that answers PING and leaves requests without an answer. No honest peer does
so; an hour is for unforeseen reasons. A client process should pay for a mute node once."""
RETRY_S = 1.0
"""If no other peer could serve, a peer that failed is tried again after this many seconds for each failure in
a row, banned or not."""
DRAINING_S = 5.0
"""Seconds of the ban of a peer that drains. After them its announcement says so too, or that it is back."""
FIRST_BUSY_S = 0.05
"""The pause after a peer's first BUSY lasts at least this many seconds. It doubles with each BUSY in a row,
whatever the peer advises."""
LONGEST_BUSY_S = 10.0
"""A pause after BUSY lasts at most this many seconds, even if the peer asks for more."""
BUSY_JITTER = 0.25
"""This part of a pause is random, so that clients which were turned away together do not come back
together."""
NO_FAULT = frozenset(
    {
        ErrorCode.SESSION_EXPIRED,  # it only gave up a session that asked for nothing for long
        ErrorCode.UPSTREAM_LOST,  # another has gone, or the way to it
        ErrorCode.DOWNSTREAM_LOST,
        ErrorCode.JOURNAL_LOST,  # its memory is bounded
        ErrorCode.CACHE_LOST,  # and so is what it keeps of tokens that no window sees
    }
)
"""A healthy peer may say these codes too."""


def is_loss(cause: SwarmError) -> bool:
    """Whether the peer may be gone: nobody can tell until it gives a sign of life."""
    return isinstance(cause, NetworkError) and not isinstance(
        cause, LocalNetworkError | PeerLateError | PeerMuteError
    )


def is_fault(cause: SwarmError) -> bool:
    """Whether a failure speaks against the peer: not that it is busy, nor what others have done to it."""
    return not (
        isinstance(cause, BusyError | LocalNetworkError)
        or (isinstance(cause, PeerError) and cause.code in NO_FAULT | {ErrorCode.DRAINING})
    )


class Bans:
    """Turns failures of peers into bans in ``health``. ``causes``: the last failure, by peer id. Bounded: of
    more than MAX_PEERS peers those that failed longest ago are forgotten.

    A peer that was lost is kept away from beyond its ban, until it answers or announces itself anew: its old
    announcement stays in the directory for a while, and says nothing.
    """

    def __init__(self, health: PeerHealth, rng: random.Random) -> None:
        self.causes: OrderedDict[str, SwarmError] = OrderedDict()
        self._health = health
        self._random = rng
        self._busy: Counter[str] = Counter()  # by peer id, BUSY in a row
        # Where those that failed were; None: offline since.
        self._left: dict[str, tuple[str, ...] | None] = {}
        # What those that were lost announced when they were looked for first; None: not looked for yet.
        self._lost: dict[str, NodeInfo | None] = {}

    def failed(self, peer_id: str, cause: SwarmError, nodes: Sequence[NodeInfo], now: float) -> None:
        """``nodes``: the announcements that the peer was chosen from.

        Sessions that lose one link together bring the same error, which counts once.
        """
        before = self.causes.get(peer_id)
        if cause is before:
            return
        self.causes[peer_id] = cause
        self.causes.move_to_end(peer_id)
        if len(self.causes) > MAX_PEERS:
            self._forget(next(iter(self.causes)))
        match cause:
            case BusyError():
                if not (isinstance(before, BusyError) and self._health.is_banned(peer_id, now)):
                    self._busy[peer_id] += 1  # sessions that asked at the same time are one row of BUSY
                least = FIRST_BUSY_S * 2 ** min(self._busy[peer_id] - 1, 10)
                pause = min(max(cause.retry_after, least), LONGEST_BUSY_S)
                pause *= 1 + BUSY_JITTER * self._random.random()
                self._health.ban(peer_id, now, pause, cause.message)
            case ModelMismatchError() | RemoteProtocolError():
                self._health.ban(peer_id, now, DISTRUST_S, cause.message)
            case LocalNetworkError():
                pass  # this side's own daemon ended every stream
            case PeerError(code=code) if code in NO_FAULT:
                pass
            case PeerError(code=ErrorCode.DRAINING):
                self._health.ban(peer_id, now, DRAINING_S, cause.message)
            case PeerError() if not cause.retriable:
                self._health.ban(peer_id, now, UNSUITABLE_S, cause.message)
            case _:
                self._health.failed(peer_id, now, cause.message)
                if is_loss(cause):
                    self._lost[peer_id] = None
                if isinstance(cause, PeerTimeoutError) and not isinstance(cause, PeerLateError):
                    pause = MUTE_S if isinstance(cause, PeerMuteError) else SILENT_S
                    self._health.ban(peer_id, now, pause, cause.message)
        if isinstance(cause, PeerMuteError):
            return  # that it moves, or was restarted, does not excuse it
        for node in nodes:
            if node.peer_id == peer_id:
                self._left[peer_id] = node.dial_maddrs
                self.look([node], now)  # it may say something else than when it was chosen

    def answered(self, peer_id: str) -> None:
        """It is there."""
        self._lost.pop(peer_id, None)

    def succeeded(self, peer_id: str) -> None:
        """It answered rightly: all is forgiven."""
        self._health.succeeded(peer_id)
        self._forget(peer_id)

    def look(self, nodes: Sequence[NodeInfo], now: float) -> None:
        """Fresh announcements: peers that failed and were started anew since may be tried again at once.
        They have other addresses, or said in between that they were leaving or joining. So may those that
        do not announce any more what they turned out not to serve."""
        announced = {node.peer_id: node for node in nodes}
        for peer_id, before in list(self._lost.items()):
            if (node := announced.get(peer_id)) is None:
                continue
            if before is None:
                self._lost[peer_id] = node
            elif _is_newer(node, before):
                del self._lost[peer_id]
        for peer_id, maddrs in list(self._left.items()):
            if not self._health.is_banned(peer_id, now):
                del self._left[peer_id]
            elif (node := announced.get(peer_id)) is None:
                continue  # a read may miss some
            elif node.state is not NodeState.ONLINE:
                self._left[peer_id] = None
            elif self._says_otherwise(node) or (
                node.dial_maddrs != maddrs and not self._is_hopeless(peer_id)
            ):
                del self._left[peer_id]
                self._lost.pop(peer_id, None)
                self._health.release(peer_id, now)

    @property
    def lost(self) -> Set[str]:
        """The peers that were lost, and gave no sign of life since."""
        return self._lost.keys()

    def banned(self, now: float) -> frozenset[str]:
        """The peers to keep away from."""
        return self._health.banned(now) | self.lost

    def hopeless(self, now: float) -> frozenset[str]:
        """Those of them that it makes no sense to try, even where no other is left."""
        return frozenset(filter(self._is_hopeless, self._health.banned(now))) | self.lost

    def barred(self, now: float) -> frozenset[str]:
        """Those of them to leave alone even if no route is left without them: hopeless ones, and those that
        were tried a moment ago."""
        records = self._health.statistics()
        tried = frozenset(
            peer_id
            for peer_id in self._health.banned(now)
            if self._is_hopeless(peer_id)
            or now - records[peer_id].last_failure < RETRY_S * max(1, records[peer_id].failures)
        )
        return tried | self.lost

    def _forget(self, peer_id: str) -> None:
        self.causes.pop(peer_id, None)
        self._busy.pop(peer_id, None)
        self._left.pop(peer_id, None)
        self._lost.pop(peer_id, None)

    def _says_otherwise(self, node: NodeInfo) -> bool:
        """Whether its announcement no longer says what it turned out not to serve."""
        cause = self.causes.get(node.peer_id)
        return isinstance(cause, NotAsAnnouncedError) and not cause.contradicts(node)

    def _is_hopeless(self, peer_id: str) -> bool:
        match self.causes.get(peer_id):
            case BusyError() | ModelMismatchError() | RemoteProtocolError():
                return True
            case PeerError() as cause:
                return not cause.retriable and cause.code is not ErrorCode.DRAINING
        return False


def _is_newer(node: NodeInfo, before: NodeInfo) -> bool:
    """Whether it announced itself since. A directory in memory has no records, but gives each once."""
    if node.record is None or before.record is None:
        return node is not before
    return node.record.expiration > before.record.expiration
