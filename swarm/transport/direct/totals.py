"""What all connections together may hold and cost. Beyond it one ends: the one that has most, of the address
group that has most."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ...errors import StreamClosedError
from ...fairness.buckets import Bucket
from .connection import YamuxConnection
from .crowds import heaviest

MAX_UNREAD_BYTES = 128 * 1024 * 1024
"""All connections together may hold at most this many unread bytes."""
MAX_UNSENT_BYTES = 256 * 1024 * 1024
"""And this many bytes that wait to be sent, to peers that do not take them."""
TOIL_PER_S, TOIL_AT_ONCE = 20_000.0, 60_000.0
"""What they may make us do for little, as ``connection.TOIL_PER_S``: about 5 % of a core."""


class Totals:
    """Counted when a connection says that it holds or costs much. ``connections``: all that there are."""

    def __init__(self, connections: Callable[[], list[YamuxConnection]]) -> None:
        self._connections = connections
        self._clock = asyncio.get_running_loop().time
        self._toil = Bucket(TOIL_PER_S, TOIL_AT_ONCE, self._clock())

    def unread(self) -> None:
        """Some connection holds many unread bytes."""
        if sum(each.unread for each in self._connections()) > MAX_UNREAD_BYTES:
            self._end(lambda each: each.unread, "too much of what the peer sent waits to be read")

    def unsent(self) -> None:
        """Some connection does not take what is sent."""
        if sum(each.unsent for each in self._connections()) > MAX_UNSENT_BYTES:
            self._end(lambda each: each.unsent, "the peer takes too little of what is sent to it")

    def toil(self, amount: int) -> None:
        """Some connection makes us do ``amount`` more for little."""
        if self._toil.take(amount, self._clock()):
            self._end(lambda each: each.toil, "the peer sends too many frames that carry nothing")

    def _end(self, weight: Callable[[YamuxConnection], float], why: str) -> None:
        if connections := self._connections():
            heaviest(connections, weight).abort(StreamClosedError(why))
