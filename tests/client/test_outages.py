"""A hop is lost, and nobody takes its place, or not at once: how long it is waited for, and what is said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from swarm_node.client.async_model import AsyncSwarmModel
from swarm_node.client.routing.route_wait import Waiting
from swarm_node.client.session.gap_search import REPAIR_LIMITS
from swarm_node.swarm.protocol.wire import PROTOCOL_ID
from swarm_node.swarm.routing.best_route import NoRouteError
from swarm_node.swarm.timeouts import Patience
from swarm_node.swarm.types import Span
from tests.doubles.chain_case import OPTIONS, PROMPT, SPANS, ChainCase, N, check
from tests.doubles.virtual_time import in_virtual_time, now

BEFORE = 5
"""Tokens that come before the loss."""


class Outage:
    """An answer by a route without spares, of which the last hop is lost after BEFORE tokens. ``told``: when
    and what, since the loss."""

    def __init__(self, case: ChainCase, model: AsyncSwarmModel) -> None:
        self.case = case
        self.lost = case.names[-1]
        self.stream = model.stream(PROMPT, **OPTIONS, on_wait=self.on_wait)
        self.told: list[tuple[float, Waiting]] = []
        self.began = 0.0

    @property
    def seconds(self) -> float:
        return now() - self.began

    def on_wait(self, waiting: Waiting | None) -> None:
        if waiting is not None:
            self.told.append((self.seconds, waiting))

    async def lose(self, how: Callable[[Outage], None]) -> None:
        """Read on after it; returns or raises as the answer does."""
        pieces = 0
        async for _ in self.stream:
            pieces += 1
            if pieces == BEFORE:
                self.began = now()
                how(self)

    def check_told(self, limit_s: float, first_s: float) -> None:
        """One countdown, from the first sign to the end."""
        assert self.told[0][0] == pytest.approx(first_s, abs=0.1)
        for at, waiting in self.told:
            assert at + waiting.seconds_left == pytest.approx(first_s + limit_s, abs=0.2)
            assert waiting.missing == (Span.parse(SPANS[len(self.case.names)][-1]),)
        assert all(later - before < 1 for (before, _), (later, _) in pairwise(self.told))


def kill(outage: Outage) -> None:
    """Dials are refused."""
    outage.case.kill(outage.lost)


def cut_off(outage: Outage) -> None:
    """Its streams end; dials get no answer."""
    kill(outage)
    outage.case.swarm.freeze(outage.lost)


def freeze(outage: Outage) -> None:
    outage.case.swarm.freeze(outage.lost)


@asynccontextmanager
async def outage_of(hops: int, wait: float = 0.0) -> AsyncIterator[Outage]:
    case = await ChainCase(hops, spares=False).start()
    async with case.client(wait=wait, patience=Patience()) as model:
        yield Outage(case, model)


@pytest.mark.parametrize("hops", [2, 3])
@pytest.mark.parametrize("wait", [0.0, 60.0])
@pytest.mark.parametrize(("how", "first_s"), [(kill, 0.0), (cut_off, 0.0), (freeze, 1.4)])
@in_virtual_time
async def test_an_outage_has_one_limit(
    how: Callable[[Outage], None], first_s: float, wait: float, hops: int
) -> None:
    """The dead node stays announced all the time, and is not tried again."""
    limit_s = max(wait, REPAIR_LIMITS.missing_s)
    async with outage_of(hops, wait) as outage:
        with pytest.raises(NoRouteError) as caught:
            await outage.lose(how)
        assert outage.seconds == pytest.approx(first_s + limit_s, abs=0.1)
        outage.check_told(limit_s, first_s)
    message = str(caught.value)
    assert f"{outage.lost} has {SPANS[hops][-1]} (failed lately)" in message
    assert message.count("failed lately") == 1  # the others do their work
    assert outage.case.blamed == {outage.lost}
    assert outage.case.router.health.statistics()[outage.lost].failures == 1
    so_far = outage.stream.so_far
    assert so_far is not None
    assert (len(so_far.token_ids), so_far.finish_reason) == (BEFORE, "unfinished")
    assert outage.stream.waiting is None


@pytest.mark.parametrize("announces", [True, False])
@pytest.mark.parametrize("how", [kill, cut_off])
@in_virtual_time
async def test_one_that_comes_back_is_taken_again(how: Callable[[Outage], None], announces: bool) -> None:
    """It is asked whether it is there, so that nobody waits for its next announcement."""
    back_s, loop, tasks = 12.0, asyncio.get_running_loop(), set[asyncio.Task[None]]()

    def lose_for_a_while(outage: Outage) -> None:
        how(outage)
        loop.call_later(back_s, lambda: tasks.add(loop.create_task(come_back())))

    async def come_back() -> None:
        swarm = outage.case.swarm
        swarm.network.heal()
        await swarm.network.transport(outage.lost).serve(PROTOCOL_ID, swarm.nodes[outage.lost].handle)
        if announces:
            swarm.announce(outage.lost)

    async with outage_of(3) as outage:
        await outage.lose(lose_for_a_while)
    answer = outage.stream.result
    check(answer)
    (repair,) = answer.repaired
    assert repair.lost == (outage.lost,)
    assert back_s <= repair.seconds < back_s + 7
    assert len(answer.token_ids) == N
