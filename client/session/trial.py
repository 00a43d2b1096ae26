"""A peer on trial: a short session with a few steps of one token, timed by this client's own clock.

The peer computes the embedding of a token that is in no text. A trial costs it what a few decoded tokens do,
and shows what no record can: that it opens, computes, and how fast.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np

from ...swarm.boundaries import Boundaries, span_inside
from ...swarm.codecs.kinds import negotiate
from ...swarm.codecs.names import KINDS
from ...swarm.errors import HopFailedError, NetworkError, RemoteProtocolError, SwarmError, TrialLostError
from ...swarm.links.pool import LinkPool
from ...swarm.protocol.messages import Want
from ...swarm.types import Hop, NodeInfo, short_peer_id
from ..hops.hop import HopClient
from ..hops.plan import HopPlan, SessionSettings, new_session
from ..hops.segment import Segment
from ..routing.reserves import TRIAL_TOKENS

TRIAL_STEPS = 4
"""A trial has this many steps. The first may have to warm something up; of the others the median counts."""
TRIAL_S = 3.0
"""A trial is lost after this many seconds."""


@dataclass(frozen=True, slots=True)
class Tried:
    """Seconds of a step at the peer for each of its blocks, and of the round trip."""

    block_s: float
    round_trip_s: float


async def try_peer(
    links: LinkPool, node: NodeInfo, x: np.ndarray, wire_codec: str, boundaries: Boundaries
) -> Tried:
    """``x``: (1, width), the row of a token that enters the first block. Raises HopFailedError."""
    try:
        async with asyncio.timeout(TRIAL_S):
            return await _try(links, node, x, wire_codec, boundaries)
    except TimeoutError:
        error: SwarmError = TrialLostError(
            f"peer {short_peer_id(node.peer_id)} did not pass a trial in {TRIAL_S:g} s"
        )
    except SwarmError as caught:
        error = caught
    raise HopFailedError(node.peer_id, error)


async def _try(
    links: LinkPool, node: NodeInfo, x: np.ndarray, wire_codec: str, boundaries: Boundaries
) -> Tried:
    codec = negotiate(KINDS, node.codecs or KINDS, wire_codec)
    span = span_inside(node.span, boundaries.cuts)
    if span is None:
        raise RemoteProtocolError(
            f"peer {short_peer_id(node.peer_id)} serves blocks {node.span}: no cut is in them"
        )
    plan = HopPlan(Hop(node.peer_id, span, node.dial_maddrs), 0, 1, new_session(), codec, codec)
    hop = await HopClient.open(links, plan, SessionSettings(boundaries, TRIAL_TOKENS))
    try:
        segment = Segment([hop])
        payload = codec.encode(_row_at(boundaries, span.start, x))
        times = []
        for number in range(TRIAL_STEPS):
            began = perf_counter()
            segment.post(number + 1, payload, 1, number, Want.LAST)
            result = await segment.receive()
            times.append(perf_counter() - began)
            codec.decode(result.payload, 1, hop.reply_width)
        round_trip_s = min(hop.link.round_trip_s, await hop.link.ping())
    except NetworkError as error:
        raise (hop.failure or hop.state.step_error or error) from error
    finally:
        hop.listen(None)
        hop.close()
    return Tried(max(0.0, median(times[1:]) - round_trip_s) / len(span), round_trip_s)


def _row_at(boundaries: Boundaries, boundary: int, x: np.ndarray) -> np.ndarray:
    """``x`` of the first block as block ``boundary`` could read it: the same residual, and what is beside it
    from there on."""
    residual = boundaries.residual_width
    gone = boundaries.widths[0] - boundaries.widths[boundary]
    return np.concatenate((x[:, :residual], x[:, residual + gone :]), 1)
