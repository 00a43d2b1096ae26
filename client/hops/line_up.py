"""Plans for the new hops of a line: of all hops of a new route, or of those between hops that stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ...swarm.protocol.field_types import Downstream
from ...swarm.types import Hop
from .hop import HopClient
from .plan import HopPlan, RouteSettings, names_for, new_session, places

Line = Sequence[HopClient | Hop]
"""A route: open hops that stay, and new ones."""


def plan_line(
    line: Line,
    settings: RouteSettings,
    ids: Sequence[int],
    may_chain: Callable[[str, str], bool],
    old: Sequence[HopClient] = (),
) -> dict[int, HopPlan]:
    """Plans of the new hops, by number. Edges to hops that stay keep their codec, as rows in journals have
    it. ``ids``: what the session was fed. ``old``: the route's hops before its repair; none in a new route.

    Raises HopFailedError for a hop that speaks no codec of ours.
    """
    sessions = [item.session if isinstance(item, HopClient) else new_session() for item in line]
    plans: dict[int, HopPlan] = {}
    for number, item in enumerate(line):
        if isinstance(item, HopClient):
            continue
        before = line[number - 1] if number else None
        after = line[number + 1] if number + 1 < len(line) else None
        before_id = before.peer_id if before is not None else None
        after_id = after.peer_id if after is not None else None
        codec = (
            before.reply_codec
            if isinstance(before, HopClient)
            else settings.codec_between(before_id, item.peer_id, item.span.start, ids)
        )
        reply_codec = (
            after.codec
            if isinstance(after, HopClient)
            else settings.codec_between(item.peer_id, after_id, item.span.end)
        )
        downstream = None
        if after is not None and may_chain(item.peer_id, after.peer_id):
            record = after.plan.hop.record if isinstance(after, HopClient) else after.record
            downstream = Downstream(after.peer_id, sessions[number + 1], record)
        plans[number] = HopPlan(
            item,
            number,
            len(line),
            sessions[number],
            codec,
            reply_codec,
            settings.nodes.get(item.peer_id),
            before_id if before_id and may_chain(before_id, item.peer_id) else "",
            downstream,
            # In a repair, a hop that has to feed the next from its journal must compute all of it.
            ids=() if old and lacks_tokens(after) else ids,
        )
    return _named(line, plans, settings, old)


def _named(
    line: Line, plans: dict[int, HopPlan], settings: RouteSettings, old: Sequence[HopClient]
) -> dict[int, HopPlan]:
    """With the names of their pages, which depend on all that the hops before have computed."""
    whole = [item.plan if isinstance(item, HopClient) else plans[number] for number, item in enumerate(line)]
    names = names_for(whole, settings)
    known = True
    for number, item in enumerate(line):
        if isinstance(item, HopClient):
            known = known and item.names is not None and not is_fed_anew(item, old, whole[:number])
        elif known:
            plans[number] = replace(plans[number], names=names[number])
    return plans


def is_fed_anew(hop: HopClient, old: Sequence[HopClient], before: Sequence[HopPlan]) -> bool:
    """Whether others computed the input of a hop that stays than the hops ``before`` it now."""
    then = [each.plan for each in old[: old.index(hop)]]
    return places(then) != places(before)


def lacks_tokens(item: HopClient | Hop | None) -> bool:
    return isinstance(item, Hop) or (item is not None and item.state.missing_from is not None)
