"""What clients want and cannot get, as ``status`` and ``models`` show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...swarm.placement.demand import Demand, is_open
from .shared.output import plural, short_peer_id, shown


def demand_report(demand: Sequence[Demand]) -> list[dict[str, Any]]:
    """The value of ``wanted`` in JSON: most wanted first."""
    return [
        {
            "name": each.model.name,
            "digest": each.model.digest,
            "peers": len(each.peers),
            "votes": round(each.votes, 3),
            "served": each.ref is not None,
            "missing": [str(span) for span in each.missing],
            "loading": [{"peer_id": node.peer_id, "blocks": str(node.span)} for node in each.loading],
        }
        for each in demand
    ]


def demand_lines(demand: Sequence[Demand], most: int = 8) -> list[str]:
    """``wanted: NAME by 2 peers; …abc123 is loading 0-10; nobody has 11-29``, as rich markup."""
    lines = [_line(each) for each in demand[:most]]
    if len(demand) > most:
        lines.append(f"[dim]{len(demand) - most} more models are wanted[/]")
    return lines


def _line(demand: Demand) -> str:
    peers = plural(len(demand.peers), "peer")
    parts = [f"[yellow]wanted[/]: {shown(str(demand.model))} by {peers}"]
    parts += [f"{short_peer_id(node.peer_id)} is loading {node.span}" for node in demand.loading[:2]]
    if demand.ref is None:
        parts.append("nobody serves it")
    elif demand.missing:
        parts.append(f"nobody has {', '.join(map(str, demand.missing))}")
    elif not is_open(demand) and not demand.loading:
        parts.append("all its blocks are served now")
    return "; ".join(parts)
