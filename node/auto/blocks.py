"""The node that decides for itself: which blocks it serves, when it changes them, and when it stands by.

It looks at the directory, asks the planner (``swarm.placement.planner``, which is pure), and does what it
says:

    join    announce JOINING with the span it means to serve, wait until those who start at the same time have
            settled, announce that it loads, load, go online
    move    announce DRAINING, wait and look again, drain, unload, load, go online; one node at a time
    wait    announce nothing, say why, look again

That only one node moves at a time needs no lock. A node that wants to move looks first that no other does,
announces DRAINING, and looks again after longer than an announcement takes. Two that began within that time
then see each other, and the one with the smaller peer id goes on (Fischer's mutual exclusion by timing).
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

from ...shards.checkpoint.checkpoint import Checkpoint
from ...swarm.errors import NetworkError, SwarmError
from ...swarm.faults import Faults
from ...swarm.placement import planner as placement
from ...swarm.placement.types import ModelShape, NodeOffer, Serve, StandBy, Stay, Verdict
from ...swarm.types import NodeInfo, PeerLink, Span
from ..config import EventName
from ..node import Node
from ..resources import MemoryShortError
from .host import AutoHost
from .machine import MeasuredMachine, measure_machine

T = TypeVar("T")
logger = logging.getLogger(__name__)

SETTLE_S = 1.0
"""Seconds without news of joining nodes before a node begins to load, and before a mover looks again. An
announcement is seen in less, which in a wide-area swarm is some round trips."""
LONGEST_SETTLE_S = 15.0
"""After this many seconds a node begins to load even if others still come and go."""
WAITING_LOOK = 0.4
"""A node that stands by looks at the directory after this part of the usual time: it has nothing else to
do."""
SPEED_STEP, LINK_STEP = 0.02, 0.3
"""Parts by which announced speeds and round trips must differ to make another plan for a move."""
RESTING_LOOK_S = 30.0
"""Seconds between looks of a node that would move if it had not moved lately."""
JITTER = 0.3
"""This part of those times is random, so that nodes do not look in step."""
RETRY_S = 10.0
"""Seconds to the next try after a failure of the network, or of a source of weights."""
SHORT_S = 600.0
"""After memory ran short, fewer blocks are tried for this many seconds."""
REMEASURE_S = 60.0
"""Seconds between measurements of the speed that is announced, and of a node that stands by."""


_FIGURES = re.compile(r"[\d.]+")


class Planner(Protocol):
    """The part of ``swarm.placement.planner`` that is used here."""

    def plan_join(self, snapshot: Sequence[NodeInfo], offer: NodeOffer, shape: ModelShape) -> Verdict: ...

    def plan_move(
        self,
        snapshot: Sequence[NodeInfo],
        offer: NodeOffer,
        shape: ModelShape,
        *,
        now: float,
        last_move_at: float | None = None,
    ) -> Serve | Stay: ...

    def why_not_leave(self, snapshot: Sequence[NodeInfo], peer_id: str, n_blocks: int) -> str: ...


class RunInThread(Protocol):
    def __call__(
        self, function: Callable[..., T], /, *args: Any, **options: Any
    ) -> Coroutine[Any, Any, T]: ...


class AutoBlocks:
    """``begin`` makes the first decision and carries it out; ``run`` goes on until cancelled. ``clock`` in
    seconds, ``sleep`` on it; ``look_s``: between looks at the directory; ``call`` runs the planner, in a
    thread, as a large swarm takes it a while.
    """

    def __init__(
        self,
        host: AutoHost,
        machine: MeasuredMachine,
        *,
        look_s: float = 5.0,
        planner: Planner = placement,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        rng: random.Random | None = None,
        call: RunInThread = asyncio.to_thread,
    ) -> None:
        self.machine = machine
        self._host = host
        self._look_s = look_s
        self._planner = planner
        self._clock = clock
        self._sleep = sleep
        self._random = rng or random.Random()
        self._call = call
        self._last_move_at: float | None = None
        self._measured_at = clock()
        self._faults = Faults("planning blocks")
        self._said = ""
        # The last questions to the planner, which takes a while and always says the same of the same.
        self._joined: tuple[object, Verdict] | None = None
        self._shape = machine.shape  # what the blocks were planned with
        self._stayed: tuple[object, float, Stay] | None = None
        self._short: tuple[float, int] | None = None  # until when at most this many blocks are tried

    async def begin(self) -> None:
        """Join, or stand by. Raises SwarmError where loading fails for another reason than memory."""
        while not await self._try(self._join):
            await self._pause(RETRY_S)

    async def run(self) -> None:
        """Look again and again. Raises SwarmError as ``begin`` does."""
        while True:
            await self._pause(self._look_s * (1 if self._host.is_serving else WAITING_LOOK))
            await self._try(self._reconsider if self._host.is_serving else self._join)

    async def _try(self, step: Callable[[], Awaitable[None]]) -> bool:
        """False where the network failed, or a source of weights: that passes."""
        try:
            await step()
        except NetworkError as error:
            logger.info("event=plan_failed serving=%s error=%r", self._host.is_serving, error.message)
            if not self._host.is_serving:
                await self._host.stand_by()
                self._say("standing_by", error.message)
            return False
        return True

    # Joining.

    async def _join(self) -> None:
        if self._clock() - self._measured_at >= REMEASURE_S:
            self.machine = await self._host.measure()  # it may have been busy with something else
            self._measured_at = self._clock()
        while True:
            self._look_at_memory()
            verdict = await self._settled()
            if isinstance(verdict, StandBy):
                await self._host.stand_by()
                self._say("standing_by", verdict.why)
                return
            if await self._load(verdict.span):
                return

    async def _settled(self) -> Verdict:
        """What to serve, once all nodes that are about to join have had the time to say so."""
        host, began, news_at = self._host, self._clock(), self._clock()
        seen: object = None
        announced: Span | None = None
        while True:
            nodes = await self._living()
            others = [node for node in nodes if node.peer_id != host.peer_id]
            verdict = await self._plan_join(nodes)
            if isinstance(verdict, StandBy):
                return verdict
            news = frozenset((node.peer_id, node.span, node.state, node.max_blocks) for node in others)
            now = self._clock()
            if news != seen or verdict.span != announced:
                seen, news_at = news, now
            if now - began >= LONGEST_SETTLE_S:
                return verdict
            if verdict.span != announced:
                self._plan_told(verdict)
                await host.announce_intent(verdict.span, self._max_blocks())
                announced = verdict.span
            elif now - news_at >= SETTLE_S:
                return verdict
            await self._sleep(SETTLE_S / 4)

    async def _plan_join(self, nodes: Sequence[NodeInfo]) -> Verdict:
        machine = self.machine
        if self._shape is not machine.shape:  # what was announced was planned with another
            nodes = [node for node in nodes if node.peer_id != self._host.peer_id]
        nodes = _as_all_see_it(nodes)
        offer = machine.offer(self._host.peer_id, _links_in_steps(self._host.links()))
        view = nodes, offer
        if self._joined is None or self._joined[0] != view:
            verdict, self._shape = await self._planned(
                lambda some: machine.choose(partial(self._planner.plan_join, some, offer)), nodes
            )
            self._joined = view, verdict
        return self._joined[1]

    def _max_blocks(self) -> int:
        return self._shape.max_blocks(self.machine.memory_bytes)

    async def _planned(self, plan: Callable[[Sequence[NodeInfo]], T], nodes: Sequence[NodeInfo]) -> T:
        """What the planner says of ``nodes``, without those that it fails over. Raises NetworkError if it
        fails in any case."""
        try:
            return await self._call(self._faults.without_culprits, plan, nodes, _peer_id)
        except Exception as fault:
            self._faults.note(fault)
            raise NetworkError("no plan can be made of what the swarm's nodes announce") from fault

    async def _load(self, span: Span) -> bool:
        """Load and go online. False where memory was short: fewer blocks may fit."""
        host = self._host
        await host.announce_intent(span, 0)
        try:
            await host.load(span)
        except MemoryShortError as error:
            self._short = self._clock() + SHORT_S, len(span) - 1
            host.emit("memory_short", message=error.message, max_blocks=len(span) - 1)
            await host.stand_by()
            return False
        self._last_move_at = self._measured_at = self._clock()
        self._said = ""
        await host.go_online(self._max_blocks())
        return True

    async def _living(self) -> list[NodeInfo]:
        """Raises NetworkError, also if announcements of peers break the reading."""
        try:
            return await self._host.living_nodes()
        except NetworkError:
            raise
        except SwarmError as error:
            raise NetworkError(error.message, hint=error.hint) from error
        except Exception as fault:
            self._faults.note(fault)
            raise NetworkError("what the swarm's nodes announce cannot be read") from fault

    # Moving.

    async def _reconsider(self) -> None:
        host = self._host
        if self._clock() - self._measured_at >= REMEASURE_S:
            self._measured_at = self._clock()
            await host.remeasure()
        verdict = await self._plan_move(await self._living())
        if isinstance(verdict, Stay):
            logger.debug("event=stay why=%r mover=%s", verdict.why, verdict.mover)
            return
        host.emit("moving", **{**verdict.as_dict(), "blocks": str(host.span), "to": str(verdict.span)})
        began = self._clock()
        await host.start_draining()
        await self._sleep(max(SETTLE_S, 2 * (self._clock() - began)))
        if why_not := await self._why_not_leave():
            await host.resume()
            host.emit("staying", why=why_not)
            return
        await host.unload()
        if not await self._load(verdict.span):
            await self._join()

    async def _why_not_leave(self) -> str:
        own, n_blocks = self._host.peer_id, self.machine.shape.n_blocks
        try:
            nodes = await self._living()
            return await self._planned(lambda some: self._planner.why_not_leave(some, own, n_blocks), nodes)
        except NetworkError as error:
            return error.message

    async def _plan_move(self, nodes: Sequence[NodeInfo]) -> Serve | Stay:
        """Only what all nodes can see goes into it, of this node too."""
        host, shape, now = self._host, self._shape, self._clock()
        nodes = _as_all_see_it(nodes)
        own = next((node for node in nodes if node.peer_id == host.peer_id), None)
        if own is None:
            return Stay("this node's own announcement is not in the directory yet")
        if self._stayed is not None and self._stayed[0] == nodes:
            _, at, stay = self._stayed
            # It is a matter of time only where the cool-down is all that keeps this node from moving.
            if stay.mover != host.peer_id or now - at < RESTING_LOOK_S:
                return stay
        offer = NodeOffer(
            peer_id=own.peer_id,
            memory_bytes=shape.room_of(own.max_blocks),
            decode_ms_per_block=own.decode_ms_per_block / shape.mean_time(own.span),
            prefill_tokens_per_s=own.prefill_tokens_per_s * len(own.span),
            links=own.links,
        )
        verdict = await self._planned(
            lambda some: self._planner.plan_move(
                some, offer, shape, now=now, last_move_at=self._last_move_at
            ),
            nodes,
        )
        self._stayed = (nodes, now, verdict) if isinstance(verdict, Stay) else None
        return verdict

    def _look_at_memory(self) -> None:
        memory = self._host.usable_memory()
        if self._short is not None and self._clock() < self._short[0]:
            memory = min(memory, self._shape.room_of(self._short[1]))
        self.machine = replace(self.machine, memory_bytes=memory)

    def _plan_told(self, verdict: Serve) -> None:
        if verdict.why != self._said:
            self._said = verdict.why
            self._host.emit("planned", **verdict.as_dict())

    def _say(self, event: EventName, why: str) -> None:
        """Unless it was said already, but for the figures."""
        if (what := _FIGURES.sub("", why)) != self._said:
            self._said = what
            self._host.emit(event, why=why)

    async def _pause(self, seconds: float) -> None:
        await self._sleep(seconds * (1 + JITTER * (2 * self._random.random() - 1)))


def _peer_id(node: NodeInfo) -> str:
    return node.peer_id


def _as_all_see_it(nodes: Sequence[NodeInfo]) -> tuple[NodeInfo, ...]:
    """What a plan depends on, in steps and without what changes from moment to moment. So nodes that look at
    different times still agree on each node's part."""
    known = {node.peer_id for node in nodes}
    return tuple(
        replace(
            node,
            maddrs=(),
            decode_ms_per_block=_in_steps(node.decode_ms_per_block, SPEED_STEP),
            prefill_tokens_per_s=_in_steps(node.prefill_tokens_per_s, SPEED_STEP),
            free_kv_tokens=node.total_kv_tokens,
            free_states=node.total_states,
            queue_ms=0.0,
            tokens_per_s=0.0,
            sessions=0,
            journal_bytes=0,
            links=_links_in_steps([link for link in node.links if link.peer_id in known]),
        )
        for node in sorted(nodes, key=lambda node: node.peer_id)
    )


def _links_in_steps(links: Sequence[PeerLink]) -> tuple[PeerLink, ...]:
    return tuple(
        PeerLink(link.peer_id, _in_steps(link.rtt_s, LINK_STEP), _in_steps(link.bytes_per_s, LINK_STEP))
        for link in sorted(links, key=lambda link: link.peer_id)
    )


def _in_steps(value: float, step: float) -> float:
    """Rounded to a power of ``1 + step``."""
    return (1 + step) ** round(math.log(value, 1 + step)) if value > 0 else 0.0


async def begin_auto(node: Node, checkpoint: Checkpoint) -> AutoBlocks:
    """Measure the machine for the model, choose blocks and serve them, or stand by; ``run`` of what this
    gives looks again from then on. Raises SwarmError."""
    config, model, manifest = node.config, checkpoint.config, checkpoint.manifest

    async def measure() -> MeasuredMachine:
        return await asyncio.to_thread(measure_machine, config, model, manifest, node.threads)

    machine = await measure()
    node.emit("measured", **machine.as_dict())
    auto = AutoBlocks(AutoHost(node, machine, measure), machine, look_s=config.look_seconds)
    await auto.begin()
    return auto
