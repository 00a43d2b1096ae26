"""Random schedules on chains: nodes die, edges are relayed, clients go back, leave or vanish. Every row that
comes out is the one that comes out undisturbed, bit for bit, and in the end nobody holds anything."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm_node.node.sessions.next_hops import NOT_REACHED
from swarm_node.swarm.errors import ErrorCode, SwarmError
from swarm_node.swarm.protocol.messages import Close, ErrorMessage, Opened, Replayed, Void
from swarm_node.swarm.types import Span
from tests.node.chain_swarm import KV_TOKENS, ChainSwarm, Hop, rows, swarm_of, until

NODES = "abcde"
LONGEST = 90
ROW = 256
LAYOUTS = [[4], [1, 4], [2, 4], [1, 3, 4], [1, 2, 3, 4]]
X = torch.randn((LONGEST, 64), generator=torch.Generator().manual_seed(3)).numpy()


@dataclass
class Route:
    """A client's chain, and what it has under way: (step, position, tokens) in order."""

    client: str
    spans: list[Span]
    hops: list[Hop]
    relayed: set[int] = field(default_factory=set)  # hops whose results come to the client, but the last
    number: int = 0
    cursor: int = 0
    acked: int = 0
    under_way: list[tuple[int, int, int]] = field(default_factory=list)
    void: int = 0  # that the next step is to tell of; 0: none


class Schedule:
    def __init__(self, swarm: ChainSwarm, wanted: bytes) -> None:
        self.swarm = swarm
        self.wanted = wanted
        self.alive = list(NODES)
        self.routes: list[Route] = []
        self.clients = 0
        self.rows = 0

    def node(self, choice: int) -> str:
        return self.alive[choice % len(self.alive)]

    async def open(self, choice: int) -> None:
        ends = LAYOUTS[choice % len(LAYOUTS)]
        spans = [Span(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        self.clients += 1
        client = f"client{self.clients}".replace("l", "1")
        places = [(self.node(choice + i), span) for i, span in enumerate(spans)]
        hops = await self.swarm.chain(places, peer=client, max_tokens=LONGEST)
        self.routes.append(Route(client, spans, hops))

    async def send(self, route: Route, tokens: int) -> None:
        tokens = min(tokens, LONGEST - route.cursor)
        if tokens:
            route.number += 1
            start, stop = route.cursor, route.cursor + tokens
            await route.hops[0].step(route.number, start, rows(X[start:stop]), tokens, void=route.void)
            route.void = 0
            route.under_way.append((route.number, start, tokens))
            route.cursor = stop

    async def collect(self, route: Route) -> None:
        for step, position, tokens in route.under_way:
            for index in sorted(route.relayed):
                got = await route.hops[index].result(step)
                await route.hops[index + 1].step(step, position, bytes(got.payload), tokens)
            got = await route.hops[-1].result(step)
            assert (got.position, got.tokens) == (position, tokens)
            assert bytes(got.payload) == self.wanted[position * ROW : (position + tokens) * ROW]
            self.rows += tokens
            route.acked = position + tokens
        route.under_way.clear()

    async def void(self, route: Route, choice: int) -> None:
        """The last steps under way are void; some hops hear of it at once, all others with the next step."""
        void = route.under_way[choice % 3 :]
        del route.under_way[choice % 3 :]
        if void:
            route.void, route.cursor = void[0][0], void[0][1]
            for number, hop in enumerate(route.hops):
                if choice >> number & 1:
                    await hop.control.send(Void(hop.session, void[0][0], void[-1][0]))

    def give_up_under_way(self, route: Route) -> None:
        route.acked = min([route.acked, *(position for _, position, _ in route.under_way)])
        route.cursor = route.acked
        route.under_way.clear()

    async def relay(self, route: Route, choice: int) -> None:
        if len(route.hops) > 1:
            index = choice % (len(route.hops) - 1)
            self.give_up_under_way(route)
            await route.hops[index + 1].attach("")
            route.number += 1
            await route.hops[index].replay(route.acked, route.acked, route.number, None)
            route.relayed.add(index)

    async def kill(self, choice: int) -> None:
        if len(self.alive) < 3:
            return
        dead = self.node(choice)
        self.alive.remove(dead)
        self.swarm.network.kill(dead)
        for route in list(self.routes):
            if any(hop.node == dead for hop in route.hops):
                await self.repair(route, dead, choice)

    async def repair(self, route: Route, dead: str, choice: int) -> None:
        """Replace dead hops and replay to them; where no hop before them lives, open the route anew."""
        self.give_up_under_way(route)
        lost = [i for i, hop in enumerate(route.hops) if hop.node == dead]
        if lost[0] == 0 or len(lost) > 1:
            await self.end(route, polite=True)
            return
        index = lost[0]
        before = route.hops[index - 1]
        after = route.hops[index + 1] if index + 1 < len(route.hops) else None
        new = Hop(self.node(choice), await self.swarm.connect(self.node(choice), route.client))
        opened = await self.swarm.open(
            new,
            route.spans[index],
            max_tokens=LONGEST,
            upstream=before.node,
            downstream=None if after is None or index in route.relayed else after.downstream,
            journal=after is not None,
        )
        assert isinstance(opened, Opened)
        if after is not None and not opened.chained:  # the same node twice: it does not dial itself
            assert after.node in (new.node, dead) or index in route.relayed, opened.reason
            route.relayed.add(index)
        if after is not None:
            await after.attach("" if index in route.relayed else new.node)
        first = route.number + 1
        route.number += route.acked + 1
        await before.start_replay(0, route.acked, first, new)
        answer = await answer_to_replay(before, to_itself=before.node == new.node)
        if isinstance(answer, ErrorMessage):
            assert answer.code is ErrorCode.JOURNAL_LOST or before.node == new.node, answer
            route.hops[index] = new
            await self.end(route, polite=True)
            return
        assert answer.tokens == route.acked
        route.relayed.discard(index - 1)
        route.hops[index] = new

    async def end(self, route: Route, *, polite: bool) -> None:
        self.routes.remove(route)
        if polite:
            for hop in route.hops:
                try:
                    await hop.control.send(Close(hop.session))
                except SwarmError:
                    assert hop.node not in self.alive
        else:
            self.swarm.network.kill(route.client)

    async def run(self, moves: list[tuple[str, int, int]]) -> None:
        for move, which, choice in moves:
            if move == "open" or not self.routes:
                if len(self.routes) < 4:
                    await self.open(choice)
                continue
            route = self.routes[which % len(self.routes)]
            if move == "send":
                await self.send(route, 1 + choice % 30)
            elif move == "collect":
                await self.collect(route)
            elif move == "void":
                await self.void(route, choice)
            elif move == "back":
                route.cursor = max(0, route.cursor - choice % 20)
            elif move == "relay":
                await self.relay(route, choice)
            elif move == "kill":
                await self.kill(choice)
            else:
                await self.end(route, polite=choice % 2 == 0)
        for route in list(self.routes):
            await self.collect(route)
            await self.send(route, 3)
            await self.collect(route)
            await self.end(route, polite=len(route.hops) % 2 == 0)


async def answer_to_replay(hop: Hop, *, to_itself: bool) -> Replayed | ErrorMessage:
    """REPLAYED, or why not; what was told before, of the next hop's end, is passed over. ``to_itself``: the
    node is to reach itself, which it does not."""
    while True:
        answer = await hop.control.take(object, hop.session)
        if isinstance(answer, Replayed):
            return answer
        if isinstance(answer, ErrorMessage) and answer.code is ErrorCode.JOURNAL_LOST:
            return answer
        if isinstance(answer, ErrorMessage) and to_itself and NOT_REACHED in answer.message:
            return answer


@pytest.fixture(scope="module")
def models(tiny_span):
    """One a node: a model computes in one thread only."""
    return [tiny_span(Span(0, 4), kernels="native") for _ in NODES]


moves = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "open",
                "send",
                "send",
                "send",
                "collect",
                "void",
                "void",
                "back",
                "relay",
                "kill",
                "kill",
                "end",
            ]
        ),
        st.integers(0, 3),
        st.integers(0, 1000),
    ),
    min_size=12,
    max_size=40,
)


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(moves=moves, journal_rows=st.sampled_from([40, 100, 100_000]))
def test_any_schedule_comes_to_the_same_rows_and_leaves_nothing(models, moves, journal_rows):
    async def run() -> None:
        spans = dict.fromkeys(NODES, Span(0, 4))
        unused = iter(models)
        async with swarm_of(lambda _: next(unused), spans, journal_bytes=journal_rows * ROW) as swarm:
            alone = await swarm.hop("a", "a1one")
            await swarm.open(alone, Span(0, 4), max_tokens=LONGEST)
            await alone.step(1, 0, rows(X), LONGEST)
            wanted = bytes((await alone.result(1)).payload)
            await alone.close()
            schedule = Schedule(swarm, wanted)
            async with asyncio.timeout(30):
                await schedule.run(moves)
            await until(lambda: not swarm.left_behind, 5)
            assert all(server.engine.free_tokens == KV_TOKENS for server in swarm.servers.values())

    asyncio.run(run())
