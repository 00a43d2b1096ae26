"""``swarm-node serve``: a node with its signals, progress and status line."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

from ....shards.checkpoint.known_models import default_known
from ....shards.models.devices import DeviceChoice, choose_device
from ....swarm.errors import UsageError
from ....swarm.naming.witnesses import Witnesses
from ....swarm.transport.direct_maddrs import DirectOptions
from ....swarm.transport.limited import BYTES_PER_MBIT, Bandwidth
from ....swarm.types import Span
from ...auto.blocks import begin_auto
from ...auto.on_demand import OnDemand
from ...auto.wanted_models import WantedModels
from ...config import NodeConfig
from ...identity_files import IdentityClaim
from ...node import Node, Service
from ...volunteering.policy import RestPolicy
from ...weights.found_model import FoundModel
from ...weights.sharing import WeightOptions, WeightService
from ..metrics.node import node_metrics
from ..shared.arguments import entry_of
from ..shared.output import console, shown
from ..shared.signals import at_end_of_input, on_stop_signals
from .display import Display
from .serving_times import ServingTimes, StopRequest, lower_priority, volunteer_limits


async def run_serve(arguments: argparse.Namespace) -> None:
    lower_priority(arguments.nice)
    with IdentityClaim(arguments.identity, "serve") as identity, Display(arguments) as display:
        config = node_config(arguments, Path(identity.path))
        if not arguments.json and (note := device_of(arguments).note):
            console.print(f"[yellow]{shown(note)}[/]")
        limits = volunteer_limits(arguments)
        times = ServingTimes(RestPolicy(limits), display.on_rest) if limits else None
        stop = StopRequest()
        if arguments.until_eof:
            at_end_of_input(stop)

        def rests() -> bool:
            return times is not None and times.rests

        with on_stop_signals(stop):
            async with node_metrics(arguments, display.on_event, rests) as metrics:
                while not stop.requested:
                    if times is not None and not await stop.before(times.may_serve()):
                        break
                    opened = await stop.before(_open_node(arguments, config, display))
                    if opened is None:
                        break
                    node, weights = opened
                    stop.calls(node.request_stop)
                    with metrics.of(node, weights):
                        await _run(node, times, display)
                    if times is None or stop.requested:
                        return
                display.stopped()


async def _run(node: Node, times: ServingTimes | None, display: Display) -> None:
    """Until it ends, or must rest."""
    async with display.status_line(node):
        if times is None:
            await node.run()
        else:
            await times.serve(node.run(), node.request_stop)


async def _open_node(
    arguments: argparse.Namespace, config: NodeConfig, display: Display
) -> tuple[Node, WeightService]:
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
    return node, weights


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
        bytes_per_s=None if megabits is None else megabits * BYTES_PER_MBIT,
        cache_bytes=arguments.cache_size,
    )


def bandwidth_of(arguments: argparse.Namespace) -> Bandwidth:
    return Bandwidth(
        *(
            math.inf if megabits is None else megabits * BYTES_PER_MBIT
            for megabits in (arguments.bandwidth_up, arguments.bandwidth_down)
        )
    )


def device_of(arguments: argparse.Namespace) -> DeviceChoice:
    """``--device auto`` is the CPU where an option asks for what only that can do."""
    return choose_device(arguments.device, only_cpu=arguments.deterministic or arguments.kernels != "auto")


def node_config(arguments: argparse.Namespace, identity: Path) -> NodeConfig:
    """What the words of ``swarm-node serve`` say. Raises UsageError."""
    entry = entry_of(arguments)
    return NodeConfig(
        name=arguments.name,
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
        bandwidth=bandwidth_of(arguments),
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
