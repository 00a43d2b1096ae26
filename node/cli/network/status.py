"""``swarm-node status``: every model of a swarm, the nodes and their blocks, the blocks that no node serves,
and the demand."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from shlex import quote
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ....dht.joining.client import join_as_client
from ....dht.left_out import LeftOut
from ....swarm.codecs.names import KINDS
from ....swarm.membership.entry import SwarmEntry
from ....swarm.names import digest_prefix
from ....swarm.placement.demand import Demand, Wanted, is_open, tally
from ....swarm.routing.best_route import missing_blocks
from ....swarm.transport.address_groups import networks
from ....swarm.types import ModelRef, NodeInfo, short_peer_id
from ...presence.roll_call import silent_nodes
from ..shared.arguments import entry_of
from ..shared.output import answers, plural, print_json, print_table, shown
from ..shared.pasting import pasteable
from ..shared.progress import progress_shown


async def run_status(arguments: argparse.Namespace) -> None:
    doing = "Asking the swarm who serves what ..."
    snapshot = await read_swarm(entry_of(arguments), doing, ask=True, speak=not arguments.json)
    demand = tally(snapshot.wanted, snapshot.nodes)
    report = build_report(
        snapshot.nodes, demand, snapshot.left_out, snapshot.silent, is_alone=snapshot.is_alone
    )
    if arguments.json:
        print_json(report)
    else:
        print_tables(report, demand, say=partial(pasteable, arguments=arguments))


@dataclass(frozen=True, slots=True)
class SwarmListing:
    nodes: Sequence[NodeInfo]
    wanted: Sequence[Wanted]
    left_out: Sequence[LeftOut] = ()
    silent: frozenset[str] = frozenset()
    """Peer ids of nodes that were asked and gave no answer."""
    is_alone: bool = False
    """See ``Directory.is_alone``."""


async def read_swarm(entry: SwarmEntry, doing: str, *, ask: bool = False, speak: bool = True) -> SwarmListing:
    """What a swarm's directory says now; with ``ask``, also which nodes answer. ``doing`` is shown meanwhile
    if ``speak``. Raises UsageError, NetworkError."""
    with progress_shown(doing, speak=speak) as line:
        network = await join_as_client(entry, line.update)
        try:
            nodes, wanted = await network.directory.all_nodes(), await network.directory.wanted()
            silent = await silent_nodes(network.transport, nodes) if ask else frozenset[str]()
            return SwarmListing(nodes, wanted, network.directory.left_out, silent, network.directory.is_alone)
        finally:
            await network.close()


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
    by_model: dict[str, list[NodeInfo]] = {}
    for node in nodes:
        by_model.setdefault(node.model.digest, []).append(node)
    models = [_report_model(found[0].model, found, silent) for found in by_model.values()]
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
                "blocks": str(node.span),
                "state": "silent" if node.peer_id in silent else str(node.state),
                "announced_state": str(node.state),
                "decode_ms_per_block": node.decode_ms_per_block,
                "prefill_tokens_per_s": node.prefill_tokens_per_s,
                "free_kv_tokens": node.free_kv_tokens,
                "total_kv_tokens": node.total_kv_tokens,
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


def _said(model: dict[str, Any], models: Sequence[dict[str, Any]]) -> str:
    """What names it for ``--model``: its name, with the digest if another model has that name too."""
    alike = [other["digest"] for other in models if other["name"] == model["name"]]
    return model["name"] if len(alike) == 1 else f"{model['name']}@{digest_prefix(model['digest'], alike)}"


def print_tables(
    report: dict[str, Any], demand: Sequence[Demand] = (), *, say: Callable[[str], str] = str
) -> None:
    """``say`` completes the commands that are named."""
    others = [*demand_lines(demand), *_left_out(report["left_out"]), *([_ALONE] if report["alone"] else [])]
    if not report["models"]:
        start = say("Start with: `swarm-node serve --model PATH_OR_NAME`")
        answers.print(f"Nobody serves a model in this swarm yet. {shown(start)}")
        for line in others:
            answers.print(line)
        return
    digests = [model["digest"] for model in report["models"]]
    for model in report["models"]:
        print_table(_table(model, digests))
        remarks = (_deterministic, _silent, _by_daemons, _fewer_codecs, _coarse)
        for line in (line for remark in remarks for line in remark(model)):
            answers.print(line)
        if model["missing"]:
            which = quote(_said(model, report["models"]))
            fill = say(f"`swarm-node serve --model {which} --blocks {model['missing'][0]}`")
            answers.print(
                f"  [bold red]no peer serves blocks {', '.join(model['missing'])}[/]: {shown(fill)}"
            )
        else:
            answers.print(
                f"  [green]all {model['n_blocks']} blocks are served[/] "
                f"from {plural(model['networks'], 'network')}"
            )
    for line in others:
        answers.print(line)
    answers.print(_LEGEND)


_LEFT_OUT_SHOWN = 8
"""The tables show at most this many peers that cannot be used, or do not answer: ``--json`` has all."""
_ALONE = (
    "[yellow]The peers that were asked reach no other peer of the swarm[/]: there may be more. Ask again."
)
_LEGEND = """\
  [dim]measured by each node: ms/tok a decode step, prefill tokens/s, free KV tokens;
  load lately: open sessions, tok/s of all together, ms of wait in the queue;
  jrnl: how full the journal is that repairs need[/]"""


def _table(model: dict[str, Any], digests: Sequence[str] = ()) -> Table:
    # What peers announce is their text: escaped, so that it cannot style our table.
    table = Table(
        title=f"{shown(model['name'])}  ({model['n_blocks']} blocks, "
        f"digest {digest_prefix(model['digest'], digests)})",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,  # the box's own gaps are enough, and all must fit into 80 columns
        show_edge=False,
    )
    for heading in ("peer", "blocks", "state", "weights"):
        table.add_column(heading)
    for heading in ("ms/tok", "prefill", "free KV", "open", "tok/s", "wait", "jrnl"):
        table.add_column(heading, justify="right")
    for node in model["nodes"]:
        first, last = (int(block) for block in (node["blocks"].split("-") * 2)[:2])
        milliseconds = node["decode_ms_per_block"] * (last - first + 1)
        free, total = node["free_kv_tokens"], node["total_kv_tokens"]
        kept, most = node["journal_bytes"], node["total_journal_bytes"]
        table.add_row(
            short_peer_id(node["peer_id"]),
            node["blocks"],
            node["state"],
            "\n".join(map(shown, _weights(node["weights"]))),
            f"{milliseconds:.2f}" if milliseconds else "-",
            f"{node['prefill_tokens_per_s']:.0f}" if node["prefill_tokens_per_s"] else "-",
            f"{_short(free)} {100 * free / total:.0f}%" if total else "-",
            str(node["sessions"]),
            f"{node['tokens_per_s']:.0f}",
            f"{node['queue_ms']:.{0 if node['queue_ms'] >= 99.95 else 1}f}",
            f"{100 * kept / most:.0f}%" if most else "-",
        )
    return table


_KINDS_SHOWN = 2
"""The table shows at most this many of the types that weights are held as: ``--json`` has all."""


def _weights(weights: str) -> list[str]:
    """In lines that fit into its 14 columns: the types that hold most, the share of experts, what else
    computes."""
    held, *others = weights.replace("|", " ").replace(" of experts", " experts").split(", ")
    kinds = held.split(" + ")
    if len(kinds) > 1:  # of ``int5 (Q5_0)`` the file's type says it all
        kinds = [kind.rpartition("(")[2].rstrip(")") for kind in kinds]
    lines = [" + ".join(kinds[:_KINDS_SHOWN])]
    if len(kinds) > _KINDS_SHOWN:
        lines.append(f"+ {len(kinds) - _KINDS_SHOWN} more")
    return [*lines, *others]


def _silent(model: dict[str, Any]) -> list[str]:
    """The line of nodes that did not answer this machine."""
    silent = model["silent"]
    if not silent:
        return []
    names = ", ".join(map(short_peer_id, silent[:_LEFT_OUT_SHOWN]))
    more = f" and {len(silent) - _LEFT_OUT_SHOWN} more" if len(silent) > _LEFT_OUT_SHOWN else ""
    return [f"  [yellow]did not answer, so not counted[/]: {names}{more}"]


def _fewer_codecs(model: dict[str, Any]) -> list[str]:
    """A line for each node that does not read all the codecs that this version knows."""
    return [
        f"  [dim]{short_peer_id(node['peer_id'])} reads no {', '.join(lacks)}[/]: "
        f"rows travel to it in {shown(', '.join(node['codecs']))}"
        for node in model["nodes"]
        if node["codecs"] and (lacks := [kind for kind in KINDS if kind not in node["codecs"]])
    ]


def _coarse(model: dict[str, Any]) -> list[str]:
    """A line for each node that some codecs cost too much."""
    return [
        f"  [yellow]{short_peer_id(node['peer_id'])} loses much in {shown(', '.join(node['coarse']))}[/]: "
        "new sessions send it finer rows"
        for node in model["nodes"]
        if node["coarse"]
    ]


def _by_daemons(model: dict[str, Any]) -> list[str]:
    """The line of nodes that no stream reaches without their daemons."""
    peers = [node["peer_id"] for node in model["nodes"] if not node["direct_maddrs"]]
    if not peers:
        return []
    names = ", ".join(map(short_peer_id, peers[:_LEFT_OUT_SHOWN]))
    more = f" and {len(peers) - _LEFT_OUT_SHOWN} more" if len(peers) > _LEFT_OUT_SHOWN else ""
    return [f"  [dim]reached through their daemons only[/]: {names}{more}"]


def _deterministic(model: dict[str, Any]) -> list[str]:
    """Which nodes compute a token to the same bits in any batch: one line for each arithmetic."""
    alike: dict[tuple[str, str], list[str]] = {}
    for node in model["nodes"]:
        if node["deterministic"]:
            alike.setdefault((node["blocks"], node["row_check"]), []).append(short_peer_id(node["peer_id"]))
    return [
        f"  deterministic, blocks {blocks}, row check {check}: {', '.join(peers)}"
        for (blocks, check), peers in alike.items()
    ]


def _left_out(peers: Sequence[dict[str, Any]]) -> list[str]:
    """The peers whose announcements cannot be used: a line for each of the first few."""
    lines = [
        f"  [yellow]left out: {short_peer_id(peer['peer_id'])}[/], {shown(peer['reason'])}"
        for peer in peers[:_LEFT_OUT_SHOWN]
    ]
    more = len(peers) - len(lines)
    return [*lines, f"  [yellow]left out: {more} more[/]"] if more > 0 else lines


def _short(tokens: int) -> str:
    """12 thousand as ``12k``: a table must fit into 80 columns."""
    return f"{tokens // 1000}k" if tokens >= 10_000 else str(tokens)


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
    lines = [_demand_line(each) for each in demand[:most]]
    if len(demand) > most:
        lines.append(f"[dim]{len(demand) - most} more models are wanted[/]")
    return lines


def _demand_line(demand: Demand) -> str:
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
