"""A second session that begins with the tokens of a first, on the same hops: beams, several answers, retries.

Every hop shares the KV pages of what both have in common until one of them writes (OPEN with ``parent``), and
begins the new session's journal with the old one's; hops are wired to each other as they were for the parent.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from ..hops.hop import HopClient
from ..hops.plan import HopPlan, RouteSettings, names_for, new_session
from ..hops.route_session import RouteSession


async def fork_route(parent: RouteSession, tokens: int, settings: RouteSettings) -> RouteSession:
    """Open on every hop of ``parent`` a session that begins with its first ``tokens`` tokens. ``settings``:
    the new session's.

    All of them must be answered for, and ``parent`` must not go back behind them meanwhile. Raises
    HopFailedError for the first hop that refuses, has no room or is lost; the others are closed then.
    """
    fork = await RouteSession.open_planned(parent.links, parent.route, settings, _plans(parent, tokens))
    fork.rewire(parent.apart)
    return fork


def _plans(parent: RouteSession, tokens: int) -> list[HopPlan]:
    hops = parent.hops
    names = names_for([hop.plan for hop in hops], parent.settings)
    sessions = [new_session() for _ in hops]
    chained = [_is_chained(*pair) for pair in pairwise(hops)]
    plans = []
    for number, hop in enumerate(hops):
        upstream = hops[number - 1].peer_id if number and chained[number - 1] else ""
        downstream = None
        if number < len(hops) - 1 and chained[number]:
            downstream = replace(hops[number + 1].downstream_for(), session=sessions[number + 1])
        plans.append(
            replace(
                hop.plan,
                number=number,
                hops=len(hops),
                session=sessions[number],
                upstream=upstream,
                downstream=downstream,
                # Without names of its own, its pages are another hop's doing.
                names=names[number] if hop.names is not None else None,
                ids=(),
                parent=hop.session,
                parent_tokens=tokens,
            )
        )
    return plans


def _is_chained(before: HopClient, after: HopClient) -> bool:
    return before.downstream == after.session
