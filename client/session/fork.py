"""A second session that begins with the tokens of a first, on the same hops: beams, several answers, retries.

Every hop shares the KV pages of what both have in common until one of them writes (OPEN with ``parent``), and
begins the new session's journal with the old one's; hops are wired to each other as they were for the parent.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from ..hops.hop import HopClient, Seat, SessionSettings
from ..hops.route_session import RouteSession, names_for, new_session
from ..hops.segment import Patient


async def fork_route(
    parent: RouteSession, tokens: int, session: SessionSettings, doubts: Patient
) -> RouteSession:
    """Open on every hop of ``parent`` a session that begins with its first ``tokens`` tokens. ``doubts``: the
    new session's.

    All of them must be answered for, and ``parent`` must not go back behind them meanwhile. Raises
    HopFailedError for the first hop that refuses, has no room or is lost; the others are closed then.
    """
    settings = replace(parent.settings, session=session, doubts=doubts)
    fork = await RouteSession.open_seats(parent.links, parent.route, settings, _seats(parent, tokens))
    fork.unchained |= parent.unchained
    return fork


def _seats(parent: RouteSession, tokens: int) -> list[Seat]:
    hops = parent.hops
    sessions = [new_session() for _ in hops]
    chained = [_is_chained(*pair) for pair in pairwise(hops)]
    seats = []
    for number, (hop, names) in enumerate(zip(hops, names_for(hops, parent.settings), strict=True)):
        upstream = hops[number - 1].peer_id if number and chained[number - 1] else ""
        downstream = None
        if number < len(hops) - 1 and chained[number]:
            downstream = replace(hops[number + 1].downstream_for(), session=sessions[number + 1])
        seats.append(
            Seat(
                hop.hop,
                number,
                len(hops),
                sessions[number],
                hop.codec,
                hop.reply_codec,
                hop.weights,
                upstream,
                downstream,
                names if hop.names is not None else None,  # else another hop's doing is in its pages
                parent=hop.session,
                parent_tokens=tokens,
            )
        )
    return seats


def _is_chained(before: HopClient, after: HopClient) -> bool:
    return before.downstream == after.session
