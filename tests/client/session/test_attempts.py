"""Whatever opens belongs to somebody."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from swarm_node.client.routing.route_finder import Need
from swarm_node.client.session.attempts import Attempts


class Opened:
    is_open = False

    def close(self) -> None:
        self.is_open = False


@pytest.mark.parametrize("ticks", range(6))
async def test_what_opens_while_its_asker_is_cancelled_is_closed(ticks: int) -> None:
    """Whether it is about to, opens in the same moment, or has."""
    router: Any = SimpleNamespace(is_stranger=lambda _: False)
    scout: Any = SimpleNamespace(hedge_s=10.0, mute=lambda _: frozenset())
    opened, may_open = Opened(), asyncio.Event()

    async def opening() -> Opened:
        await may_open.wait()
        opened.is_open = True
        return opened

    attempts = Attempts(router, scout, Need(1))
    asking = asyncio.create_task(attempts.opened(opening(), []))
    for _ in range(3):
        await asyncio.sleep(0)
    may_open.set()
    for _ in range(ticks):
        await asyncio.sleep(0)
    asking.cancel()
    try:
        kept = await asking
    except asyncio.CancelledError:
        kept = None
    await asyncio.sleep(0)
    assert opened.is_open == (kept is opened)
