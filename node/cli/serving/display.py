"""What a person, or with ``--json`` a program, sees of a serving node."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import cast

from ....swarm.placement.types import gigabytes
from ....swarm.types import short_peer_id
from ...auto.machine import room_for
from ...config import NodeEvent
from ...node import Node
from ..shared.board import Board
from ..shared.network_lines import print_addresses, print_direct, print_join, print_network
from ..shared.output import NO_NODE, console, events, plural, shown

STATUS_LINE_S = 1.0
"""Seconds between refreshes of the status line at a terminal."""


def _fetched(details: Mapping[str, object]) -> str:
    """``Fetched 98 MB in 1.2 s: 60 MB from …a1b2c3, 38 MB from …d4e5f6.``"""
    parts = cast(Mapping[str, int], details["bytes_by_source"])
    largest = sorted(parts.items(), key=lambda part: -part[1])[:4]
    sources = ", ".join(
        f"{gigabytes(n)} from {shown(peer if ' ' in peer else short_peer_id(peer))}" for peer, n in largest
    )
    size = gigabytes(cast(int, details["bytes"]))
    return f"Fetched {size} of weights in {details['seconds']:.1f} s: {sources}."


def _auto_line(event: NodeEvent) -> str:
    """What a node that chooses its blocks itself tells a person: a line with markup; "" for other events."""
    details = event.details
    match event.event:
        case "measured":
            return (
                f"This machine: {gigabytes(_number(details['memory_bytes']))} usable, "
                f"{room_for(cast(int, details['max_blocks']), cast(int, details['max_lean_blocks']))}, "
                f"{_number(details['decode_ms_per_block']):.3f} ms per block "
                "and token"
            )
        case "planned":
            return f"It will {shown(str(details['why']))}"
        case "standing_by":
            why = str(details["why"]).removeprefix("stands by: ")
            return f"[yellow]Standing by[/]: {shown(why)}. It looks again by itself."
        case "moving":
            return f"Moving from blocks {event.blocks} to {details['to']}: {shown(str(details['why']))}"
        case "staying":
            return f"Staying at blocks {event.blocks}: {shown(str(details['why']))}"
        case "memory_short":
            most = _number(details["max_blocks"])
            then = f"trying {most:.0f} blocks at most" if most else "not one block fits"
            return f"[yellow]Memory is short[/]: {shown(str(details['message']))}; {then}"
        case _:
            return ""


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _states(free: int, total: int) -> list[str]:
    return [f"states for {free} of {total} sessions free"] if total else []


def load_line(node: Node) -> str:
    """What a node that serves does now, and has done since it started."""
    figures = node.figures()
    load, work = figures.load, figures.work
    if load is None:
        return str(figures.state)
    server, engine = load.server, load.engine
    return " · ".join(
        (
            str(figures.state),
            f"{engine.tokens_per_s:.0f} tokens/s",
            plural(server.sessions, "session"),
            f"{work.tokens} tokens served to {plural(work.peers_served, 'peer')}",
            f"queue {engine.queued}, {engine.queue_ms:.1f} ms",
            f"KV {100 * server.free_kv_tokens // max(1, server.total_kv_tokens)} % free",
            *_states(server.free_state_sessions, server.state_sessions),
            f"journal {server.journal.used / 2**20:.0f} of {node.config.journal_mib} MiB",
        )
    )


class Display:
    """What a person sees of a serving node: a progress bar, what it serves, how to join, a status line."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._as_json = bool(arguments.json)
        self._was_online = self._stands_by = self._failed = self._shares = self._rests = False
        # Without a terminal the events are enough: they go into a log.
        self._board = Board("Starting ...", speak=console.is_terminal and not self._as_json)

    def __enter__(self) -> Display:
        self._board.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()

    def on_progress(self, done: int, total: int, label: str) -> None:
        self._board.progress(done, total, label, "Loading")

    def on_hashing(self, done: int, total: int, label: str) -> None:
        self._board.progress(done, total, label, "Hashing")

    def on_rest(self, why: str) -> None:
        """The node rests, or may serve again (no reason)."""
        self._rests = bool(why)
        if self._as_json:
            events.print({"event": "resting" if why else "rested", "why": why, **NO_NODE})
        elif why:
            console.print(f"[yellow]Resting[/]: {shown(why)}. It serves again by itself.")
            self._board.status("Resting")
        else:
            console.print("Serving again.")

    def stopped(self) -> None:
        """The command ended while the node rested."""
        if self._as_json:
            events.print({"event": "stopped", **NO_NODE})
        else:
            console.print("Stopped.")

    def on_event(self, event: NodeEvent) -> None:
        self._stands_by = event.event == "standing_by" or (self._stands_by and event.event != "loading")
        if self._as_json:
            events.print(event.as_dict())
            return
        details = event.details
        match event.event:
            case "listening":
                print_addresses(self._arguments, event, "Node")
                print_direct(event)
            case "compiling":
                console.print("Compiling kernels for this CPU (once, some seconds) ...")
            case "loading":
                console.print(f"Loading blocks {event.blocks} of {shown(event.model)} ...")
            case "online":
                self._was_online = True
                sessions = cast(int, details.get("state_sessions", 0))
                states = f", states of {plural(sessions, 'session')}" if sessions else ""
                console.print(
                    f"[green]Online[/]: blocks {event.blocks} of {shown(event.model)} as "
                    f"{shown(str(details.get('weights', '')))}, {details.get('kernels')} kernels, "
                    f"{details.get('kv_cache_tokens')} tokens of {details.get('kv_dtype')} KV cache{states}, "
                    f"{details.get('decode_ms_per_block'):.3f} ms per block and token, "
                    f"prefill {details.get('prefill_tokens_per_s'):.0f} tokens/s"
                )
                if details.get("deterministic"):
                    console.print(
                        f"Deterministic (check {details.get('row_check')}): a token's bits depend only on "
                        "the tokens before it."
                    )
                if details.get("announced") is False:
                    console.print(
                        "[yellow]The swarm has not taken the announcement yet. The node tries again.[/]"
                    )
                model = self._arguments.model or event.model
                print_join(self._arguments, event, model, shares=self._shares)
                console.print("Ctrl-C stops it.")
            case "dashboard":
                console.print(f"[green]Dashboard[/] at {shown(str(details['url']))}")
            case "model_choice":
                loud = "bold yellow" if details["is_change"] else "yellow"
                console.print(f"[{loud}]{shown(str(details['message']))}[/]")
            case "unseen":
                message = shown(str(details["message"]))
                console.print(f"[yellow]Not seen[/]: {message}. It announces itself to more of them.")
            case "copied":
                console.print(f"[bold yellow]Careful[/]: {shown(str(details['message']))}")
            case "seen":
                console.print("[green]Seen again[/] in the swarm's directory.")
            case "peer_found":
                console.print(f"Found peer {short_peer_id(str(details['found']))}.")
            case "wanted":
                clients = plural(cast(int, details["peers"]), "client")
                console.print(f"Wanted by {clients}: {shown(str(details['wanted']))}. The node loads it.")
            case "wish_failed":
                wanted = f"{details['wanted']}: {details['message']}"
                console.print(f"[yellow]Cannot serve[/] {shown(wanted)}")
            case "waiting":
                line = f"{details['message']}. {details['hint']}"
                console.print(f"[yellow]Waiting[/]: {shown(line)}")
            case "not_sharing":
                self._shares = False
                console.print(f"[yellow]Not sharing its weights[/]: {shown(str(details.get('message')))}")
            case "tokenizer_unreadable":
                line = f"{details['message']}. It is served as it is until the node starts with other files."
                console.print(
                    f"[yellow]No client can read this model[/]: {shown(line)} {shown(str(details['hint']))}"
                )
            case "coarse_codecs" if coarse := cast(list[str], details["codecs"]):
                errors = cast(dict[str, float], details["errors"])
                kinds = ", ".join(f"{kind} ({errors.get(kind, 0):.1%})" for kind in coarse)
                console.print(f"[yellow]Rows lose too much in {kinds}[/]: new sessions send finer ones.")
            case "weights_damaged":
                console.print(f"[yellow]{shown(str(details['message']))}.[/]")
            case "sharing":
                self._shares = True
                size = gigabytes(cast(int, details["bytes"]))
                console.print(f"Sharing the model's files, {size}, with peers that ask for them.")
            case "fetched":
                console.print(_fetched(details))
            case "network_lost" | "network_restored":
                print_network(event)
            case "draining":
                sessions = cast(int, details.get("sessions", 0))
                console.print(
                    f"Draining: {plural(sessions, 'session')} {'has' if sessions == 1 else 'have'} "
                    f"{details.get('drain_seconds'):.0f} s to end. Another Ctrl-C stops at once."
                )
            case _ if line := _auto_line(event):
                console.print(line)
            case "error":
                self._failed = True  # which is said at the end
            case "stopped" if self._rests:
                console.print("It has left the swarm.")
            case "stopped" if self._was_online:
                console.print("Stopped; the announcement is withdrawn.")
            case "stopped" if not self._failed:
                console.print("Stopped.")

    @contextlib.asynccontextmanager
    async def status_line(self, node: Node) -> AsyncIterator[None]:
        """One line at the bottom of a terminal: load now. Nothing where there is no terminal."""
        updating = asyncio.create_task(self._update_status(node), name="status-line")
        try:
            yield
        finally:
            updating.cancel()
            await asyncio.gather(updating, return_exceptions=True)

    async def _update_status(self, node: Node) -> None:
        while self._board.is_live:
            if node.statistics() is not None:
                self._board.status(load_line(node))
            elif self._stands_by:
                self._board.status("Standing by")
            await asyncio.sleep(STATUS_LINE_S)
