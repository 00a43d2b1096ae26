"""A node put together: identity, network, directory, services, and one span of a model at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version
from time import monotonic
from typing import Protocol

from ..dht.directory import Directory
from ..dht.joining.network import Network, open_network
from ..shards.checkpoint.checkpoint import Checkpoint
from ..swarm.errors import LocalProtocolError, ModelError, SwarmError, UsageError
from ..swarm.identity import Identity
from ..swarm.runtime.cores import default_threads
from ..swarm.runtime.tasks import end, first
from ..swarm.transport.interface import Stream, Transport
from ..swarm.transport.limited import announced
from ..swarm.types import ModelRef, NodeInfo, NodeState, Span
from .config import EventName, NodeConfig, NodeEvent, OnEvent
from .figures.work import WorkDone, WorkTotals
from .loaded_span import SWEEP_S, LoadedSpan, NodeStatistics, OnProgress, compile_kernels
from .model_source import LocalOrHubModel, ModelSource
from .presence.presence import Presence, reject
from .resources import give_memory_back

logger = logging.getLogger(__name__)

Service = Callable[["Node"], AbstractAsyncContextManager[object]]
"""Something that a node does beside its span. Entered once the node is in its network, before it loads
anything; left before the network closes."""


class Decider(Protocol):
    """Decides which blocks the node serves, or which model, for as long as the node lives."""

    async def run(self) -> None:
        """Until cancelled. Raises SwarmError where the node cannot go on."""


BeginAuto = Callable[["Node", Checkpoint], Awaitable[Decider]]
"""Makes the first decision on blocks of a model, and serves them or stands by: ``auto.blocks.begin_auto``."""


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """A node at one moment. ``ready``: it serves a span, and the swarm knows. ``load``: None while no span is
    loaded. ``work``: since the start."""

    state: NodeState
    model: ModelRef | None
    span: Span | None
    ready: bool
    uptime_s: float
    load: NodeStatistics | None
    work: WorkTotals


class Node:
    """One serving node.

        node = Node(config, on_event)
        await node.start()      # raises SwarmError; returns once the node is announced as online
        ...
        await node.drain()      # no new sessions; running ones have drain_seconds
        await node.stop()       # withdraw, close streams, free everything; start may fail and still need it

    ``run`` does all of it and ends when ``request_stop`` is called or the network is lost for good.
    ``network``: a transport and directory to use in place of a p2pd of its own, for tests; the node closes
    them in either case. ``source``: where the model comes from, if not from this disk or the hub.
    ``begin_auto``: for a node that chooses its blocks itself. ``on_demand``: what then decides on the model;
    made once the node is in its network. ``start`` returns before there is one.
    """

    def __init__(
        self,
        config: NodeConfig,
        on_event: OnEvent,
        *,
        on_progress: OnProgress | None = None,
        network: Network | None = None,
        source: ModelSource | None = None,
        services: Sequence[Service] = (),
        begin_auto: BeginAuto | None = None,
        on_demand: Callable[[Node], Decider] | None = None,
    ) -> None:
        self.config = config
        self.threads = config.threads or default_threads()
        self.source: ModelSource = source or LocalOrHubModel(config.model, on_progress)
        self.services = list(services)
        self.amend: list[Callable[[NodeInfo], NodeInfo]] = []
        """What services add to the announcement; ``announce_soon`` when it changed."""
        self.loaded: LoadedSpan | None = None
        self._on_event = on_event
        self._on_progress = on_progress
        self._network = network
        self._work = WorkDone()
        self._began = monotonic()
        self._exit = AsyncExitStack()
        self._stop_requested = asyncio.Event()
        self._impatient = asyncio.Event()
        self._listens = asyncio.Event()
        self._leaving = self._stopped = False
        self._state = NodeState.JOINING
        self._model: ModelRef | None = None
        self._span: Span | None = None
        self._presence: Presence | None = None
        self._version = version("swarm-node")  # read once: it is in a file
        self._background: asyncio.Task[None] | None = None
        self._begin_auto = begin_auto
        self._on_demand = on_demand
        self._deciding: asyncio.Task[None] | None = None  # on blocks
        self._demanding: asyncio.Task[None] | None = None  # and on the model
        self._amended_before: list[Callable[[NodeInfo], NodeInfo]] | None = None

    # What a node is, for services and displays.

    @property
    def peer_id(self) -> str:
        """Empty before the node listens."""
        return "" if self._network is None else self._network.transport.peer_id

    @property
    def maddrs(self) -> tuple[str, ...]:
        return () if self._presence is None else self._presence.maddrs

    @property
    def state(self) -> NodeState:
        return self._state

    @property
    def model(self) -> ModelRef | None:
        return self._model

    @property
    def span(self) -> Span | None:
        """What it serves or is about to; None before that is known, and for a node that stands by."""
        return self._span

    @property
    def network(self) -> Network:
        """Raises LocalProtocolError before the node listens."""
        if self._network is None:
            raise LocalProtocolError("the node has no network yet")
        return self._network

    @property
    def transport(self) -> Transport:
        return self.network.transport

    @property
    def directory(self) -> Directory:
        return self.network.directory

    @property
    def presence(self) -> Presence:
        """Raises LocalProtocolError before the node listens."""
        if self._presence is None:
            raise LocalProtocolError("the node has no network yet")
        return self._presence

    def info(self) -> NodeInfo:
        """What the node announces now. Raises LocalProtocolError while it has nothing to announce."""
        if self._model is None or self._span is None:
            raise LocalProtocolError("the node has no model yet")
        info = NodeInfo(
            peer_id=self.peer_id,
            maddrs=self.maddrs,
            model=self._model,
            span=self._span,
            state=self._state,
            version=self._version,
            name=self.config.name,
            up_bytes_per_s=announced(self.config.bandwidth.up),
            down_bytes_per_s=announced(self.config.bandwidth.down),
            links=self.presence.probe.links(),
            direct_maddrs=self.presence.direct_maddrs,
        )
        if self.loaded is not None:
            info = self.loaded.announced(info)
        for amend in self.amend:
            info = amend(info)
        return info

    def statistics(self) -> NodeStatistics | None:
        """None while no span is loaded."""
        return None if self.loaded is None else self.loaded.statistics()

    def figures(self) -> NodeFigures:
        """What it does now, and has done since it was made."""
        loaded = self.loaded
        announced = self._presence is not None and self._presence.announcer.is_announced
        return NodeFigures(
            state=self._state,
            model=self._model,
            span=self._span,
            ready=loaded is not None and self._state is NodeState.ONLINE and announced,
            uptime_s=monotonic() - self._began,
            load=None if loaded is None else loaded.statistics(),
            work=self._work.totals(),
        )

    # A node's life.

    async def start(self) -> None:
        """Listen, load, measure, announce. Raises SwarmError; call ``stop`` then too."""
        self._exit.callback(lambda: self.source.close())
        if self._on_demand is not None:
            await self._join_network()
            if self.config.kernels != "torch":
                await self._compile_kernels()
            self._demanding = asyncio.create_task(self._on_demand(self).run(), name="node-on-demand")
            return
        # The model first: a wrong path must not wait for the network.
        checkpoint = None if self.source.needs_network else await self._describe()
        await self._join_network()
        checkpoint = checkpoint or await self._describe()
        if self.config.kernels != "torch":
            await self._compile_kernels()
        if self.config.auto:
            await self._choose_blocks(checkpoint)
        else:
            await self.load(self.config.blocks or Span(0, checkpoint.config.n_blocks))
            await self.go_online()

    async def drain(self) -> None:
        """Announce DRAINING, take no new sessions, wait for the open ones up to ``drain_seconds``."""
        await end(self._demanding, self._deciding)
        if self.loaded is None or self._leaving:
            return
        self._leaving = True
        self._set_state(NodeState.DRAINING)
        server = self.loaded.server
        server.sessions.begin_drain()
        self.emit("draining", sessions=server.statistics().sessions, drain_seconds=self.config.drain_seconds)
        await self.loaded.drained(self._impatient)

    async def stop(self) -> None:
        """Withdraw the announcement, close every stream, stop the engine, close the network. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        await end(self._demanding, self._deciding, self._background)
        try:
            if self._presence is not None:
                await self._presence.withdraw()
        finally:
            await self._exit.aclose()
        self.emit("stopped")

    def request_stop(self) -> None:
        """For signal handlers: drain, then stop. Called again: stop without waiting for sessions."""
        if self._stop_requested.is_set():
            self._impatient.set()
        self._stop_requested.set()

    async def run(self) -> None:
        """Start, serve until ``request_stop`` or until the network is lost for good, drain and stop.

        Raises SwarmError, after an ``error`` event, if the node cannot start or cannot go on.
        """
        try:
            try:
                await first(self.start(), self._copied(), self._stop_requested.wait())
                if not self._stop_requested.is_set():
                    await first(self._failed(), self._copied(), self._stop_requested.wait())
                await self.drain()
            except SwarmError as error:
                self.emit("error", message=error.message, hint=error.hint)
                raise
        finally:
            await self.stop()

    async def _copied(self) -> None:
        """Wait until another machine turns out to have run with this node's identity before; raises
        CopiedIdentityError."""
        await self._listens.wait()
        await self.presence.copies.must_stop()

    async def _failed(self) -> None:
        """Wait until something that must run for ever does not; raises its error."""
        if self._background is None:
            raise LocalProtocolError("the node was not started")
        deciding = self._demanding or self._deciding
        tasks = [task for task in (self._background, deciding) if task is not None]
        # asyncio.wait leaves the background running when this wait is cancelled: draining needs it.
        await first(self.network.failed(), asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))
        for task in tasks:
            if task.done():
                task.result()

    # One span after another.

    async def announce_as(self, state: NodeState, span: Span | None) -> None:
        """Announce another state, and another span while nothing is loaded; no span: nothing."""
        self._state, self._span = state, span
        await self.presence.announcer.announce()

    async def load(self, span: Span) -> None:
        """Fetch and load ``span``. Raises SwarmError; nothing is loaded then."""
        if self.loaded is not None:
            raise LocalProtocolError(f"blocks {self._span} are loaded still")
        self._span = span
        self._set_state(NodeState.JOINING)
        self.emit("loading")
        began = monotonic()
        checkpoint = await self.source.open(span)
        self._model = checkpoint.ref
        self.loaded = await LoadedSpan.load(
            self.config,
            checkpoint,
            span,
            threads=self.threads,
            transport=self.transport,
            on_link=self.presence.probe.observed,
            on_progress=self._on_progress,
            work=self._work,
        )
        self._work.loaded_span(monotonic() - began)

    async def go_online(self) -> None:
        """Serve what is loaded."""
        if self.loaded is None:
            raise LocalProtocolError("the node goes online before it has loaded anything")
        await self.presence.follow(self.loaded.server.next_hops.dialler)
        self._state = NodeState.ONLINE
        announced = await self.presence.announcer.announce()
        self.emit("online", announced=announced, **self.loaded.details())

    async def unload(self) -> None:
        """Wait for open sessions as long as ``drain_seconds``, end the rest, free the memory. To be announced
        as DRAINING before; what comes next is the caller's to say."""
        if (loaded := self.loaded) is None:
            return
        await loaded.drained(self._impatient)
        await self.presence.follow(None)
        self.loaded = None
        await loaded.aclose()
        await asyncio.to_thread(give_memory_back, loaded.device)

    # One model after another: what ``OnDemand`` does.

    @property
    def is_serving(self) -> bool:
        return self.loaded is not None

    @property
    def is_used(self) -> bool:
        """Whether a session is open, or was a moment ago."""
        load = self.statistics()
        return load is not None and bool(load.server.sessions or load.engine.tokens_per_s)

    async def take(self, source: ModelSource) -> None:
        """Choose blocks of the source's model and serve them, or stand by for it. Raises SwarmError;
        ``leave`` then too."""
        self.source = source
        self._amended_before = list(self.amend)
        await self._choose_blocks(await self._describe())

    async def leave(self) -> None:
        """Drain, unload, announce nothing, and forget the model. Idempotent."""
        await end(self._deciding)
        self._deciding = None
        if self.loaded is not None:
            await self.announce_as(NodeState.DRAINING, self._span)
            await self.unload()
        await self.announce_as(NodeState.JOINING, None)
        self._model = None
        if self._amended_before is not None:
            self.amend[:] = self._amended_before
        self.source.close()

    async def failed(self) -> None:
        """Waits until what chooses blocks fails, then raises that."""
        if self._deciding is None:
            await asyncio.Event().wait()
        else:
            await asyncio.wait([self._deciding])
            self._deciding.result()

    # Steps of these.

    async def _describe(self) -> Checkpoint:
        """Learn the model's name, digest and shape; check what can be checked against it."""
        checkpoint = await self.source.describe()
        self._model = checkpoint.ref
        span, n_blocks = self.config.blocks, checkpoint.config.n_blocks
        if span is not None and span.end > n_blocks:
            raise UsageError(
                f"blocks {span} are outside the model, which has {n_blocks} (0 to {n_blocks - 1})",
                hint=f"Choose --blocks within 0-{n_blocks - 1}.",
            )
        try:
            await asyncio.to_thread(checkpoint.check_tokenizer)
        except ModelError as fault:  # served all the same: a client of another version may read it
            self.emit("tokenizer_unreadable", message=fault.message, hint=fault.hint)
        self._span = span
        return checkpoint

    async def _join_network(self) -> None:
        config = self.config
        if self._network is None:
            identity = Identity.load_or_create(config.identity) if config.identity else Identity.generate()
            self._network = await open_network(
                identity,
                **config.network_options(),
                pure_python=config.pure_python,
                direct=config.direct,
                relays=config.relays,
                bandwidth=config.bandwidth,
            )
        self._exit.push_async_callback(self._network.close)
        presence = self._presence = await Presence.begin(
            self._network,
            self._announcement,
            lambda: self._model,
            self.emit,
            config.announce_seconds,
            config.identity,
        )
        self._listens.set()
        self.emit("listening", direct=list(presence.direct_maddrs))
        for service in self.services:
            await self._exit.enter_async_context(service(self))
        self._exit.push_async_callback(self._close_loaded)
        self._exit.push_async_callback(presence.close)
        await presence.serve(self._handle)
        self._background = asyncio.create_task(self._keep_up(presence), name="node-background")

    async def _keep_up(self, presence: Presence) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(presence.run())
            tasks.create_task(self._sweep())

    async def _choose_blocks(self, checkpoint: Checkpoint) -> None:
        if self._begin_auto is None:
            raise LocalProtocolError("nothing was handed in that chooses the node's blocks")
        auto = await self._begin_auto(self, checkpoint)
        self._deciding = asyncio.create_task(auto.run(), name="node-deciding")

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            if self.loaded is not None:
                self._sweep_once(self.loaded)

    def _sweep_once(self, loaded: LoadedSpan) -> None:
        before = loaded.coarse
        loaded.sweep()
        if (coarse := loaded.coarse) != before:
            self.announce_soon()
            self.emit("coarse_codecs", codecs=list(coarse), errors=loaded.row_errors)

    async def _handle(self, stream: Stream) -> None:
        """Serve a stream with the span that is loaded when it comes."""
        if self.loaded is not None and self._state is not NodeState.JOINING:
            await self.loaded.server.handle(stream)
            return
        await reject(stream)

    def _announcement(self) -> NodeInfo | None:
        return None if self._model is None or self._span is None else self.info()

    def _set_state(self, state: NodeState) -> None:
        self._state = state
        self.announce_soon()

    def announce_soon(self) -> None:
        """What the node announces has changed."""
        if self._presence is not None:
            self._presence.announcer.announce_now()

    async def _close_loaded(self) -> None:
        loaded, self.loaded = self.loaded, None
        if loaded is not None:
            await loaded.aclose()

    async def _compile_kernels(self) -> None:
        loop = asyncio.get_running_loop()

        def on_compiling() -> None:
            loop.call_soon_threadsafe(self.emit, "compiling")

        await asyncio.to_thread(compile_kernels, self.config.device, on_compiling)

    def emit(self, event: EventName, /, **details: object) -> None:
        """Tell the starter of the node."""
        line = "".join(f" {name}=%r" for name in details)
        logger.info(f"event=%s peer=%s{line}", event, self.peer_id, *details.values())
        self._on_event(
            NodeEvent(
                event,
                peer_id=self.peer_id,
                maddrs=self.maddrs,
                model="" if self._model is None else self._model.name,
                blocks="" if self._span is None else str(self._span),
                details=details,
            )
        )
