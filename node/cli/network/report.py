"""What ``swarm-node status`` tells of a swarm, as the object that ``--json`` prints."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ....dht.left_out import LeftOut
from ....swarm.naming.announced import by_model, model_of
from ....swarm.placement.demand import Demand
from ....swarm.routing.best_route import missing_blocks
from ....swarm.transport.address_groups import networks
from ....swarm.types import ModelRef, NodeInfo


def build_report(
    nodes: Sequence[NodeInfo],
    demand: Sequence[Demand] = (),
    left_out: Sequence[LeftOut] = (),
    silent: Collection[str] = (),
    *,
    is_alone: bool = False,
) -> dict[str, Any]:
    """The object that ``status --json`` prints: models by name, each with its nodes by first block; what is
    wanted; peers whose announcements cannot be used; and whether the peers that were asked reach no other."""
    models = [_report_model(model_of(found), found, silent) for found in by_model(nodes).values()]
    return {
        "models": sorted(models, key=lambda model: (model["name"], model["digest"])),
        "wanted": demand_report(demand),
        "left_out": [each.as_dict() for each in left_out],
        "alone": is_alone,
    }


def _report_model(model: ModelRef, nodes: list[NodeInfo], silent: Collection[str]) -> dict[str, Any]:
    answering = [node for node in nodes if node.peer_id not in silent]
    nodes = sorted(nodes, key=lambda node: (node.span, node.peer_id))
    return {
        "name": model.name,
        "digest": model.digest,
        "n_blocks": model.n_blocks,
        "networks": networks_of(answering),
        "missing": [str(span) for span in missing_blocks(answering, model.n_blocks)],
        "silent": [node.peer_id for node in nodes if node.peer_id in silent],
        "nodes": [
            {
                "peer_id": node.peer_id,
                "name": node.name,
                "blocks": str(node.span),
                "state": "silent" if node.peer_id in silent else str(node.state),
                "announced_state": str(node.state),
                "decode_ms_per_block": node.decode_ms_per_block,
                "context_ms_per_block": node.context_ms_per_block,
                "prefill_tokens_per_s": node.prefill_tokens_per_s,
                "free_kv_tokens": node.free_kv_tokens,
                "total_kv_tokens": node.total_kv_tokens,
                "free_states": node.free_states,
                "total_states": node.total_states,
                "sessions": node.sessions,
                "tokens_per_s": node.tokens_per_s,
                "queue_ms": node.queue_ms,
                "links": [
                    {"peer_id": link.peer_id, "rtt_ms": round(link.rtt_s * 1000, 3)} for link in node.links
                ],
                "journal_bytes": node.journal_bytes,
                "total_journal_bytes": node.total_journal_bytes,
                "deterministic": bool(node.row_check),
                "row_check": node.row_check,
                "weights_root": node.weights_root,
                "weights_whole": node.weights_whole,
                "shares_weights": node.shares_weights,
                "weights": node.weights,
                "codecs": list(node.codecs),
                "coarse": list(node.coarse),
                "device": node.device,
                "version": node.version,
                "maddrs": list(node.maddrs),
                "direct_maddrs": list(node.direct_maddrs),
            }
            for node in nodes
        ],
    }


def networks_of(nodes: Sequence[NodeInfo]) -> int:
    """In how many networks nodes are by their own account, at least."""
    return networks(maddr for node in nodes for maddr in node.maddrs)


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
