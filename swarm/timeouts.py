"""How long a peer may take: pure formulas over what is known of it, for every request that waits for one.

Most silence needs no deadline. A stream keeps its order, so what a node had to say before it answers a PING
has come before the PONG. PING therefore asks about the sessions that wait (``about``), and PONG tells where
their requests are (``tells``): a node that never got what it was sent, or that has sent an answer which never
came, is mute, however busy the machines are, and is found as soon as it answers. What is left to clocks is a
node that says it works (see ``work_within_s``), and bytes on their way.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

WORK_LEAST_S = 10.0
"""A step may stand still for this many seconds at a node that has answered before. Causes are the batches of
others, swapped memory, or a core that is taken away. Busy test machines stopped for less than this."""
COLD_LEAST_S = 30.0
"""The same for a node that has not answered this session yet: weights are read from a disk and kernels are
compiled when they are first used."""
WORK_FACTOR = 8.0
"""A step may take this many times its expected time, because a node's speed was measured while it was
alone."""
DOUBT_LEAST_S = 1.5
"""A step may stand still for this many seconds before another node, if there is one, is preferred. With the
questions before it and the repair after it, a node that only pretends to work costs three seconds."""
DOUBT_FACTOR = 4.0
"""The same, in multiples of the step's expected time."""
DOUBT_QUEUE_S = 1.0
"""A queue that a node reports excuses it for at most this many seconds, if there are other nodes."""
TRANSIT_LEAST_S = 0.8
"""Rows that one hop has sent on may take this many seconds to the next: an event loop may be held up, or TCP
may send a lost packet again."""
SLOW_WAY_BYTES_PER_S = 125_000.0
"""Bytes between two hops may travel as slowly as on a line of 1 Mbit/s."""
LINE_SHARERS = 4
"""A line that a person limits is expected to be shared by at most this many peers that send much at once."""
LINE_TURN_S = 1.0
"""Seconds that a few bytes may wait for their turn on a limited line."""
LINE_OTHERS_S = 20.0
"""Seconds that rows may wait on a limited line between two hops, behind long prompts of other clients: who
waits for them does not know of those."""
DIAL_CHAIN_S = 4.0
"""Seconds that OPEN may take at a node that connects to its next hop: 3 s by the protocol, and the answer's
way."""
LEAST_RATE_BYTES_PER_S = 4096.0
"""A peer that owes an answer and sends fewer bytes a second than this counts as silent. It is a modem's
speed, too slow to serve a model."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds to wait for a peer. ``ping_after_s``: of waiting before it is asked, by PING;
    ``pong_within_s``: more of it, or two round trips and their jitter where those are longer, before it
    counts as gone. ``hedge_s``: for a hop to open before another is opened beside it. ``step_s``: for a
    step's result, whatever the node tells. ``own_loss_s``: while all peers are silent together.
    ``line_bytes_per_s``: what this side's own line is limited to."""

    dial_s: float = 6.0
    hedge_s: float = 1.2
    ping_after_s: float = 0.5
    pong_within_s: float = 0.9
    step_s: float = 300.0
    own_loss_s: float = 20.0
    line_bytes_per_s: float = inf


def work_within_s(expected_s: float, queue_s: float, *, cold: bool, most_s: float) -> float:
    """Seconds for which a peer that says it works may show no progress.

    ``expected_s``: what the work should take, by the peer's measured speed or else by what it announced;
    ``queue_s``: what steps lately waited there, as it tells. ``cold``: it has answered nothing yet.
    ``most_s`` bounds the whole.
    """
    least_s = COLD_LEAST_S if cold else WORK_LEAST_S
    return min(most_s, least_s + WORK_FACTOR * (max(0.0, expected_s) + max(0.0, queue_s)))


def doubt_within_s(expected_s: float, queue_s: float, doubts: int) -> float:
    """Seconds for which a peer that says it works may show no progress before another is preferred to it
    without a ban; the others as in ``work_within_s``. ``doubts``: how often it has happened in a row."""
    queue_s = min(DOUBT_QUEUE_S, max(0.0, queue_s))
    return (DOUBT_LEAST_S + DOUBT_FACTOR * (max(0.0, expected_s) + queue_s)) * 2.0 ** min(doubts, 16)


def shared_line_s(payload_bytes: int, line_bytes_per_s: float) -> float:
    """Seconds that ``payload_bytes`` may take on a line that a person limits, behind those of others. A peer
    that claims less than SLOW_WAY_BYTES_PER_S gets no more time for that."""
    return LINE_SHARERS * payload_bytes / max(line_bytes_per_s, SLOW_WAY_BYTES_PER_S)


def transit_within_s(payload_bytes: int, round_trip_s: float, line_bytes_per_s: float = inf) -> float:
    """Seconds for ``payload_bytes`` to get from one hop to the next. ``round_trip_s``: the longer of this
    side's own to the two; the way between them is no longer than that. ``line_bytes_per_s``: what the
    narrower of their lines is limited to."""
    way_s = payload_bytes / SLOW_WAY_BYTES_PER_S
    if line_bytes_per_s != inf:
        way_s = LINE_OTHERS_S + max(way_s, shared_line_s(payload_bytes, line_bytes_per_s))
    return TRANSIT_LEAST_S + 2 * round_trip_s + way_s


def is_trickle(received_bytes: int, seconds: float, within_s: float) -> bool:
    """Whether a peer that owes an answer for ``seconds``, and was given ``within_s`` for it, sends so little
    that it counts as silent."""
    return seconds > within_s and received_bytes < LEAST_RATE_BYTES_PER_S * (seconds - within_s)
