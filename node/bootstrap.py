"""A bootstrap node: a meeting point for the DHT that serves no blocks."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ..dht.joining.network import Network, network_event, open_network
from ..swarm.errors import SwarmError
from ..swarm.identity import Identity
from ..swarm.transport.interface import NetworkChange, NetworkRestored
from .config import BootstrapConfig, NodeEvent, OnEvent

logger = logging.getLogger(__name__)


async def run_bootstrap(
    config: BootstrapConfig, on_event: OnEvent, *, network: Network | None = None
) -> None:
    """Listen and keep the DHT together until cancelled. Raises SwarmError, after an ``error`` event.

    Events: ``listening`` with the addresses others join through, ``online``, ``network_lost`` and
    ``network_restored``, ``stopped``.
    """
    peer_id = ""
    maddrs: tuple[str, ...] = ()

    def emit(event: str, details: Mapping[str, object] | None = None) -> None:
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
        await network.failed()
    except SwarmError as error:
        emit("error", {"message": error.message, "hint": error.hint})
        raise
    finally:
        if network is not None:
            await network.close()
        emit("stopped")
