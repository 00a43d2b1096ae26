"""Whether to fork a session or to feed some tokens again: what a route has measured decides."""

from __future__ import annotations

from collections.abc import Sequence

from ..session.swarm_session import SwarmSession

MOST_TOKENS = 16
"""More than that is never fed again where a fork would do."""


def cheap_tokens(sessions: Sequence[SwarmSession]) -> int:
    """So many tokens are sooner fed again than a fork is opened, which takes a round trip to every hop.

    They go with the step that follows anyway, so that they cost computing only; 0 before any was decoded.
    """
    best = 0
    for session in sessions:
        hops, chains = session.hops, [chain for chain in session.chains if chain.decode.steps]
        if not chains or not all(hop.decode.tokens for hop in hops):
            continue
        token_s = sum(hop.decode.compute_s / hop.decode.tokens for hop in hops)
        ways = sum(len(chain.peer_ids) + 1 for chain in chains)
        round_trip_s = 2 * sum(chain.decode.wire_s / chain.decode.steps for chain in chains) / ways
        best = max(best, int(round_trip_s / token_s) if token_s > 0 else MOST_TOKENS)
    return min(MOST_TOKENS, best)
