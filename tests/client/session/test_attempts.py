"""Whatever opens belongs to somebody, and how long others are tried."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarm_node.client.routing.route_finder import Need, Planned
from swarm_node.client.routing.route_wait import WaitLimits
from swarm_node.client.session.attempts import MAX_OPENINGS, STRANGERS_S, Attempts
from swarm_node.swarm.errors import (
    BusyError,
    ErrorCode,
    HopFailedError,
    PeerError,
    PeerLateError,
    PeerUnreachableError,
    SwarmError,
)
from swarm_node.swarm.routing.best_route import NoRouteError
from swarm_node.swarm.types import Span
from tests.doubles.router_case import NEED, clocked_swarm, hops


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


@pytest.mark.parametrize("patience_s", [STRANGERS_S + 30.0, STRANGERS_S])
async def test_peers_that_open_nothing_are_outlasted_by_those_who_wait(patience_s: float) -> None:
    """They are all that is announced of some blocks until others have taken these."""
    swarm, router, clock = await clocked_swarm(useless="0-5", other="0-5")
    swarm.store.remove("other")
    began = clock.time
    clock.events.append((began + STRANGERS_S + 15, lambda: swarm.announce("other")))

    async def nobody_else(*_: object) -> list[HopFailedError]:
        return []

    scout: Any = SimpleNamespace(hedge_s=10.0, mute=lambda _: frozenset(), meet=nobody_else)
    attempts = Attempts(router, scout, NEED, patience_s)

    async def open_(planned: Planned) -> Opened:
        if hops(planned) == [("useless", "0-5")]:
            raise HopFailedError("useless", PeerError("too late", code=ErrorCode.DEADLINE, retriable=True))
        return Opened()

    opening = attempts.first(
        lambda: router.plan(NEED, began=began, limits=WaitLimits(missing_s=STRANGERS_S + 30)), open_
    )
    if patience_s > STRANGERS_S:
        _, planned = await opening
        assert hops(planned) == [("other", "0-5")]
    else:
        with pytest.raises(
            NoRouteError, match="1 peer is announced that does not serve blocks 0-5"
        ) as caught:
            await opening
        assert caught.value.exit_code == 5  # as where no peer is announced any more
        assert caught.value.gone == {"useless"}
        assert caught.value.missing == (Span(0, 6),)
        assert "--blocks 0-5" in caught.value.hint
        assert STRANGERS_S < clock.time - began < STRANGERS_S + 15


def test_a_proven_peer_that_never_opens_again_leaves_no_route() -> None:
    """Whichever peer was there before, nobody serves the blocks now: that is no fault of the network."""
    router: Any = SimpleNamespace(is_proven=lambda _: True, failed=lambda _: None, now=lambda: 0.0)
    attempts = Attempts(router, cast(Any, None), NEED)
    failure = HopFailedError("dead", PeerUnreachableError("connection refused"))
    for _ in range(MAX_OPENINGS - 1):
        attempts.failed(failure, opening=True)
    with pytest.raises(NoRouteError, match="the last one: connection refused") as caught:
        attempts.failed(failure, opening=True)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("cause", [BusyError("full", retry_after=1), PeerLateError("late")])
async def test_a_failure_after_the_end_of_an_outage_is_the_last(cause: SwarmError) -> None:
    _, router, clock = await clocked_swarm(a="0-5")
    attempts = Attempts(router, cast(Any, None), NEED)
    attempts.until = clock.time + 30
    attempts.failed(HopFailedError("a", cause), opening=False)
    clock.time += 30
    with pytest.raises(type(cause)):
        attempts.failed(HopFailedError("a", cause), opening=False)
