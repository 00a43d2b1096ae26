"""Who may see what is not for everybody that reaches the port."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

from .admission import ApiKeys, check_host
from .call import HttpCall
from .endpoint import group_of_client
from .errors import ApiError

Check = Callable[[HttpCall], str]
"""Who calls. Raises ApiError where that is not allowed."""


def only_with_key(keys: ApiKeys, what: str, option: str) -> Check:
    """Callers with a key; where there are none, those on this computer that call it by a local name: a web
    page elsewhere, or a proxy, may have a name of its own lead here. ``what`` others do not see then, and the
    ``option`` that changes it."""

    def check(call: HttpCall) -> str:
        caller = keys.check(call.headers)
        client = call.scope.get("client")
        if caller is None and not _is_here(client):
            raise ApiError(
                403,
                f"{what} shown to others only with a key: start this server with {option}",
                code="key_needed",
            )
        if caller is None:
            check_host(call.headers, call.scope["http_version"])
        return caller or group_of_client(client)

    return check


def _is_here(client: tuple[str, int] | None) -> bool:
    try:
        return client is not None and ip_address(client[0].partition("%")[0]).is_loopback
    except ValueError:
        return False
