"""How many decoding sessions one batch takes: all that wait where the node is busy, half of those that decode
where it is not.

Sessions that were computed together come back together: their steps go on in one frame, their clients answer
in one turn. On a route of several nodes they would end up as one convoy, in which one node computes while all
others wait for it. In two groups, one is computed here while the other is computed elsewhere. So a node that
has time left does not compute more than half at once; one that has none saves time by larger batches.
"""

from __future__ import annotations

IDLE = 0.2
"""A node that waits for steps for this part of its time has time left. (Simulated with measured costs, 16
clients of one stream over two nodes: 1.7 times the tokens; where there was no convoy, as many as before.)"""
NEWEST_WEIGHT = 0.1
"""The weight of the newest batch in the moving average of that part."""
DECODE_LINGERS_NS = 250_000_000
"""After a step its session counts as decoding for this many nanoseconds: a token's way through a wide-area
route."""


class Cohorts:
    """Times are nanoseconds of one clock, sessions are any ints."""

    def __init__(self) -> None:
        self._decoded: dict[int, int] = {}  # when, by session; the oldest first
        self._idle = 0.0
        self._ended = 0

    def most(self, now: int) -> int | None:
        """How many sessions may decode in a batch that begins now; None: any number."""
        if self._idle <= IDLE:
            return None
        while self._decoded and now - next(iter(self._decoded.values())) > DECODE_LINGERS_NS:
            del self._decoded[next(iter(self._decoded))]
        return max(1, -(-len(self._decoded) // 2)) if self._decoded else None

    def decodes(self, session: int, now: int) -> None:
        """It is in a batch that begins now."""
        self._decoded.pop(session, None)
        self._decoded[session] = now

    def computed(self, began: int, ended: int) -> None:
        """A batch was computed."""
        idle = began - self._ended if self._ended else 0
        self._ended = ended
        self._idle += NEWEST_WEIGHT * (idle / max(1, idle + ended - began) - self._idle)
