"""The state that a dashboard shows, as JSON: sections of items by their ids.

Texts of peers are cut and made visible here, and are shown as text only. Numbers are rounded, so that noise
is no change, and finite, since JSON knows no others.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...dht.left_out import LeftOut
from ...swarm.names import told_apart
from ...swarm.naming.announced import by_model, model_of
from ...swarm.placement.demand import Demand, Wanted, tally
from ...swarm.routing.best_route import serve_command
from ...swarm.terminal_text import visible_line
from ...swarm.transport.address_groups import networks
from ...swarm.types import Hop, ModelRef, NodeInfo, NodeState, Span, short_peer_id
from .coverage import coverage, throughput
from .source import Counters, OwnWork, RunningAnswer, SeenRepair

MOST_NODES = 2000
"""Nodes that are shown one by one; more are counted. 700 kB of JSON."""
MOST_MODELS = 64
MOST_LINKS = 8
"""Links shown of one node: those with the shortest round trip."""
MOST_COMMANDS = 16
"""Commands of one model, for the blocks that nobody or only one node serves."""
MOST_ANSWERS = 256
MOST_REPAIRS = 50
MOST_WANTED = 16
MOST_LEFT_OUT = 32
NAME_CHARS = 100
CAUSE_CHARS = 200

_PEER_ID = re.compile(r"\b(?:12D3KooW|Qm)[1-9A-HJ-NP-Za-km-z]{40,50}\b")

Item = Mapping[str, Any]
State = Mapping[str, Mapping[str, Any]]
"""Sections by name; in each, items by id."""
Complete = Callable[[str], str]
"""Adds to a ``swarm-node`` command the options that lead into this swarm."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the directory said. ``alone``: see ``Directory.is_alone``."""

    nodes: Sequence[NodeInfo] = ()
    wanted: Sequence[Wanted] = ()
    left_out: Sequence[LeftOut] = ()
    alone: bool = False


def swarm_sections(reading: Reading, complete: Complete) -> dict[str, dict[str, Any]]:
    """What one reading of the directory shows."""
    found = by_model(reading.nodes)
    models = {digest: model_of(nodes) for digest, nodes in found.items()}
    largest = sorted(found, key=lambda digest: (-len(found[digest]), digest))[:MOST_MODELS]
    shown = [node for digest in largest for node in found[digest]][:MOST_NODES]
    known = [(model.name, model.digest) for model in models.values()]

    def fill(model: ModelRef, span: Span) -> str:
        return complete(serve_command(told_apart(model.name, model.digest, known), span))

    return {
        "models": {digest: _model(models[digest], found[digest], fill) for digest in largest},
        "nodes": {node.peer_id: node_item(node) for node in shown},
        "wanted": {each.key: _wanted(each) for each in tally(reading.wanted, reading.nodes)[:MOST_WANTED]},
        "left_out": {
            each.peer_id: text(each.reason, CAUSE_CHARS) for each in reading.left_out[:MOST_LEFT_OUT]
        },
        "swarm": {
            "nodes": len(reading.nodes),
            "online": sum(node.state is NodeState.ONLINE for node in reading.nodes),
            "not_shown": len(reading.nodes) - len(shown),
            "models": len(found),
            "networks": networks(maddr for node in reading.nodes for maddr in node.maddrs),
            "alone": reading.alone,
        },
    }


def own_sections(
    answers: Sequence[RunningAnswer],
    repairs: Sequence[SeenRepair],
    counters: Counters | None,
    work: OwnWork | None,
    now: float,
) -> dict[str, dict[str, Any]]:
    """What the process that serves the dashboard knows of itself. ``now``: seconds of Unix time."""
    return {
        "answers": {
            answer.id: {
                "model": text(answer.model, NAME_CHARS),
                "hops": _hops(answer.hops),
                "began": round(now - answer.age_s, 1),
                "tokens": answer.tokens,
                "tokens_per_s": number(answer.tokens_per_s, 1),
                "waiting": text(answer.waiting, CAUSE_CHARS),
                "repairs": answer.repairs,
            }
            for answer in answers[:MOST_ANSWERS]
        },
        "repairs": {
            repair.id: {
                "at": round(repair.at, 1),
                "answer": repair.answer,
                "model": text(repair.model, NAME_CHARS),
                "kind": repair.kind,
                "lost": list(repair.lost[:MOST_LINKS]),
                "cause": text(_PEER_ID.sub(_shortened, repair.cause), CAUSE_CHARS),
                "seconds": number(repair.seconds, 2),
            }
            for repair in repairs[-MOST_REPAIRS:]
        },
        "own": _own(counters, work),
    }


def with_peer(address: str, command: str) -> str:
    """A Complete for a swarm that is known by the address of a peer only; "" for no address."""
    return f"{command} --initial-peers {shlex.quote(address)}" if address else command


def node_item(node: NodeInfo) -> Item:
    links = sorted(node.links, key=lambda link: link.rtt_s)[:MOST_LINKS]
    return {
        "name": text(node.name, NAME_CHARS),
        "model": node.model.digest,
        "first": node.span.start,
        "last": node.span.end - 1,
        "state": str(node.state),
        "ms_per_token": number(node.decode_ms_per_block * len(node.span), 2),
        "prefill": number(node.prefill_tokens_per_s),
        "kv_free": node.free_kv_tokens,
        "kv_total": node.total_kv_tokens,
        "states_free": node.free_states,
        "states_total": node.total_states,
        "queue_ms": number(node.queue_ms, 1),
        "tokens_per_s": number(node.tokens_per_s, 1),
        "sessions": node.sessions,
        "journal": number(node.journal_bytes / max(1, node.total_journal_bytes), 2),
        "device": text(node.device, NAME_CHARS),
        "weights": text(node.weights, NAME_CHARS),
        "version": text(node.version, NAME_CHARS),
        "way": _way(node),
        "deterministic": bool(node.row_check),
        "shares": node.shares_weights,
        "links": [
            [link.peer_id, number(link.rtt_s * 1000, 1), number(link.bytes_per_s * 8e-6, 1)] for link in links
        ],
    }


def text(value: str, most: int) -> str:
    """Of a peer's text its first ``most`` characters in one line, with control characters made visible."""
    return visible_line(value[:most])


def _shortened(found: re.Match[str]) -> str:
    return short_peer_id(found[0])


def number(value: float, digits: int = 0) -> float:
    return round(value, digits) if math.isfinite(value) else 0.0


def _model(model: ModelRef, nodes: Sequence[NodeInfo], fill: Callable[[ModelRef, Span], str]) -> Item:
    stretches = coverage(nodes, model.n_blocks)
    online = [node for node in nodes if node.state is NodeState.ONLINE]
    return {
        "name": text(model.name, NAME_CHARS),
        "blocks": model.n_blocks,
        "online": len(online),
        "nodes": len(nodes),
        "networks": networks(maddr for node in online for maddr in node.maddrs),
        "tokens_per_s": number(throughput(online, model.n_blocks), 1),
        "sessions": max((node.sessions for node in online), default=0),
        "coverage": [[each.span.start, each.span.end - 1, each.servers] for each in stretches],
        "commands": {
            str(each.span): fill(model, each.span)
            for each in sorted(stretches, key=lambda each: each.servers)[:MOST_COMMANDS]
            if each.servers <= 1
        },
    }


def _way(node: NodeInfo) -> str:
    """How it is reached: by direct streams, through its daemon, or through a relay only."""
    if node.direct_maddrs:
        return "direct"
    return "relay" if node.maddrs and all("/p2p-circuit" in maddr for maddr in node.maddrs) else "daemon"


def _wanted(demand: Demand) -> Item:
    return {
        "name": text(str(demand.model), NAME_CHARS),
        "peers": len(demand.peers),
        "served": demand.ref is not None,
        "missing": [str(span) for span in demand.missing],
        "loading": len(demand.loading),
    }


def _hops(hops: Iterable[Hop]) -> list[list[Any]]:
    return [[hop.peer_id, hop.span.start, hop.span.end - 1] for hop in hops]


def _own(counters: Counters | None, work: OwnWork | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if counters is not None:
        names = ("answers", "failed", "repairs", "prompt_tokens", "tokens")
        found["counters"] = {name: getattr(counters, name) for name in names}
    if work is not None:
        found["work"] = {**asdict(work), "uptime_s": round(work.uptime_s)}
    return found
