"""What a hop may leave with us while it replays: the rows that were asked for, in order, and no more."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarm_node.client.hops.hop import HopClient
from swarm_node.client.session.replay import HopListener
from swarm_node.swarm.codecs.kinds import NONE
from swarm_node.swarm.errors import RemoteProtocolError, SwarmError
from swarm_node.swarm.protocol.messages import Result

HIDDEN = 4
ROW = bytes(4 * HIDDEN)
SESSION = bytes(16)


class Hop:
    """As much of a HopClient as a listener looks at."""

    def __init__(self) -> None:
        self.link = SimpleNamespace(name="peer x")
        self.reply_codec, self.reply_width = NONE, HIDDEN
        self.failure: SwarmError | None = None
        self.state = SimpleNamespace(step_error=None)
        self.listener: HopListener | None = None

    def mark_lost(self, error: SwarmError) -> None:
        self.failure = error
        assert self.listener is not None
        self.listener.mark_broken()


def listening() -> tuple[Hop, HopListener]:
    hop = Hop()
    listener = hop.listener = HopListener(cast(HopClient, hop), asyncio.Event())
    return hop, listener


def rows(position: int, tokens: int, payload: bytes | None = None) -> Result:
    return Result(SESSION, 1, position, tokens, ROW * tokens if payload is None else payload)


def took(hop: Hop, listener: HopListener, *results: Result) -> list[Any]:
    for result in results:
        listener.take(cast(HopClient, hop), result)
    return [listener.rows.get_nowait() for _ in range(listener.rows.qsize())]


async def test_rows_that_were_not_asked_for_are_dropped() -> None:
    hop, listener = listening()
    assert took(hop, listener, rows(0, 1)) == []
    first, second, late = rows(5, 2), rows(7, 1), rows(8, 1)
    with listener.taking_rows(5, 8):
        assert took(hop, listener, first, second, *[late] * 100) == [first, second]
    assert took(hop, listener, late) == []
    assert hop.failure is None


@pytest.mark.parametrize(
    "wrong",
    [
        rows(4, 1),
        rows(6, 1),
        rows(5, 4),
        rows(5, 0),
        rows(5, 2, ROW * 3),
        rows(5, 2, ROW),
    ],
)
async def test_a_hop_that_replays_something_else_is_lost_at_once(wrong: Result) -> None:
    hop, listener = listening()
    with listener.taking_rows(5, 8):
        assert took(hop, listener, *[wrong] * 100) == [None]
        assert isinstance(hop.failure, RemoteProtocolError)
    assert listener.alarm.is_set()
