"""Asking several peers of many the same, so that silent ones cause no delay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ...swarm.errors import PeerTimeoutError
from ...swarm.runtime.tasks import cancel_all
from ...swarm.types import short_peer_id

HEDGE_S = 0.7
"""Another peer is asked beside one that is silent for this many seconds: they allow a dial, a handshake and
an answer over half the world."""
REST_S = 1.0
"""Silent peers get this many more seconds once there is an answer and no other peer to ask."""
MOST_AT_ONCE = 16
"""At most this many peers are asked at a time."""


async def ask_side_by_side(
    turn: Callable[[bool], Sequence[str]], ask: Callable[[str], Coroutine[Any, Any, None]], wanted: int
) -> dict[str, BaseException | None]:
    """Ask until ``wanted`` have answered, or no peer is left to ask. The result of each: None if it answered,
    else its error, which is PeerTimeoutError for one that was given up for others.

    ``turn(answered)``: the peers to ask, in order; ``answered``: whether any peer has answered. Of the peers
    that are asked at the end, only the late ones are in the result.
    """
    clock = asyncio.get_running_loop().time
    asking: dict[asyncio.Task[None], tuple[str, float]] = {}  # the peer, and since when
    outcomes: dict[str, BaseException | None] = {}
    answers, last_news = 0, clock()
    try:
        while answers < wanted:
            now = clock()
            lively = [at + HEDGE_S - now for _, at in asking.values() if now - at < HEDGE_S]
            tried = outcomes.keys() | {peer_id for peer_id, _ in asking.values()}
            room = min(wanted - answers - len(lively), MOST_AT_ONCE - len(asking))
            for peer_id in [each for each in turn(answers > 0) if each not in tried][: max(0, room)]:
                asking[asyncio.create_task(ask(peer_id))] = peer_id, now
                lively.append(HEDGE_S)
                last_news = now
            if not asking:
                break
            rest_s = REST_S - (now - last_news) if answers else HEDGE_S
            if not lively and rest_s <= 0:
                break
            wait_s = max(0.001, min(lively, default=rest_s))
            done, _ = await asyncio.wait(asking, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                peer_id, _ = asking.pop(task)
                outcomes[peer_id] = task.exception()
                answers += outcomes[peer_id] is None
                last_news = clock()
    finally:
        await cancel_all(asking)
    now = clock()
    for peer_id, at in asking.values():
        if now - at >= HEDGE_S:
            outcomes[peer_id] = PeerTimeoutError(
                f"peer {short_peer_id(peer_id)} was silent while others answered"
            )
    return outcomes
