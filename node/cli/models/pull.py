"""``swarm-node pull``: a whole model fetched to this machine, to be served by its name later."""

from __future__ import annotations

import argparse
from shlex import quote

from ....shards.checkpoint.lookup import Source
from ...weights.pull import PulledModel, pull_model
from ..shared.arguments import entry_of
from ..shared.board import Board
from ..shared.output import answers, print_json, shown

_FROM = {Source.LOCAL: "was here", Source.SWARM: "came from peers", Source.HUB: "came from the hub"}


async def run_pull(arguments: argparse.Namespace) -> None:
    with Board("Starting ...", speak=not arguments.json) as board:
        pulled = await pull_model(
            arguments.model,
            entry_of(arguments),
            cache_bytes=arguments.cache_size,
            on_stage=board.stage,
            on_progress=board.progress,
        )
    if arguments.json:
        print_json(pulled.as_dict())
    else:
        answers.print(told(pulled))


def told(pulled: PulledModel) -> str:
    """For people, with markup."""
    serve = f"`swarm-node serve --model {quote(pulled.ref.name)}`"
    time = "" if pulled.source is Source.LOCAL else f" in {pulled.seconds:.0f} s"
    return (
        f"[bold]{shown(str(pulled.ref))}[/] {_FROM[pulled.source]}{time}, all {pulled.ref.n_blocks} blocks.\n"
        f"Serve it: {shown(serve)}"
    )
