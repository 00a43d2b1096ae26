"""``swarm-node models``: what is on this machine, what the swarm serves, and what is wanted."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..shards.registry import ModelFiles, default_registry, models_folder
from ..swarm.demand import Demand, tally
from ..swarm.errors import NetworkError
from ..swarm.names import PREFIX
from ..swarm.routing import missing_blocks
from ..swarm.types import NodeInfo, NodeState
from .cli_arguments import entry_of
from .cli_demand import demand_lines, demand_report
from .cli_output import answers, console, format_bytes, print_json, shown
from .cli_status import Snapshot, read_swarm


async def run_models(arguments: argparse.Namespace) -> None:
    here = await asyncio.to_thread(default_registry().models)
    snapshot, problem = Snapshot((), ()), ""
    if not arguments.local:
        try:
            with console.status("Asking the swarm what it serves ..."):
                snapshot = await read_swarm(entry_of(arguments))
        except NetworkError as error:  # what is here can be told in any case
            problem = error.message
    demand = tally(snapshot.wanted, snapshot.nodes)
    if arguments.json:
        print_json(build_report(here, snapshot.nodes, demand, problem))
    else:
        print_report(here, snapshot.nodes, demand)
        if problem:
            console.print(f"[yellow]The swarm was not asked[/]: {shown(problem)}.")


def build_report(
    here: Sequence[ModelFiles], nodes: Sequence[NodeInfo], demand: Sequence[Demand], problem: str = ""
) -> dict[str, Any]:
    """The object that ``models --json`` prints."""
    return {
        "here": [
            {
                "name": model.name,
                "path": str(model.path),
                "kind": model.kind,
                "bytes": model.nbytes,
                "weights_root": model.root,
            }
            for model in here
        ],
        "swarm": [
            {
                "name": ref.name,
                "digest": ref.digest,
                "n_blocks": ref.n_blocks,
                "nodes": len(holders),
                "missing": [str(span) for span in missing_blocks(_online(holders), ref.n_blocks)],
            }
            for ref, holders in _by_model(nodes)
        ],
        "wanted": demand_report(demand),
        "problem": problem,
    }


def print_report(here: Sequence[ModelFiles], nodes: Sequence[NodeInfo], demand: Sequence[Demand]) -> None:
    if not here and not nodes and not demand:
        answers.print(
            f"There is no model yet. Put a GGUF file or a HuggingFace directory into {models_folder()}, or "
            "name one of the HuggingFace hub: swarm-node serve --model OWNER/NAME"
        )
        return
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in ("model", "where", "size", "state"):
        table.add_column(heading)
    for model in here:
        table.add_row(shown(model.name), f"here ({model.kind})", format_bytes(model.nbytes), "complete")
    for ref, holders in _by_model(nodes):
        missing = missing_blocks(_online(holders), ref.n_blocks)
        state = f"[red]missing {', '.join(map(str, missing))}[/]" if missing else "[green]served[/]"
        nodes_of = f"{len(holders)} node{'s' if len(holders) > 1 else ''}"
        name = f"{shown(ref.name)}[dim]@{ref.digest[:PREFIX]}[/]"
        table.add_row(name, f"swarm ({nodes_of})", f"{ref.n_blocks} blocks", state)
    answers.print(table)
    for line in demand_lines(demand):
        answers.print(line)


def _by_model(nodes: Sequence[NodeInfo]) -> list[tuple[Any, list[NodeInfo]]]:
    by_digest: dict[str, list[NodeInfo]] = {}
    for node in nodes:
        by_digest.setdefault(node.model.digest, []).append(node)
    found = [(holders[0].model, holders) for holders in by_digest.values()]
    return sorted(found, key=lambda item: (item[0].name, item[0].digest))


def _online(nodes: Sequence[NodeInfo]) -> list[NodeInfo]:
    return [node for node in nodes if node.state is NodeState.ONLINE]
