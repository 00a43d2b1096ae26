"""The paths of a dashboard: its page, its state, and the events that follow it."""

from __future__ import annotations

from contextlib import aclosing

from ...swarm.runtime.tasks import first
from ..http.admission import ApiKeys
from ..http.call import HttpCall
from ..http.callers import only_with_key
from ..http.endpoint import Handler
from ..pages.pages import PREFIX, page, send_file
from .dashboard import Dashboard


def dashboard_handlers(dashboard: Dashboard, keys: ApiKeys) -> dict[str, Handler]:
    """By path. The page itself needs no key: it holds nothing of the swarm, and asks for the key."""
    check = only_with_key(keys, "the swarm is", "--api-key-file")

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


async def _tell(call: HttpCall, dashboard: Dashboard, caller: str) -> None:
    async with aclosing(dashboard.events(caller)) as events:
        async for text in events:
            if not call.streaming:
                await call.begin_events({})
            if text:
                await call.send_events(text)
    await call.end_events()
