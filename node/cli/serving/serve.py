"""``swarm-node serve``: a node with its signals, progress and status line."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import cast

from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from ....shards.checkpoint.known_models import default_known
from ....shards.models.devices import DeviceChoice, choose_device
from ....swarm.errors import UsageError
from ....swarm.naming.witnesses import Witnesses
from ....swarm.placement.types import gigabytes
from ....swarm.transport.direct_maddrs import DirectOptions
from ....swarm.types import Span, short_peer_id
from ...auto.blocks import begin_auto
from ...auto.machine import room_for
from ...auto.on_demand import OnDemand
from ...auto.wanted_models import WantedModels
from ...config import NodeConfig, NodeEvent
from ...identity_files import IdentityClaim
from ...node import Node, Service
from ...weights.found_model import FoundModel
from ...weights.sharing import WeightOptions, WeightService
from ..metrics.node import node_metrics
from ..shared.arguments import entry_of
from ..shared.network_lines import print_addresses, print_direct, print_join, print_network
from ..shared.output import console, events, plural, shown
from ..shared.signals import at_end_of_input, on_stop_signals

STATUS_LINE_S = 1.0
"""Seconds between refreshes of the status line at a terminal."""


async def run_serve(arguments: argparse.Namespace) -> None:
    with IdentityClaim(arguments.identity, "serve") as identity, _Display(arguments) as display:
        config = node_config(arguments, Path(identity.path))
        if not arguments.json and (note := device_of(arguments).note):
            console.print(f"[yellow]{shown(note)}[/]")
        weights = WeightService(weight_options(arguments), display.on_hashing)
        source = FoundModel(config.model, weights, display.on_progress)
        if config.model:
            await source.locate()

        def on_demand(node: Node) -> OnDemand:
            return OnDemand(
                node,
                WantedModels(
                    node.directory,
                    node.peer_id,
                    config.models,
                    witnesses=Witnesses(node.transport),
                    known=default_known(),
                ),
                lambda place: FoundModel(place.name, weights, display.on_progress, location=place),
                home=source if config.model else None,
            )

        node = Node(
            config,
            display.on_event,
            on_progress=display.on_progress,
            source=source,
            services=[weights, *_dashboard(arguments)],
            begin_auto=begin_auto,
            on_demand=on_demand if config.models else None,
        )
        at_end = at_end_of_input if arguments.until_eof else contextlib.nullcontext
        with on_stop_signals(node.request_stop), at_end(node.request_stop):
            async with display.status_line(node), node_metrics(arguments, node, weights):
                await node.run()


def _dashboard(arguments: argparse.Namespace) -> list[Service]:
    """The service for ``--dashboard``. Raises UsageError, ListenError."""
    if arguments.dashboard is None:
        return []
    from ....client.http.extra import require_http

    require_http("--dashboard")
    from ..dashboard.beside_node import dashboard_service

    return [dashboard_service(arguments)]


def weight_options(arguments: argparse.Namespace) -> WeightOptions:
    megabits = arguments.weights_bandwidth
    return WeightOptions(
        share=arguments.share_weights,
        bytes_per_s=None if megabits is None else megabits * 125_000,
        cache_bytes=arguments.cache_size,
    )


def device_of(arguments: argparse.Namespace) -> DeviceChoice:
    """``--device auto`` is the CPU where an option asks for what only that can do."""
    return choose_device(arguments.device, only_cpu=arguments.deterministic or arguments.kernels != "auto")


def node_config(arguments: argparse.Namespace, identity: Path) -> NodeConfig:
    """What the words of ``swarm-node serve`` say. Raises UsageError."""
    entry = entry_of(arguments)
    return NodeConfig(
        model=arguments.model,
        models=tuple(arguments.models or ()),
        blocks=arguments.blocks if isinstance(arguments.blocks, Span) else None,
        auto=arguments.blocks == "auto",
        memory=arguments.memory,
        initial_peers=entry.initial_peers,
        may_meet=entry.may_meet,
        membership=entry.membership,
        mdns=entry.mdns,
        pure_python=entry.pure_python,
        identity=identity,
        host=arguments.host,
        port=arguments.port,
        announce_maddrs=tuple(arguments.announce or ()),
        direct=direct_options(arguments, pure_python=entry.pure_python),
        relays=tuple(arguments.relay or ()),
        device=device_of(arguments).name,
        auto_device=arguments.device == "auto",
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


def direct_options(arguments: argparse.Namespace, *, pure_python: bool) -> DirectOptions | None:
    """Raises UsageError."""
    announce = tuple(arguments.announce_direct or ())
    if not arguments.direct:
        if announce or arguments.direct_port is not None:
            raise UsageError(
                "--no-direct goes with neither --direct-port nor --announce-direct",
                hint="Leave --no-direct out to have a direct listener, or leave the others out to have none.",
            )
        if pure_python:
            raise UsageError(
                "--no-direct does not go with --pure-python: such a node has no other way to its peers",
                hint="Leave one of the two out.",
            )
        return None
    for maddr in announce:
        if re.search(r"/tcp/0+(/|$)", maddr):
            raise UsageError(
                f"nobody can dial port 0 of --announce-direct {maddr[:200]}",
                hint="Give the port that leads to the direct listener from outside, and its own with "
                "--direct-port.",
            )
    return DirectOptions(arguments.direct_port, announce)


def _fetched(details: Mapping[str, object]) -> str:
    """``Fetched 98 MB in 1.2 s: 60 MB from …a1b2c3, 38 MB from …d4e5f6.``"""
    parts = cast(Mapping[str, int], details["bytes_by_source"])
    largest = sorted(parts.items(), key=lambda part: -part[1])[:4]
    sources = ", ".join(
        f"{n / 1e6:.0f} MB from {shown(peer if ' ' in peer else short_peer_id(peer))}" for peer, n in largest
    )
    size = cast(int, details["bytes"]) / 1e6
    return f"Fetched {size:.0f} MB of weights in {details['seconds']:.1f} s: {sources}."


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


class _Display:
    """What a person sees of a serving node: a progress bar, what it serves, how to join, a status line."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._as_json = bool(arguments.json)
        self._was_online = self._stands_by = self._failed = self._shares = False
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
        self._hashing = self._progress.add_task("Hashing", total=None, visible=False)

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_progress(self, done: int, total: int, label: str) -> None:
        self._show(self._task, done, total, label)

    def on_hashing(self, done: int, total: int, label: str) -> None:
        self._show(self._hashing, done, total, label)

    def _show(self, task: TaskID, done: int, total: int, label: str) -> None:
        # rich's progress takes its own lock, so that the loading thread may call this.
        self._progress.update(
            task, completed=done, total=total, description=shown(label), visible=done < total
        )

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
                self._progress.stop()
                self._was_online = True
                console.print(
                    f"[green]Online[/]: blocks {event.blocks} of {shown(event.model)} as "
                    f"{shown(str(details.get('weights', '')))}, {details.get('kernels')} kernels, "
                    f"{details.get('kv_cache_tokens')} tokens of {details.get('kv_dtype')} KV cache, "
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
                if self._shares and Path(model).exists():
                    model = event.model  # other machines have no such path, and get the files by name
                print_join(self._arguments, event, model)
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
                console.print(f"Found peer {short_peer_id(str(details['found']))} on this network.")
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
                size = cast(int, details["bytes"]) / 1e6
                console.print(f"Sharing the model's files, {size:.0f} MB, with peers that ask for them.")
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
            case "stopped" if self._was_online:
                console.print("Stopped; the announcement is withdrawn.")
            case "stopped" if not self._failed:
                console.print("Stopped.")

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
                        f"{node.state} · {server.peers} peers · {plural(server.sessions, 'session')} · "
                        f"{load.tokens_per_s:.0f} tokens/s · batch {load.batch:.1f} · "
                        f"queue {load.queued}, {load.queue_ms:.1f} ms · "
                        f"{server.free_kv_tokens} of {server.total_kv_tokens} KV tokens free · "
                        f"journal {server.journal.used / 2**20:.0f} of {node.config.journal_mib} MiB"
                        + (" · deterministic" if node.config.deterministic else "")
                    )
                elif self._stands_by:
                    line.update("Standing by")
                await asyncio.sleep(STATUS_LINE_S)
