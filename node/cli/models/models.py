"""``swarm-node models``: what is on this machine, what the swarm serves, what is wanted, and what names mean
here."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ....shards.checkpoint.known_models import KnownModels, default_known
from ....shards.checkpoint.local_models import ModelFiles, default_local_models, models_folder
from ....shards.checkpoint.lookup import find_local
from ....swarm.errors import NetworkError, UsageError
from ....swarm.names import DIGEST_CHARS, ModelName, digest_prefix, is_same_name
from ....swarm.naming.announced import by_model, model_of
from ....swarm.placement.demand import Demand, tally
from ....swarm.routing.best_route import missing_blocks
from ....swarm.types import ModelRef, NodeInfo, NodeState
from ..network.report import demand_report, networks_of
from ..network.status import SwarmListing, read_swarm
from ..network.tables import demand_lines
from ..shared.arguments import entry_of
from ..shared.fitted_table import FittedTable
from ..shared.output import answers, console, format_bytes, plural, print_json, print_table, shown
from .catalogue import show_catalogue

_ASKING = "Asking the swarm what it serves ..."


async def run_models(arguments: argparse.Namespace) -> None:
    if arguments.catalogue is not None:
        show_catalogue(arguments.catalogue, as_json=arguments.json)
        return
    known = default_known()
    if arguments.action is not None:
        report = await _change_pin(arguments, known)
        if arguments.json:
            print_json(report)
        else:
            answers.print(shown(str(report["message"])))
        return
    here = await asyncio.to_thread(default_local_models().checked)
    snapshot, problem = SwarmListing((), ()), ""
    if not arguments.local:
        try:
            snapshot = await read_swarm(entry_of(arguments), _ASKING, speak=not arguments.json)
        except NetworkError as error:  # what is here can be told in any case
            problem = error.message
    demand = tally(snapshot.wanted, snapshot.nodes)
    if arguments.json:
        print_json(build_report(here, snapshot.nodes, demand, problem, known))
    else:
        print_report(here, snapshot.nodes, demand, known)
        if problem:
            console.print(f"[yellow]The swarm was not asked[/]: {shown(problem)}.")


def build_report(
    here: Sequence[ModelFiles],
    nodes: Sequence[NodeInfo],
    demand: Sequence[Demand],
    problem: str = "",
    known: KnownModels | None = None,
) -> dict[str, Any]:
    """The object that ``models --json`` prints."""
    used_since = {} if known is None else known.first_used()
    return {
        "here": [
            {
                "name": model.name,
                "path": str(model.path),
                "kind": model.kind,
                "bytes": model.nbytes,
                "weights_root": model.root,
                "problem": model.problem,
                "hint": model.hint,
            }
            for model in here
        ],
        "swarm": [
            {
                "name": ref.name,
                "digest": ref.digest,
                "n_blocks": ref.n_blocks,
                "nodes": len(holders),
                "networks": networks_of(holders),
                "used_since": _since(used_since, ref),
                "missing": [str(span) for span in missing_blocks(_online(holders), ref.n_blocks)],
            }
            for ref, holders in _by_model(nodes)
        ],
        "wanted": demand_report(demand),
        "pinned": [] if known is None else [str(pin) for pin in known.pins()],
        "problem": problem,
    }


def print_report(
    here: Sequence[ModelFiles],
    nodes: Sequence[NodeInfo],
    demand: Sequence[Demand],
    known: KnownModels | None = None,
) -> None:
    pins = () if known is None else known.pins()
    used_since = {} if known is None else known.first_used()
    if not here and not nodes and not demand:
        answers.print(
            f"There is no model yet. Put a GGUF file or a HuggingFace directory into {models_folder()}, or "
            "give the name of one on the HuggingFace hub: `swarm-node serve --model OWNER/NAME`. "
            "`swarm-node models --catalogue` lists models that people want."
        )
        return
    table = FittedTable()
    table.add_column("model", no_wrap=True)  # what is pasted: the others are broken into lines first
    for heading in ("where", "size", "state"):
        table.add_column(heading)
    for model in here:
        state = "[red]cannot run[/]" if model.problem else "complete"
        table.add_row(shown(model.name), f"here ({model.kind})", format_bytes(model.nbytes), state)
    used: list[str] = []
    digests = {node.model.digest for node in nodes}
    for ref, holders in _by_model(nodes):
        missing = missing_blocks(_online(holders), ref.n_blocks)
        state = f"[red]missing {', '.join(map(str, missing))}[/]" if missing else "[green]served[/]"
        nodes_of = plural(len(holders), "node")
        name = f"{shown(ref.name)}[dim]@{digest_prefix(ref.digest, digests)}[/]"
        places = f"swarm ({nodes_of}, {plural(networks_of(holders), 'network')})"
        table.add_row(name, places, f"{ref.n_blocks} blocks", state)
        if since := _since(used_since, ref):
            used.append(
                f"{shown(ref.name)}@{digest_prefix(ref.digest, digests)}: used here since {since[:10]}"
            )
    print_table(table)
    broken = [
        f"{shown(each.name)}: {shown(each.problem)}. {shown(each.hint)}" for each in here if each.problem
    ]
    for line in [*broken, *used, *(f"{shown(str(pin))}: pinned" for pin in pins)]:
        answers.print(line)
    for line in demand_lines(demand):
        answers.print(line)


async def _change_pin(arguments: argparse.Namespace, known: KnownModels) -> dict[str, object]:
    """What was done, for JSON. Raises UsageError, NetworkError."""
    if not arguments.name:
        raise UsageError(
            f"models {arguments.action} needs the name of a model",
            hint="`swarm-node models pin NAME@DIGEST`, `swarm-node models unpin NAME`",
        )
    wanted = ModelName.parse(arguments.name)
    if arguments.action == "unpin":
        was = await asyncio.to_thread(known.remove_pin, wanted.name)
        pins = ", ".join(str(pin) for pin in known.pins()) or "nothing"
        message = (
            f"{wanted.name} {'is' if was else 'was'} not pinned{' any more' if was else ''} ({known.path})"
        )
        message += "." if was else f"; pinned: {pins}."
        return {"action": "unpin", "name": wanted.name, "was_pinned": was, "message": message}
    pin = await _whole(wanted, arguments)
    await asyncio.to_thread(known.add_pin, pin)
    message = f"{pin.name} now means {pin} on this machine ({known.path})."
    return {"action": "pin", "name": pin.name, "digest": pin.digest, "root": pin.root, "message": message}


async def _whole(wanted: ModelName, arguments: argparse.Namespace) -> ModelName:
    """With all of the digest: its first characters can be made to fit another model. A digest that is not
    said whole is looked up on this machine and in the swarm."""
    if wanted.root or len(wanted.digest) == DIGEST_CHARS:
        return wanted
    if not wanted.digest:
        raise UsageError(
            f"{wanted.name} alone does not say which model", hint="`swarm-node models` lists NAME@DIGEST."
        )
    place = await asyncio.to_thread(find_local, str(wanted))
    if place is not None and place.ref is not None:
        return ModelName(wanted.name, place.ref.digest)
    nodes = (await read_swarm(entry_of(arguments), _ASKING, speak=not arguments.json)).nodes
    found = {
        node.model.digest
        for node in nodes
        if wanted.fits(node.model.digest) and is_same_name(wanted.name, node.model.name)
    }
    if len(found) != 1:
        raise UsageError(
            f"{plural(len(found), 'model')} of this swarm match {wanted}",
            hint="Give all 64 characters of the digest: `swarm-node models --json` shows them.",
        )
    return ModelName(wanted.name, found.pop())


def _since(first: Mapping[str, datetime], ref: ModelRef) -> str:
    """Since when this machine has used the model, under any name."""
    used = first.get(ref.digest)
    return "" if used is None else used.isoformat(timespec="seconds")


def _by_model(nodes: Sequence[NodeInfo]) -> list[tuple[Any, list[NodeInfo]]]:
    found = [(model_of(holders), holders) for holders in by_model(nodes).values()]
    return sorted(found, key=lambda item: (item[0].name, item[0].digest))


def _online(nodes: Sequence[NodeInfo]) -> list[NodeInfo]:
    return [node for node in nodes if node.state is NodeState.ONLINE]
