"""A bootstrap node: a meeting point for the DHT that serves no blocks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from ..dht.joining.network import Network, NetworkFigures, network_event, open_network
from ..swarm.errors import SwarmError
from ..swarm.identity import Identity
from ..swarm.runtime.tasks import first
from ..swarm.transport.interface import NetworkChange, NetworkRestored
from .config import BootstrapConfig, EventName, NodeEvent, OnEvent

FIGURES_S = 1.0
"""Seconds between two looks at what it does."""

logger = logging.getLogger(__name__)


async def run_bootstrap(
    config: BootstrapConfig,
    on_event: OnEvent,
    *,
    on_figures: Callable[[NetworkFigures], None] | None = None,
    network: Network | None = None,
) -> None:
    """Listen and keep the DHT together until cancelled. Raises SwarmError, after an ``error`` event.

    Events: ``listening`` with the addresses others join through, ``online``, ``network_lost`` and
    ``network_restored``, ``stopped`` with what it has relayed. ``on_figures`` is told every FIGURES_S.
    """
    peer_id = ""
    maddrs: tuple[str, ...] = ()

    def emit(event: EventName, details: Mapping[str, object] | None = None) -> None:
        logger.info("event=%s peer=%s", event, peer_id)
        on_event(NodeEvent(event, peer_id=peer_id, maddrs=maddrs, details=details or {}))

    async def on_network(change: NetworkChange) -> None:
        nonlocal maddrs
        if isinstance(change, NetworkRestored) and network is not None:
            maddrs = await network.transport.maddrs()
        emit(*network_event(change))

    try:
        if network is None:
            identity = Identity.load_or_create(config.identity) if config.identity else Identity.generate()
            network = await open_network(identity, **config.network_options(), is_relay=config.relay)
        peer_id = network.transport.peer_id
        maddrs = await network.transport.maddrs()
        network.watch(on_network)
        emit("listening")
        emit("online")
        network.on_peer(lambda found: emit("peer_found", {"found": found}))
        if on_figures is None:
            await network.failed()
        else:
            await first(network.failed(), _tell_figures(network, on_figures))
    except SwarmError as error:
        emit("error", {"message": error.message, "hint": error.hint})
        raise
    finally:
        figures = NetworkFigures()
        if network is not None:
            figures = await network.figures()
            await network.close()
        emit("stopped", {"relayed_bytes": figures.relayed_bytes})


async def _tell_figures(network: Network, on_figures: Callable[[NetworkFigures], None]) -> None:
    """Until cancelled."""
    while True:
        on_figures(await network.figures())
        await asyncio.sleep(FIGURES_S)
