"""Other processes that announce themselves under our identity: its file was copied to another machine.

Only entries that the identity has signed are looked at, so a stranger cannot fake one. Pure: the caller
brings the entries and the time.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from ..swarm.fairness.recent import RecentMap
from ..swarm.types import Incarnation, NodeInfo, NodeState

LATER_S = 10.0
"""An entry that was signed this many seconds after our first announcement is not of an earlier process. A
predecessor's entries are older than we are, and clocks may differ by twice the 3 s that keepers allow."""
_REMEMBERED = 16


@dataclass(frozen=True, slots=True)
class Namesake:
    """Another process of our identity. ``incarnation``: None while all that is known is that it answers."""

    maddrs: tuple[str, ...]
    incarnation: Incarnation | None = None


class Namesakes:
    """``ttl``: seconds that an entry lives after it was signed. All times are seconds of Unix time."""

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._nonce = secrets.token_hex(8)
        self._since: float | None = None
        self._seen: RecentMap[str, tuple[float, NodeInfo]] = RecentMap(_REMEMBERED)
        self._met: RecentMap[str, None] = RecentMap(_REMEMBERED)
        self._silent: RecentMap[tuple[str, ...], float] = RecentMap(_REMEMBERED)  # until when it counts

    @property
    def own(self) -> Incarnation | None:
        """This process; None before the directory has taken an announcement: until then our clock may be
        wrong."""
        return None if self._since is None else Incarnation(self._since, self._nonce)

    def mark(self, now: float) -> Incarnation:
        """What to announce now."""
        return Incarnation(now if self._since is None else self._since, self._nonce)

    def announced(self, mark: Incarnation) -> None:
        """The directory has taken the announcement with ``mark``."""
        if self._since is None:
            self._since = mark.since

    def saw(self, info: NodeInfo, expiration: float) -> None:
        """Take an entry of our own identity, of this or another process."""
        other = info.incarnation
        if other is None or other.nonce == self._nonce:
            return
        before = self._seen.get(other.nonce)
        if before is None or before[0] < expiration:
            self._seen[other.nonce] = expiration, info

    def met(self, info: NodeInfo, expiration: float) -> None:
        """The same for a process that has just answered elsewhere: it is not a predecessor, however old its
        entry is."""
        if info.incarnation is not None:
            self._met[info.incarnation.nonce] = None
        self.saw(info, expiration)

    def met_silent(self, maddrs: tuple[str, ...], now: float) -> None:
        """One has just answered at these addresses, and announces nothing yet."""
        self._silent[maddrs] = now + self._ttl

    def live(self, now: float) -> list[Namesake]:
        """The processes that run beside us, the first of them first. One that is about to end does not count:
        a successor may begin before its predecessor is gone."""
        if self._since is None:
            return []
        found = [
            info
            for nonce, (expiration, info) in self._seen.items()
            if expiration > now
            and (expiration - self._ttl > self._since + LATER_S or nonce in self._met)
            and info.state is not NodeState.DRAINING
        ]
        told = [Namesake(info.maddrs, info.incarnation) for info in found]
        silent = [Namesake(maddrs) for maddrs, until in self._silent.items() if until > now]
        return sorted(told, key=lambda each: each.incarnation or self.mark(now)) + silent
