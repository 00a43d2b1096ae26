"""``swarm-node dashboard``: a swarm in a browser, from a process that serves nothing else."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import AsyncExitStack
from functools import partial

from ....client.dashboard.dashboard import Dashboard
from ....client.dashboard.server import DashboardServer
from ....client.dashboard.source import NoFigures
from ....client.http.admission import ApiKeys
from ....client.http.listening import is_local, listen
from ....client.http.tls import tls_of
from ....dht.joining.client import join_as_client
from ....swarm.errors import UsageError
from ..shared.arguments import entry_of
from ..shared.output import console, events, shown
from ..shared.pasting import completed
from ..shared.progress import progress_shown
from ..shared.signals import on_stop_signals


async def run_dashboard(arguments: argparse.Namespace) -> None:
    entry = entry_of(arguments)
    keys = ApiKeys() if arguments.api_key_file is None else ApiKeys.read(arguments.api_key_file)
    tls = tls_of(arguments.tls_cert, arguments.tls_key)
    stop = asyncio.Event()
    joining = asyncio.current_task()

    def on_signal() -> None:
        stop.set()
        if joining is not None:
            joining.cancel()

    try:
        async with AsyncExitStack() as stack:
            stack.enter_context(on_stop_signals(on_signal))
            listener = listen(arguments.host, arguments.port)
            stack.callback(listener.close)
            if not (is_local(listener) or keys.needed):
                raise UsageError(
                    "others than this computer see a dashboard only with a key",
                    hint="Give --api-key-file FILE, a text file with one key a line, or leave --host out.",
                )
            with progress_shown("Looking for the swarm ...", speak=not arguments.json) as line:
                network = await join_as_client(entry, line.update)
            stack.push_async_callback(network.close)
            dashboard = Dashboard(
                network.directory,
                NoFigures(),
                complete=partial(completed, arguments=arguments),
                name=entry.name,
            )
            await stack.enter_async_context(dashboard)
            server = await stack.enter_async_context(DashboardServer(dashboard, listener, keys, tls=tls))
            joining = None
            url = f"{server.url}/swarm"
            if arguments.json:
                events.print({"event": "dashboard", "url": url})
            else:
                console.print(f"[green]Dashboard[/] at {shown(url)}\nCtrl-C stops it.")
            await stop.wait()
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
