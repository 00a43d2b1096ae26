"""The paths of a dashboard: its page, its state, and the events that follow it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from ipaddress import ip_address

from ...swarm.runtime.tasks import first
from ..http.admission import ApiKeys
from ..http.call import HttpCall
from ..http.endpoint import Handler, group_of_client
from ..http.errors import ApiError
from ..pages.pages import PREFIX, page, send_file
from .dashboard import Dashboard

Check = Callable[[HttpCall], str]
"""Who calls. Raises ApiError where that is not allowed."""


def dashboard_handlers(dashboard: Dashboard, check: Check) -> dict[str, Handler]:
    """By path. The page itself needs no key: it holds nothing of the swarm, and asks for the key."""

    async def state(call: HttpCall) -> None:
        check(call)
        await call.reply(dashboard.whole(), headers={"Cache-Control": "no-store"})

    async def events(call: HttpCall) -> None:
        await first(_tell(call, dashboard, check(call)), call.until_gone())

    return {
        "/swarm": page("swarm/index.html"),
        "/swarm/state": state,
        "/swarm/events": events,
        f"{PREFIX}/{{file:path}}": send_file,
    }


def key_holders(keys: ApiKeys) -> Check:
    """Callers with a key; where there are none, those on this computer. A server that answers others without
    a key does not show them who is in its swarm."""

    def check(call: HttpCall) -> str:
        caller = keys.check(call.headers)
        client = call.scope.get("client")
        if caller is None and not _is_here(client):
            raise ApiError(
                403,
                "the swarm is shown to others only with a key: start this server with --api-key-file",
                code="key_needed",
            )
        return caller or group_of_client(client)

    return check


def _is_here(client: tuple[str, int] | None) -> bool:
    try:
        return client is not None and ip_address(client[0].partition("%")[0]).is_loopback
    except ValueError:
        return False


async def _tell(call: HttpCall, dashboard: Dashboard, caller: str) -> None:
    async with aclosing(dashboard.events(caller)) as events:
        async for text in events:
            if not call.streaming:
                await call.begin_events({})
            if text:
                await call.send_events(text)
    await call.end_events()
