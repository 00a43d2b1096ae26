"""Names in addresses, by this computer's resolver; nothing leaves the machine."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from swarm_node.swarm.errors import PeerTimeoutError, PeerUnreachableError
from swarm_node.swarm.transport.resolve import MOST_ADDRESSES, resolve, resolve_all


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the resolver says: addresses by name, or an exception."""
    known: dict[str, Any] = {}

    async def getaddrinfo(self: object, host: str, port: object, **options: Any) -> list[Any]:
        found = known.get(host, socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
        if isinstance(found, BaseException):
            raise found
        if found == "never":
            await asyncio.Event().wait()
        wanted = {socket.AF_INET: ".", socket.AF_INET6: ":"}.get(options["family"], "")
        matching = [address for address in found if wanted in address]
        if not matching:
            raise socket.gaierror(socket.EAI_NONAME, "no address of this kind")
        return [(0, 0, 0, "", (address, 0)) for address in matching]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", getaddrinfo)
    return known


@pytest.mark.parametrize(
    "maddr",
    [
        "/ip4/192.0.2.1/tcp/1",
        "/dnsaddr/example.org",
        "/dns4/example.org/tcp/443/wss",
        "/dns4/example.org/tcp/443/tls/ws",
        "/dns4/relay.example/tcp/1/p2p/12D3KooWRelay/p2p-circuit",
    ],
)
async def test_what_p2pd_does_itself_is_left_to_it(names: dict[str, Any], maddr: str) -> None:
    assert await resolve(maddr) == [maddr]


@pytest.mark.parametrize(
    ("maddr", "found"),
    [
        ("/dns4/host/tcp/31330", ["/ip4/192.0.2.1/tcp/31330"]),
        ("/dns6/host/tcp/31330", ["/ip6/2001:db8::1/tcp/31330"]),
        ("/dns/host/udp/5/quic-v1", ["/ip4/192.0.2.1/udp/5/quic-v1", "/ip6/2001:db8::1/udp/5/quic-v1"]),
    ],
)
async def test_a_name_becomes_its_addresses(names: dict[str, Any], maddr: str, found: list[str]) -> None:
    names["host"] = ["192.0.2.1", "2001:db8::1", "192.0.2.1", "fe80::1%eth0"][:3]
    assert await resolve(maddr) == found


async def test_addresses_are_bounded_and_need_no_interface(names: dict[str, Any]) -> None:
    names["host"] = ["fe80::1%eth0", *(f"192.0.2.{number}" for number in range(1, 99))]
    found = await resolve("/dns/host/tcp/1")
    assert len(found) == MOST_ADDRESSES
    assert not any("%" in maddr for maddr in found)


async def test_unknown_names_and_wrong_kinds_are_told_apart_from_a_dead_resolver(
    names: dict[str, Any],
) -> None:
    names["four"] = ["192.0.2.1"]
    names["later"] = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    for maddr, said, hint in (
        ("/dns4/nobody/tcp/1", "the name nobody has no IPv4 address", "spelling"),
        ("/dns6/four/tcp/1", "the name four has no IPv6 address", "/dns/"),
        ("/dns/later/tcp/1", "cannot be looked up now: Temporary failure", "DNS server"),
    ):
        with pytest.raises(PeerUnreachableError, match=said) as caught:
            await resolve(maddr)
        assert hint in caught.value.hint


async def test_a_resolver_that_is_silent_costs_bounded_time(names: dict[str, Any]) -> None:
    names["slow"] = "never"
    with pytest.raises(PeerTimeoutError, match="the name slow was not looked up"):
        await resolve("/dns4/slow/tcp/1", timeout=0.01)


async def test_of_several_those_that_are_known_are_enough(names: dict[str, Any]) -> None:
    names["good"] = ["192.0.2.1"]
    given = ["/dns4/bad/tcp/1", "/dns4/good/tcp/2", "/ip4/192.0.2.9/tcp/3"]
    assert await resolve_all(given) == ["/ip4/192.0.2.1/tcp/2", "/ip4/192.0.2.9/tcp/3"]
    with pytest.raises(PeerUnreachableError, match="the name bad"):
        await resolve_all(given[:1])
    assert await resolve_all(given[2:]) == given[2:]
    assert await resolve_all([]) == []


async def test_this_machine_knows_itself() -> None:
    """The real resolver, from its own hosts file."""
    assert await resolve("/dns4/localhost/tcp/5") == ["/ip4/127.0.0.1/tcp/5"]
