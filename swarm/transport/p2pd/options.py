"""What p2pd is started with: its command line and environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import hivemind.hivemind_cli
from hivemind.p2p.p2p_daemon_bindings.control import DEFAULT_MAX_MSG_SIZE

from ...identity import Identity
from ..addresses import PeerAddress

MOST_CIRCUITS = 256
"""A relay carries at most this many connections to one node."""
CIRCUIT_LIFE = "24h"
"""A relay ends a connection after this time, in Go's notation; its users then open another."""


@dataclass(frozen=True, slots=True)
class P2pdOptions:
    """``host_maddrs``: where to listen, with real ports, since a daemon that takes another's place listens at
    the same ones. ``announce_maddrs`` replaces the addresses that others are told. ``relays``: through which
    others reach us if they cannot dial us; ``is_relay``: be one for others. ``figures_port``: where on this
    machine the daemon tells what it counts; 0: nowhere.
    """

    identity: Identity
    host_maddrs: tuple[str, ...] = ()
    announce_maddrs: tuple[str, ...] = ()
    client_mode: bool = False
    nat_port_map: bool = False
    relays: tuple[str, ...] = ()
    is_relay: bool = False
    figures_port: int = 0

    def circuits(self) -> tuple[str, ...]:
        """The addresses that we have at our relays."""
        return tuple(f"{relay}/p2p-circuit" for relay in self.relays)

    def announcing(self, maddrs: tuple[str, ...]) -> P2pdOptions:
        return replace(self, announce_maddrs=maddrs)

    def without_relays(self) -> P2pdOptions:
        return replace(self, relays=())

    def arguments(self, control_socket: Path, key_file: str) -> list[str]:
        """``key_file``: where it reads the identity's key."""
        options: dict[str, Any] = {
            "listen": f"/unix{control_socket}",
            "id": key_file,
            "autoRelay": bool(self.relays),
            "autonat": True,
            "b": False,  # we connect to the initial peers ourselves, with errors that say which and why
            "connManager": True,
            "idleTimeout": "30s",
            "natPortMap": self.nat_port_map,
            "relay": True,
            "relayService": self.is_relay,
            "tls": True,
            "persistentConnMaxMsgSize": DEFAULT_MAX_MSG_SIZE,
            "dhtClient" if self.client_mode else "dhtServer": True,
        }
        if self.client_mode:
            options["noListenAddrs"] = True
        elif self.host_maddrs:
            options["hostAddrs"] = ",".join(self.host_maddrs)
        if self.announce_maddrs:
            options["announceAddrs"] = ",".join(self.announce_maddrs)
        if self.relays:
            options["forceReachabilityPrivate"] = True
            # One address each: p2pd gets no place at a relay that it is given twice. It knows the others from
            # its connections.
            each: dict[str, str] = {}
            for relay in self.relays:
                each.setdefault(PeerAddress.parse(relay).peer_id, relay)
            options["trustedRelays"] = ",".join(each.values())
            options["relayDiscovery"] = False  # it looks for others for minutes before it asks these
        if self.figures_port:
            options["metricsAddr"] = f"127.0.0.1:{self.figures_port}"
        if self.is_relay:
            options["forceReachabilityPublic"] = True
            options["relayMaxCircuits"] = MOST_CIRCUITS
            options["relayTimeLimit"] = CIRCUIT_LIFE
        words = (
            f"-{name}={int(value) if isinstance(value, bool) else value}" for name, value in options.items()
        )
        return [str(files(hivemind.hivemind_cli) / "p2pd"), *words]

    def environment(self) -> dict[str, str]:
        environment = {"GOLOG_LOG_LEVEL": "error", **os.environ}
        if self.is_relay:
            # p2pd starts two relay services, and the one with small limits must not win the race.
            environment["GOMAXPROCS"] = "1"
        return environment
