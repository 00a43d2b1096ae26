"""Nodes that decide for themselves, on a clock of their own: directory, time and machines are simulated."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node.auto.blocks import AutoBlocks, Planner
from swarm_node.node.auto.machine import MeasuredMachine
from swarm_node.node.resources import MemoryShortError
from swarm_node.swarm.errors import NetworkError, SwarmError
from swarm_node.swarm.placement.types import ModelShape
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, PeerLink, Span

SHAPE = ModelShape(n_blocks=12, block_bytes=1000, kv_bytes=1, context_tokens=100, activation_bytes=600)
MODEL = ModelRef("tiny", "ab" * 32, SHAPE.n_blocks)
ROOM = SHAPE.room_of(1)


def machine(blocks: int, decode_ms: float = 1.0) -> MeasuredMachine:
    """With room for so many blocks."""
    return MeasuredMachine(SHAPE, blocks * ROOM, decode_ms, 5000.0, "int4", "native", "float16")


class Time:
    """Passes when nobody has anything else to do."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._order = itertools.count()
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (self.now_s + seconds, next(self._order), future))
        await future

    async def until(self, condition: Callable[[], bool], *, within: float) -> float:
        """Let time pass until ``condition``; the seconds that took."""
        began = self.now_s
        while True:
            for _ in range(50):  # everything that can go on without time does
                await asyncio.sleep(0)
            if condition():
                return self.now_s - began
            if not self._waiting or self._waiting[0][0] > began + within:
                raise TimeoutError(f"not within {within} s")
            at, _, future = heapq.heappop(self._waiting)
            self.now_s = max(self.now_s, at)
            if not future.done():
                future.set_result(None)

    async def pass_by(self, seconds: float) -> None:
        sleeping = asyncio.ensure_future(self.sleep(seconds))
        await self.until(sleeping.done, within=seconds)


@dataclass
class FakeHost:
    """A node without weights: loading takes ``load_s`` a block, announcing ``announce_s``."""

    swarm: FakeSwarm
    peer_id: str
    machine: MeasuredMachine
    load_s: float = 0.5
    announce_s: float = 0.02
    drain_s: float = 2.0
    fails: list[SwarmError] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    loaded: Span | None = None
    announced: NodeInfo | None = None

    def __post_init__(self) -> None:
        self._directory = MemoryDirectory(self.swarm.store)
        self._free = self.machine.memory_bytes
        self._max_blocks = 0

    @property
    def span(self) -> Span | None:
        return None if self.announced is None else self.announced.span

    @property
    def is_serving(self) -> bool:
        return self.loaded is not None

    @property
    def is_online(self) -> bool:
        return self.announced is not None and self.announced.state is NodeState.ONLINE

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    def links(self) -> tuple[PeerLink, ...]:
        return tuple(PeerLink(peer, 0.001) for peer in self.swarm.hosts if peer != self.peer_id)

    async def living_nodes(self) -> list[NodeInfo]:
        return [node for node in await self._directory.nodes(MODEL) if node.peer_id not in self.swarm.dead]

    async def announce_intent(self, span: Span, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        await self._announce(NodeState.JOINING, span)

    async def stand_by(self) -> None:
        self.announced = None
        with contextlib.suppress(NetworkError):
            await self._directory.withdraw()

    async def start_draining(self) -> None:
        assert self.loaded is not None
        await self._announce(NodeState.DRAINING, self.loaded)

    async def resume(self) -> None:
        assert self.loaded is not None
        await self._announce(NodeState.ONLINE, self.loaded)

    async def load(self, span: Span) -> None:
        assert self.loaded is None
        assert (self.announced.state, self.announced.span) == (NodeState.JOINING, span)
        await self.swarm.time.sleep(self.load_s * len(span))
        if self.fails:
            raise self.fails.pop(0)
        if (self.machine.lean or SHAPE).room_of(len(span)) > self._free:
            raise MemoryShortError("too many blocks")
        self.loaded = span

    async def go_online(self, max_blocks: int) -> None:
        assert self.loaded is not None
        self._max_blocks = max_blocks
        await self._announce(NodeState.ONLINE, self.loaded)
        self.emit("online")

    async def unload(self) -> None:
        assert self.announced.state is NodeState.DRAINING
        await self.swarm.time.sleep(self.drain_s)
        self.loaded = None
        self.swarm.check()

    async def remeasure(self) -> None:
        if self.loaded is not None:
            await self._announce(self.announced.state, self.loaded)

    async def measure(self) -> MeasuredMachine:
        assert self.loaded is None
        return self.machine

    def usable_memory(self) -> int:
        assert self.loaded is None
        return self._free

    def set_free(self, blocks: int) -> None:
        self._free = blocks * ROOM

    def emit(self, event: str, **details: object) -> None:
        self.events.append((event, details))

    async def _announce(self, state: NodeState, span: Span) -> None:
        await self.swarm.time.sleep(self.announce_s)
        self.announced = NodeInfo(
            peer_id=self.peer_id,
            maddrs=(),
            model=MODEL,
            span=span,
            state=state,
            decode_ms_per_block=self.machine.decode_ms_per_block,
            prefill_tokens_per_s=self.machine.prefill_tokens_per_s / len(span),
            free_kv_tokens=1000,
            total_kv_tokens=1000,
            links=self.links(),
            max_blocks=self._max_blocks,
        )
        with contextlib.suppress(NetworkError):  # the announcer tries again
            await self._directory.announce(self.announced)
        self.swarm.check()


class FakeSwarm:
    """Use as an async context manager; ``never_uncovered`` is set once every block is served."""

    def __init__(self, planner: Planner) -> None:
        self.time = Time()
        self.store = MemoryStore(clock=self.time.now)
        self.hosts: dict[str, FakeHost] = {}
        self.dead: set[str] = set()
        self.never_uncovered = False
        self.holes = 0
        self.most_moving = 0
        self._news = 0
        self._planner = planner
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, peer_id: str, what: MeasuredMachine, **options: Any) -> FakeHost:
        host = self.hosts[peer_id] = FakeHost(self, peer_id, what, **options)
        auto = AutoBlocks(
            host,
            what,
            planner=self._planner,
            clock=self.time.now,
            sleep=self.time.sleep,
            rng=random.Random(peer_id),
            call=_call,
        )

        async def live() -> None:
            await auto.begin()
            await auto.run()

        async def refresh() -> None:
            while True:
                await self.time.sleep(20)
                if host.announced is not None and not self.store.down:
                    self.store.put(host.announced)

        async def both() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(live())
                tasks.create_task(refresh())

        self._tasks[peer_id] = asyncio.create_task(both())
        return host

    async def kill(self, peer_id: str, *, noticed: bool = True) -> None:
        """Its record stays until it expires; ``noticed``: the others find it dead."""
        task = self._tasks.pop(peer_id)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        del self.hosts[peer_id]
        if noticed:
            self.dead.add(peer_id)

    @property
    def spans(self) -> dict[str, Span | None]:
        return {peer: host.loaded for peer, host in self.hosts.items()}

    def is_covered(self) -> bool:
        """Every block is served by a node that is online or drains."""
        served: set[int] = set()
        for host in self.hosts.values():
            if host.loaded is not None and host.announced.state is not NodeState.JOINING:
                served.update(range(host.loaded.start, host.loaded.end))
        return len(served) == SHAPE.n_blocks

    def check(self) -> None:
        moving = [host for host in self.hosts.values() if host.loaded is None and "moving" in host.names]
        self.most_moving = max(self.most_moving, sum(host.names[-1] != "online" for host in moving))
        if self.never_uncovered and not self.is_covered():
            self.holes += 1

    def news(self) -> None:
        """Something changes in the directory, so that everybody plans anew: another node becomes slower."""
        self._news += 1
        self.store.put(
            NodeInfo(
                peer_id="zz-passer-by",
                maddrs=(),
                model=MODEL,
                span=Span(0, 1),
                state=NodeState.ONLINE,
                decode_ms_per_block=10.0 * 2**self._news,
            )
        )

    async def end_of(self, peer_id: str, *, within: float) -> BaseException:
        """What a node ended with."""
        task = self._tasks[peer_id]
        await self.time.until(task.done, within=within)
        del self._tasks[peer_id]
        error = task.exception()
        assert isinstance(error, ExceptionGroup)
        return error.exceptions[0]

    async def covered(self, *, within: float) -> float:
        return await self.time.until(self.is_covered, within=within)

    async def __aenter__(self) -> FakeSwarm:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result


async def _call(function: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
    return function(*args, **options)
