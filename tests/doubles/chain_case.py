"""Routes of one to four chained fake hops with slower spares, and what goes wrong with them mid-stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from swarm_node.client.async_model import AsyncSwarmModel
from swarm_node.client.generation import Generation
from swarm_node.client.routing.router import Router
from swarm_node.swarm.protocol.wire import PROTOCOL_ID
from swarm_node.swarm.timeouts import Patience
from tests.doubles.fake_swarm import BOS, FakeSwarm, expected

PROMPT = [BOS, *b"Tell me something long enough to be cut into several chunks of a prefill, please."]
N = 24
GREEDY = expected(PROMPT, N)
OPTIONS: dict[str, Any] = {"max_new_tokens": N, "ignore_eos": True}
SPANS = {1: ("0-5",), 2: ("0-2", "3-5"), 3: ("0-1", "2-3", "4-5"), 4: ("0-0", "1-2", "3-4", "5-5")}
PATIENCE = Patience(dial_s=0.5, ping_after_s=0.1, pong_within_s=0.3, step_s=20.0, own_loss_s=5.0)
"""Of peers on a busy machine."""
CHUNK = 16
"""Tokens of a step: the prompt takes several."""

H, S = ("ha", "hb", "hc", "hd"), ("sa", "sb", "sc", "sd")
"""Peer ids of the hops and of their spares."""

Fault = Callable[[], Awaitable[None] | None]


class ChainCase:
    """``ha``, ``hb``, ... are what a route is made of; ``sa``, ... could take their places. ``router`` is the
    client's."""

    def __init__(
        self, hops: int, *, spares: bool = True, latency: float = 0.0, keeps_states: bool = False
    ) -> None:
        spans = SPANS[hops]
        named = {H[number]: span for number, span in enumerate(spans)}
        if spares:
            named |= {S[number]: span for number, span in enumerate(spans)}
        self.swarm = FakeSwarm(latency, **named)
        self.names = [H[number] for number in range(hops)]
        self.router: Router = self.swarm.router()
        for node in self.swarm.nodes.values():
            node.behaviour.max_step_tokens = CHUNK
            node.behaviour.keeps_states = keeps_states

    async def start(self) -> ChainCase:
        await self.swarm.start()
        for name in self.swarm.nodes:
            self.swarm.announce(name, decode_ms_per_block=1.0 if name in self.names else 100.0)
        return self

    def client(self, **options: Any) -> AsyncSwarmModel:
        return self.swarm.client(
            **{"router": self.router, "patience": PATIENCE, "prefix_cache": False, **options}
        )

    async def disturbed(self, *faults: tuple[int, Fault], **options: Any) -> Generation:
        """An answer during which each fault happens after so many pieces; its tokens are checked."""
        async with self.client(**options) as model:
            answer = await answered(model, *faults)
        check(answer)
        return answer

    async def revive(self, name: str) -> None:
        """A killed node is back, without what it held."""
        node = self.swarm.nodes[name]
        await self.swarm.network.transport(name).serve(PROTOCOL_ID, node.handle)
        self.swarm.announce(name)

    def kill(self, name: str) -> None:
        self.swarm.nodes[name].die()
        self.swarm.network.kill(name)

    @property
    def blamed(self) -> set[str]:
        """Peers that the client keeps away from."""
        return set(self.router.health.statistics())


def check(answer: Generation) -> None:
    """Never a lost, doubled or misplaced token."""
    assert list(answer.token_ids) == GREEDY
    assert answer.text == bytes(token for token in GREEDY if token < 256).decode("utf-8", "replace")


async def answered(model: AsyncSwarmModel, *faults: tuple[int, Fault]) -> Generation:
    """An answer during which each fault happens after so many pieces."""
    async with asyncio.timeout(60):
        stream = model.stream(PROMPT, **OPTIONS)
        pieces = 0
        async for _ in stream:
            pieces += 1
            for at, fault in faults:
                if at == pieces and (work := fault()) is not None:
                    await work
        return stream.result
