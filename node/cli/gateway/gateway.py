"""``swarm-node gateway``: an OpenAI-compatible server for the swarm's models."""

from __future__ import annotations

import argparse
import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from ....client.gateway.opening import open_gateway
from ....client.gateway.server import GatewayServer
from ....client.http.tls import tls_of
from ..shared.arguments import client_options
from ..shared.board import Board
from ..shared.output import console, decision_line, events, plural, shown
from ..shared.pasting import completed
from ..shared.signals import on_stop_signals

if TYPE_CHECKING:
    from ....shards.checkpoint.name_decision import NameDecision


async def run_gateway(arguments: argparse.Namespace) -> None:
    display = _Display(arguments)
    stop = asyncio.Event()
    stops = 0

    def on_signal() -> None:
        nonlocal stops
        stops += 1
        stop.set()
        if stops > 1 and running is not None:
            running.drop_all()
        elif running is None and opening is not None:
            opening.cancel()

    running: GatewayServer | None = None
    opening = asyncio.current_task()
    try:
        with display, on_stop_signals(on_signal):
            async with open_gateway(
                **_options(arguments), on_progress=display.progress, on_decision=display.decision
            ) as running:
                display.listening(running)
                await stop.wait()
                display.draining(running, arguments.drain_seconds)
                await running.stop(drain_s=arguments.drain_seconds)
    except asyncio.CancelledError:
        if not stops:
            raise
    display.stopped()


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "models": arguments.model,
        "host": arguments.host,
        "port": arguments.port,
        "api_key_file": arguments.api_key_file,
        "metrics_key_file": arguments.metrics_key_file,
        "tls": tls_of(arguments.tls_cert, arguments.tls_key),
        "cors_origins": tuple(arguments.cors_origin or ()),
        "limits": {
            "max_running": arguments.max_running,
            "max_requests": arguments.max_requests,
            "requests_per_minute": arguments.requests_per_minute,
            "default_max_tokens": arguments.default_max_tokens,
            "max_body_bytes": round(arguments.max_body_mib * 2**20),
            "stall_s": arguments.stall_seconds,
        },
        "max_connections": arguments.max_connections,
        "complete": partial(completed, arguments=arguments),
        "speculate": arguments.speculate,
        **client_options(arguments),
    }


class _Display:
    """What a person, or with ``--json`` a program, sees of a gateway."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._as_json = bool(arguments.json)
        self._board = Board("Opening the models ...", speak=not self._as_json)

    def __enter__(self) -> _Display:
        self._board.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()

    def progress(self, text: str) -> None:
        self._board.status(text)

    def decision(self, decision: NameDecision) -> None:
        if self._as_json:
            events.print({"event": "model_choice", **decision.as_dict()})
        else:
            console.print(decision_line(decision))

    def listening(self, server: GatewayServer) -> None:
        self._board.close()
        gateway = server.gateway
        if self._as_json:
            events.print(
                {
                    "event": "listening",
                    "url": server.url,
                    "models": gateway.offers.ids,
                    "api_keys": gateway.keys.needed,
                    "max_connections": server.max_connections,
                }
            )
            return
        names = shown(", ".join(gateway.offers.ids))
        console.print(f"[green]Listening[/] at {shown(server.url)} for {names}")
        console.print(f"  chat page: {shown(server.url)}/")
        console.print(f"  the swarm, live: {shown(server.url)}/swarm")
        console.print(f"  base URL for OpenAI's clients: {shown(server.url)}/v1")
        console.print(f"  for Anthropic's and Ollama's:  {shown(server.url)}")
        if not gateway.keys.needed and not server.is_local:
            console.print(
                "[yellow]Everybody who reaches this address can use it[/]. Ask for keys: --api-key-file."
            )
        console.print("Ctrl-C stops it.")

    def draining(self, server: GatewayServer, seconds: float) -> None:
        requests = server.gateway.answering
        if self._as_json:
            events.print({"event": "draining", "requests": requests, "drain_seconds": seconds})
        elif requests:
            console.print(
                f"Draining: {plural(requests, 'request')} {'has' if requests == 1 else 'have'} "
                f"{seconds:.0f} s to end. Another Ctrl-C stops at once."
            )

    def stopped(self) -> None:
        if self._as_json:
            events.print({"event": "stopped"})
        else:
            console.print("Stopped.")
