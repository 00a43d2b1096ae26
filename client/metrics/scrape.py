"""The path that Prometheus scrapes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ..http.call import HttpCall
from ..http.endpoint import Handler

if TYPE_CHECKING:
    from .exposition import Family

LONGEST_ACCEPT = 1024
"""Characters of a header Accept that are looked at."""


def metrics_page(
    load: Callable[[], Callable[[], Iterable[Family]]], check: Callable[[HttpCall], object]
) -> Handler:
    """``load`` imports what makes the families, at the first scrape, in a thread: it takes some ten
    milliseconds. ``check`` raises ApiError for callers that may not see them."""
    made: list[Callable[[], Iterable[Family]]] = []

    async def send(call: HttpCall) -> None:
        check(call)
        call.routine = True
        if not made:
            made.append(await asyncio.to_thread(load))
        from .exposition import exposition

        accept = dict(call.headers).get(b"accept", b"").decode("latin-1")[:LONGEST_ACCEPT]
        text, media_type = exposition(made[0](), accept)
        await call.reply(text, headers={"Content-Type": media_type, "Cache-Control": "no-store"})

    return send
