"""Ports, interfaces, the daemon, and who can reach this machine."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Mapping, Sequence

import psutil

from ...dht.joining.network import lacks_p2pd
from ...swarm.discovery.local_networks import fours_apart, lan_addresses
from ...swarm.errors import ListenError, NetworkError
from ...swarm.transport.addresses import listenable
from .finding import Finding, Health


def look_at_ports(ports: Mapping[str, int]) -> Sequence[Finding]:
    """``ports``: the default TCP port of each command that has one."""
    taken = {}
    for command, port in ports.items():
        try:
            listenable([f"/ip4/0.0.0.0/tcp/{port}"])
        except ListenError:
            taken[command] = port
    if not taken:
        return [
            Finding("ports", Health.OK, f"the default ports are free: {', '.join(map(str, ports.values()))}")
        ]
    command, port = next(iter(taken.items()))
    told = ", ".join(f"{port} ({command})" for command, port in taken.items())
    return [
        Finding(
            "ports",
            Health.WARN,
            f"in use: {told}",
            f"If that is not your own {command}, take another port: swarm-node {command} --port {port + 1}",
            {"holders": ", ".join(_holders(set(taken.values()))) or "not told by the system"},
        )
    ]


def _holders(ports: set[int]) -> list[str]:
    """The processes that listen there, as far as the system tells this user."""
    found = []
    with contextlib.suppress(psutil.Error):
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port in ports and each.pid:
                with contextlib.suppress(psutil.Error):
                    found.append(f"{each.laddr.port}: {psutil.Process(each.pid).name()} ({each.pid})")
    return sorted(set(found))


def look_at_interfaces() -> Sequence[Finding]:
    lan, apart = lan_addresses(), fours_apart()
    public = [each for each in apart if ipaddress.ip_address(each).is_global]
    details = {"private": ", ".join(lan), "others": ", ".join(apart)}
    fours = [each for each in lan if ":" not in each]
    if fours or (lan and not apart):
        found = [Finding("local network", Health.OK, "mDNS finds and tells peers here", "", details)]
    elif lan:
        found = [
            Finding(
                "local network",
                Health.WARN,
                "the IPv4 address is not private: mDNS speaks over IPv6 alone",
                "Give machines without IPv6 the address that `swarm-node serve` prints, as --initial-peers.",
                details,
            )
        ]
    else:
        found = [
            Finding(
                "local network",
                Health.WARN,
                "there is no private address: mDNS finds nobody here",
                "Give every command the address that `swarm-node serve` prints, as --initial-peers.",
                details,
            )
        ]
    return [*found, _outside(bool(public))]


def _outside(has_public: bool) -> Finding:
    """What can be known without somebody outside who dials back."""
    if has_public:
        return Finding(
            "from outside",
            Health.UNKNOWN,
            "there is a public address; whether a firewall is before it, only another network can tell",
            "Start `swarm-node serve` here, and ask on a machine elsewhere: swarm-node status "
            "--initial-peers, with the public address that it prints.",
        )
    return Finding(
        "from outside",
        Health.WARN,
        "there is no public address: other networks reach a node here through a relay or a forwarded port",
        "Give serve --relay with the address of a `swarm-node bootstrap --relay`, or --announce behind a "
        "forwarded port.",
    )


async def look_at_daemon() -> Sequence[Finding]:
    if os.name == "nt" or lacks_p2pd():
        return [
            Finding(
                "p2pd", Health.WARN, "it is not there: no DHT, relays and hole punching", "Use --pure-python."
            )
        ]
    from ...swarm.transport.p2pd.transport import P2pdTransport  # here: it takes a tenth of a second

    try:
        transport = await P2pdTransport.create(client_mode=True)
    except NetworkError as error:
        advice = "Install hivemind again, or go without it: --pure-python"
        return [Finding("p2pd", Health.FAIL, "it does not start", advice, {"error": error.message})]
    await transport.close()
    return [Finding("p2pd", Health.OK, "it starts and answers")]


async def look_at_relays(relays: Sequence[str]) -> Sequence[Finding]:
    """Whether a stranger reaches a node of this machine through one of ``relays``."""
    if not relays:
        return []
    from ...swarm.transport.p2pd.relay_check import check_reachable
    from ...swarm.transport.p2pd.transport import P2pdTransport

    details = {"relays": ", ".join(relays)}
    try:
        transport = await P2pdTransport.create(relays=relays, initial_peers=relays)
        try:
            await check_reachable(transport.peer_id, relays)
        finally:
            await transport.close()
    except NetworkError as error:
        advice = "Check that it runs, with `swarm-node bootstrap --relay`, and that this is its address."
        details["error"] = error.message
        return [Finding("relay", Health.FAIL, "nobody reaches this machine through it", advice, details)]
    return [Finding("relay", Health.OK, "a stranger reaches this machine through it", "", details)]
