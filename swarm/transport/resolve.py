"""Names in addresses: ``/dns4/host/tcp/31330`` to the IP addresses that the name has now.

This computer's own resolver is asked, which knows names of the local network (``mac-mini.local``) that p2pd's
does not, and says what is wrong. Addresses with a part that needs the name later (``/wss``, ``/tls``) and
``/dnsaddr``, which is a matter of DNS TXT records, are left to p2pd.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Sequence

from ..errors import PeerTimeoutError, PeerUnreachableError

RESOLVE_S = 5.0
"""Seconds to look up one name. A resolver without a network may take half a minute to fail."""
MOST_ADDRESSES = 8
"""At most this many addresses of one name are used."""

_NAMED = re.compile(r"/(dns[46]?)/([^/]{1,253})((?:/tcp|/udp)/\d{1,5}(?:/quic-v1|/quic|/direct)?)")
_FAMILIES = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}
_KINDS = {"dns": "IP", "dns4": "IPv4", "dns6": "IPv6"}


async def resolve(maddr: str, timeout: float = RESOLVE_S) -> list[str]:
    """The addresses that ``maddr`` (without /p2p/) stands for: itself, where it has no name to look up.

    Raises PeerUnreachableError or PeerTimeoutError.
    """
    match = _NAMED.fullmatch(maddr)
    if match is None:
        return [maddr]
    kind, host, rest = match.groups()
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout):
            found = await loop.getaddrinfo(host, None, family=_FAMILIES[kind], type=socket.SOCK_STREAM)
    except TimeoutError:
        raise PeerTimeoutError(
            f"the name {host} was not looked up within {timeout:g} s",
            hint="Check this computer's network and its DNS server, or give an IP address.",
        ) from None
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) == socket.EAI_AGAIN:
            raise PeerUnreachableError(
                f"the name {host} cannot be looked up now: {getattr(error, 'strerror', error)}",
                hint="Check this computer's network and its DNS server, or give an IP address.",
            ) from None
        raise PeerUnreachableError(
            f"the name {host} has no {_KINDS[kind]} address",
            hint="Check the spelling; /dns/ takes addresses of either kind, /dns4/ and /dns6/ of one.",
        ) from None
    addresses = dict.fromkeys(entry[4][0] for entry in found if "%" not in str(entry[4][0]))
    return [
        f"/ip{6 if ':' in str(address) else 4}/{address}{rest}"
        for address in list(addresses)[:MOST_ADDRESSES]
    ]


async def resolve_all(maddrs: Sequence[str]) -> list[str]:
    """``resolve`` for each; a name that is not known is passed over. Raises if nothing is left of some."""
    if not any(_NAMED.fullmatch(maddr) for maddr in maddrs):
        return list(maddrs)
    results = await asyncio.gather(*map(resolve, maddrs), return_exceptions=True)
    found = [maddr for result in results if isinstance(result, list) for maddr in result]
    if not found:
        for result in results:
            if isinstance(result, BaseException):
                raise result
    return found
