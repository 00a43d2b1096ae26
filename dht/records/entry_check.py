"""What a DHT entry must be before it is stored or used: signed by its owner, for its place and time.

The same check serves the nodes of the DHT and peers that get entries from others: an entry that passes was
made by its owner, no matter which peer brought it.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...swarm.errors import NotAdmittedError, RemoteProtocolError
from ...swarm.fairness.recent import RecentMap
from ...swarm.membership.membership import Membership
from ..directory import TTL_S
from .envelope import Sealed, is_signed, unseal

MAX_CLOCK_SKEW_S = 3.0
"""A node's clock may differ from ours by this many seconds, which is also hivemind's bound."""

EXPIRATION_SLACK_S = 2 * MAX_CLOCK_SKEW_S
"""Seconds by which an expiration may be too late: two nodes may each differ by MAX_CLOCK_SKEW_S from a third,
in opposite directions."""

_REMEMBERED = 16_384  # signatures found good: a reader gets each entry from several replicas, again and again


@dataclass(frozen=True, slots=True)
class Entry:
    """A signed entry. ``expiration``: seconds of Unix time. ``value``: as it lies in the DHT, ``body`` and
    signature of it."""

    owner: str
    expiration: float
    body: bytes
    value: bytes


class EntryCheck:
    """Accepts an entry only under its signer's own subkey, unaltered, of bounded size and lifetime.

    An expired entry is not refused here: the DHT drops it, and refusing it would discard its dictionary.
    ``clock``: Unix time in seconds. ``membership``: of the swarm whose members alone may own entries.
    """

    def __init__(
        self, ttl: float = TTL_S, clock: Callable[[], float] = time.time, membership: Membership | None = None
    ) -> None:
        self._membership = membership
        self._max_life = ttl + EXPIRATION_SLACK_S
        self._clock = clock
        self._good: RecentMap[bytes, None] = RecentMap(_REMEMBERED)

    def check(self, key: bytes, subkey: bytes, expiration: float, value: bytes) -> Entry:
        """The entry under a key's hash and its owner's subkey (msgpack). Raises RemoteProtocolError."""
        sealed = unseal(key, subkey, expiration, value)
        owner, body = sealed.owner, sealed.body
        life = expiration - self._clock()
        if life > self._max_life:
            raise RemoteProtocolError(f"{owner} asked to keep an entry for {life:.0f} s, which is too long")
        self._check_member(sealed, expiration)
        entry = Entry(owner, expiration, body, value)
        digest = hashlib.sha256(
            b"".join((key, owner.encode(), expiration.hex().encode(), b"/", value))
        ).digest()
        if digest in self._good:
            self._good[digest] = None
            return entry
        if not is_signed(key, expiration, sealed):
            raise RemoteProtocolError(f"an entry of {owner} without a valid signature")
        self._good[digest] = None
        return entry

    def _check_member(self, sealed: Sealed, expiration: float) -> None:
        # A member until the entry expires: what was stored never turns bad, which would spoil its dictionary.
        if (self._membership is None) is not (sealed.credential is None):
            raise RemoteProtocolError(f"an entry of {sealed.owner} that belongs to another swarm")
        if self._membership is not None and sealed.credential is not None:
            try:
                self._membership.check(sealed.owner, sealed.credential, expiration)
            except NotAdmittedError as error:
                raise RemoteProtocolError(error.message) from None


@dataclass(frozen=True, slots=True)
class ClockReading:
    """How far a peer's clock is ahead of ours, in seconds, known to ± ``uncertainty``."""

    ahead: float
    uncertainty: float

    @property
    def skewed(self) -> bool:
        return abs(self.ahead) - self.uncertainty > MAX_CLOCK_SKEW_S


def clock_problem(readings: Mapping[str, ClockReading]) -> str | None:
    """A sentence for people if every peer (by id) that was read disagrees with our clock, else None."""
    if not readings or not all(reading.skewed for reading in readings.values()):
        return None
    ahead = statistics.median(reading.ahead for reading in readings.values())
    whom = f"peer {next(iter(readings))}" if len(readings) == 1 else f"all {len(readings)} initial peers"
    how = "behind" if ahead > 0 else "ahead of"
    return (
        f"this computer's clock is {abs(ahead):.1f} s {how} that of {whom}; "
        f"announcements need clocks within {MAX_CLOCK_SKEW_S:.0f} s of each other"
    )
