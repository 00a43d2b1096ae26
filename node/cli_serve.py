"""``swarm-node serve`` and ``swarm-node bootstrap``: a node with its signals, progress and status line."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shlex
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ..swarm.types import Span
from .bootstrap import run_bootstrap
from .cli_output import console, events
from .config import BootstrapConfig, NodeConfig, NodeEvent
from .identity_files import IdentityClaim
from .serve import Node

STATUS_LINE_S = 1.0
"""Seconds between refreshes of the status line at a terminal."""


async def run_bootstrap_command(arguments: argparse.Namespace) -> None:
    def on_event(event: NodeEvent) -> None:
        if arguments.json:
            events.print(event.as_dict())
        elif event.event.startswith("network_"):
            _print_network(event)
        elif event.event == "listening":
            _print_addresses(event, "Bootstrap node")
            console.print(f"Join it:   {escape(_join_command(event, 'PATH_OR_NAME', '0-14'))}")
            console.print("Ctrl-C stops it.")

    with IdentityClaim(arguments.identity, "bootstrap") as identity:
        config = BootstrapConfig(
            identity=identity.path,
            host=arguments.host,
            port=arguments.port,
            announce_maddrs=tuple(arguments.announce or ()),
            initial_peers=tuple(arguments.initial_peers or ()),
            relay=arguments.relay,
        )
        running = asyncio.ensure_future(run_bootstrap(config, on_event))
        with _on_stop_signals(running.cancel), contextlib.suppress(asyncio.CancelledError):
            await running


async def run_serve(arguments: argparse.Namespace) -> None:
    with IdentityClaim(arguments.identity, "serve") as identity, _Display(arguments) as display:
        config = node_config(arguments, Path(identity.path))
        node = Node(config, display.on_event, on_progress=display.on_progress)
        with _on_stop_signals(node.request_stop):
            async with display.status_line(node):
                await node.run()


def node_config(arguments: argparse.Namespace, identity: Path) -> NodeConfig:
    """What the words of ``swarm-node serve`` say. Raises UsageError."""
    return NodeConfig(
        model=arguments.model,
        blocks=arguments.blocks,
        initial_peers=tuple(arguments.initial_peers or ()),
        identity=identity,
        host=arguments.host,
        port=arguments.port,
        announce_maddrs=tuple(arguments.announce or ()),
        relays=tuple(arguments.relay or ()),
        device=arguments.device,
        dtype=arguments.dtype,
        quantize=arguments.quantize,
        kernels=arguments.kernels,
        deterministic=arguments.deterministic,
        threads=arguments.threads,
        kv_cache_tokens=arguments.kv_cache_tokens,
        kv_dtype=arguments.kv_dtype,
        prefix_cache=arguments.prefix_cache,
        journal_mib=arguments.journal_mib,
        prefill_target_ms=arguments.prefill_target_ms,
        max_sessions_per_peer=arguments.max_sessions_per_peer,
        max_kv_share_per_peer=arguments.max_kv_share_per_peer,
        idle_session_seconds=arguments.idle_session_seconds,
        drain_seconds=arguments.drain_seconds,
    )


@contextlib.contextmanager
def _on_stop_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call ``stop``; a second Ctrl-C calls it again."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _dialable(maddrs: tuple[str, ...]) -> tuple[str, ...]:
    """The addresses with those of this machine only at the end."""
    return tuple(sorted(maddrs, key=lambda maddr: maddr.startswith(("/ip4/127.", "/ip6/::1/"))))


def _print_addresses(event: NodeEvent, what: str) -> None:
    console.print(f"{what} {escape(event.peer_id)} listens at")
    for maddr in _dialable(event.maddrs):
        console.print(f"  {escape(maddr)}")


def _print_network(event: NodeEvent) -> None:
    if event.event == "network_lost":
        console.print(
            f"[yellow]Network lost[/]: {escape(str(event.details['message']))}; starting it again ..."
        )
    else:
        console.print(f"[green]Network restored[/] after {event.details['seconds']:.1f} s.")


def suggest_blocks(event: NodeEvent) -> str:
    """Blocks that a next peer could serve: those after this node's, those before, or the same again."""
    span, n_blocks = Span.parse(event.blocks), event.details.get("n_blocks")
    if isinstance(n_blocks, int) and span.end < n_blocks:
        return str(Span(span.end, n_blocks))
    return str(Span(0, span.start)) if span.start else str(span)


def _join_command(event: NodeEvent, model: str, blocks: str) -> str:
    address = _dialable(event.maddrs)[0] if event.maddrs else "ADDR"
    return f"swarm-node serve --model {shlex.quote(model)} --blocks {blocks} --initial-peers {address}"


class _Display:
    """What a person sees of a serving node: a progress bar, what it serves, how to join, a status line."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._as_json = bool(arguments.json)
        self._was_online = False
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=console,
            transient=True,
            disable=self._as_json or not console.is_terminal,
        )
        self._task = self._progress.add_task("Loading", total=None, visible=False)

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_progress(self, done: int, total: int, label: str) -> None:
        # rich's progress takes its own lock, so that the loading thread may call this.
        self._progress.update(
            self._task, completed=done, total=total, description=escape(label), visible=done < total
        )

    def on_event(self, event: NodeEvent) -> None:
        if self._as_json:
            events.print(event.as_dict())
            return
        details = event.details
        match event.event:
            case "listening":
                _print_addresses(event, "Node")
            case "compiling":
                console.print("Compiling kernels for this CPU (once, some seconds) ...")
            case "loading":
                console.print(f"Loading blocks {event.blocks} of {escape(event.model)} ...")
            case "online":
                self._progress.stop()
                self._was_online = True
                console.print(
                    f"[green]Online[/]: blocks {event.blocks} of {escape(event.model)} as "
                    f"{escape(str(details.get('weights', '')))}, {details.get('kernels')} kernels, "
                    f"{details.get('kv_cache_tokens')} tokens of {details.get('kv_dtype')} KV cache, "
                    f"{details.get('decode_ms_per_block'):.3f} ms per block and token, "
                    f"prefill {details.get('prefill_tokens_per_s'):.0f} tokens/s"
                )
                if details.get("deterministic"):
                    console.print(
                        f"Deterministic (checked: {details.get('row_check')}): a token's bits depend on its "
                        "own past alone."
                    )
                if details.get("announced") is False:
                    console.print("[yellow]The swarm did not take the announcement yet; trying again.[/]")
                console.print("The next peer joins with:")
                console.print(
                    f"  {escape(_join_command(event, self._arguments.model, suggest_blocks(event)))}"
                )
                console.print("Ctrl-C leaves cleanly.")
            case "network_lost" | "network_restored":
                _print_network(event)
            case "draining":
                console.print(
                    f"Draining: {details.get('sessions')} sessions have "
                    f"{details.get('drain_seconds'):.0f} s to end; Ctrl-C again stops at once."
                )
            case "stopped":
                console.print("Stopped; the announcement is withdrawn." if self._was_online else "Stopped.")

    @contextlib.asynccontextmanager
    async def status_line(self, node: Node) -> AsyncIterator[None]:
        """One line at the bottom of a terminal: load now. Nothing where there is no terminal."""
        if self._as_json or not console.is_terminal:
            yield
            return
        updating = asyncio.create_task(self._update_status(node), name="status-line")
        try:
            yield
        finally:
            updating.cancel()
            await asyncio.gather(updating, return_exceptions=True)

    async def _update_status(self, node: Node) -> None:
        with console.status("Starting ...") as line:
            while True:
                if (statistics := node.statistics()) is not None:
                    server, load = statistics.server, statistics.engine
                    line.update(
                        f"{node.state} · {server.peers} peers · {server.sessions} sessions · "
                        f"{load.tokens_per_s:.0f} tokens/s · batch {load.batch:.1f} · "
                        f"queue {load.queued}, {load.queue_ms:.1f} ms · "
                        f"{server.free_kv_tokens} of {server.total_kv_tokens} KV tokens free · "
                        f"journal {server.journal.used / 2**20:.0f} of {node.config.journal_mib} MiB"
                        + (" · deterministic" if node.config.deterministic else "")
                    )
                await asyncio.sleep(STATUS_LINE_S)
