"""``swarm-node status``: what a swarm's directory says, once or again and again."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ....dht.joining.client import join_as_client
from ....dht.left_out import LeftOut
from ....swarm.errors import NetworkError
from ....swarm.membership.entry import SwarmEntry
from ....swarm.placement.demand import Wanted, tally
from ....swarm.types import NodeInfo
from ...presence.roll_call import silent_nodes
from ..shared.arguments import entry_of
from ..shared.output import print_json
from ..shared.pasting import pasteable
from ..shared.progress import progress_shown
from .report import build_report
from .tables import Watched, print_tables

DOING = "Asking the swarm who serves what ..."


@dataclass(frozen=True, slots=True)
class SwarmListing:
    nodes: Sequence[NodeInfo]
    wanted: Sequence[Wanted]
    left_out: Sequence[LeftOut] = ()
    silent: frozenset[str] = frozenset()
    """Peer ids of nodes that were asked and gave no answer."""
    is_alone: bool = False
    """See ``Directory.is_alone``."""


Read = Callable[[], Awaitable[SwarmListing]]


async def run_status(arguments: argparse.Namespace) -> None:
    entry, speak = entry_of(arguments), not arguments.json
    if arguments.watch is None:
        _show(await read_swarm(entry, DOING, ask=True, speak=speak), arguments)
        return
    async with contextlib.AsyncExitStack() as stack:
        with progress_shown(DOING, speak=speak) as line:
            read = await stack.enter_async_context(_reader(entry, line.update, ask=True))
            listing = await read()
        watched = stack.enter_context(Watched(speak=speak))
        fault = ""
        while True:
            _show(listing, arguments, watched, fault)
            await asyncio.sleep(arguments.watch)
            try:
                listing, fault = await read(), ""
            except NetworkError as error:
                fault = error.message


def _show(
    listing: SwarmListing, arguments: argparse.Namespace, watched: Watched | None = None, fault: str = ""
) -> None:
    demand = tally(listing.wanted, listing.nodes)
    report = build_report(listing.nodes, demand, listing.left_out, listing.silent, is_alone=listing.is_alone)
    say = partial(pasteable, arguments=arguments)
    if arguments.json:
        print_json(report)
    elif watched is None:
        print_tables(report, demand, say=say)
    else:
        watched.show(report, demand, fault, say=say)


async def read_swarm(entry: SwarmEntry, doing: str, *, ask: bool = False, speak: bool = True) -> SwarmListing:
    """What a swarm's directory says now; with ``ask``, also which nodes answer. ``doing`` is shown meanwhile
    if ``speak``. Raises UsageError, NetworkError."""
    with progress_shown(doing, speak=speak) as line:
        async with _reader(entry, line.update, ask=ask) as read:
            return await read()


@contextlib.asynccontextmanager
async def _reader(entry: SwarmEntry, on_progress: Callable[[str], None], *, ask: bool) -> AsyncIterator[Read]:
    """A way to read it several times, joined once."""
    network = await join_as_client(entry, on_progress)
    directory = network.directory

    async def read() -> SwarmListing:
        nodes, wanted = await directory.all_nodes(), await directory.wanted()
        silent = await silent_nodes(network.transport, nodes) if ask else frozenset[str]()
        return SwarmListing(nodes, wanted, directory.left_out, silent, directory.is_alone)

    try:
        yield read
    finally:
        await network.close()
