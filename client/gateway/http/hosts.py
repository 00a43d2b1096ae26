"""By which name a request calls this computer.

A web page elsewhere can point a name of its own here, and then ask as if it were local. It cannot choose what
its browser writes into ``Host``, which is its own name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from .errors import ApiError

_HOST = re.compile(r"(?P<name>[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{0,5}))?", re.IGNORECASE)
LOCAL_NAMES = frozenset({"localhost", "localhost."})


def check_host(headers: Iterable[tuple[bytes, bytes]], http_version: str) -> None:
    """Raises ApiError where the request does not call this computer by a local name. HTTP/1.0 may call it by
    none: health checks do, and no browser."""
    hosts = [value for name, value in headers if name == b"host"]
    if not hosts and http_version == "1.0":
        return
    if len(hosts) != 1:
        problem = "more than one header" if hosts else "no header"
        raise ApiError(400, f"the request has {problem} Host", code="invalid_host")
    host = hosts[0].decode("latin-1")
    if not is_local(host):
        raise ApiError(
            403,
            "this gateway answers to localhost, 127.0.0.1 and [::1] only, not to "
            f"{host[:200]!r}; with --api-key-file it answers to any name",
            code="wrong_host",
        )


def is_local(host: str) -> bool:
    """Whether the value of a ``Host`` header, port or not, is a name that only leads to this computer."""
    found = _HOST.fullmatch(host.strip())
    if found is None or int(found["port"] or 0) > 65535:
        return False
    name = found["name"].lower()
    if name in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback and (":" in name) == name.startswith("[")
    except ValueError:
        return False
