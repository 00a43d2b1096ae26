"""A serving node put together: identity, network, directory, weights, engine, server, announcements."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version

import torch

from ..shards.autoselect import LoadOptions
from ..shards.checkpoint import Checkpoint, open_checkpoint
from ..shards.kv_pool import PAGE_TOKENS, KvPool, resolve_kv_dtype, slot_bytes
from ..shards.row_check import check_rows
from ..shards.span_model import SpanModel, load_span
from ..swarm.errors import LocalProtocolError, SwarmError, UsageError
from ..swarm.identity import Identity
from ..swarm.transport import NetworkChange, NetworkRestored
from ..swarm.types import ModelRef, NodeInfo, NodeState, Span
from ..swarm.wire import DEFAULT_MAX_FRAME, PROTOCOL_ID
from .announcer import Announcer
from .config import BootstrapConfig, NodeConfig, NodeEvent, OnEvent
from .engine import Engine, EngineLoad, EngineSettings
from .kernels import compile_kernels
from .link_probe import LinkProbe
from .network import Network, network_event, open_network
from .page_tables import slots_for
from .quotas import Limits
from .resources import available_memory, default_kv_tokens, default_threads
from .self_bench import SelfMeasurement, measure_self
from .server import NodeServer, ServerStatistics

__all__ = ["BootstrapConfig", "Node", "NodeConfig", "NodeEvent", "NodeStatistics", "run_node"]

log = logging.getLogger(__name__)

SWEEP_S = 5.0
"""Seconds between looks for idle sessions and connections."""

OnProgress = Callable[[int, int, str], None]
"""``on_progress(done_bytes, total_bytes, label)`` while weights load; called in a worker thread."""


@dataclass(frozen=True, slots=True)
class NodeStatistics:
    server: ServerStatistics
    engine: EngineLoad


class Node:
    """One serving node.

        node = Node(config, on_event)
        await node.start()      # raises SwarmError; returns once the node is announced as online
        ...
        await node.drain()      # no new sessions; running ones have drain_seconds
        await node.stop()       # withdraw, close streams, free everything; start may fail and still need it

    ``run`` does all of it and ends when ``request_stop`` is called or the network is lost for good.
    ``network``: a transport and directory to use in place of a p2pd of its own, for tests; the node closes
    them in either case.
    """

    def __init__(
        self,
        config: NodeConfig,
        on_event: OnEvent,
        *,
        on_progress: OnProgress | None = None,
        network: Network | None = None,
    ) -> None:
        self.config = config
        self._on_event = on_event
        self._on_progress = on_progress
        self._network = network
        self._exit = AsyncExitStack()
        self._stop_requested = asyncio.Event()
        self._impatient = asyncio.Event()
        self._stopped = False
        self._state = NodeState.JOINING
        self._maddrs: tuple[str, ...] = ()
        self._model: ModelRef | None = None
        self._span: Span | None = None
        self._weights = self._kernels = self._kv_dtype = self._row_check = ""
        self._measured = SelfMeasurement(0.0, 0.0)
        self._engine: Engine | None = None
        self._server: NodeServer | None = None
        self._announcer: Announcer | None = None
        self._probe: LinkProbe | None = None
        self._background: asyncio.Task[None] | None = None

    @property
    def peer_id(self) -> str:
        """Empty before the node listens."""
        return "" if self._network is None else self._network.transport.peer_id

    @property
    def maddrs(self) -> tuple[str, ...]:
        return self._maddrs

    @property
    def state(self) -> NodeState:
        return self._state

    def info(self) -> NodeInfo:
        """What the node announces now. Raises LocalProtocolError before it knows its model."""
        if self._model is None or self._span is None:
            raise LocalProtocolError("the node has no model yet")
        statistics = self.statistics()
        server = None if statistics is None else statistics.server
        load = None if statistics is None else statistics.engine
        return NodeInfo(
            peer_id=self.peer_id,
            maddrs=self._maddrs,
            model=self._model,
            span=self._span,
            state=self._state,
            decode_ms_per_block=self._measured.decode_ms_per_block,
            prefill_tokens_per_s=self._measured.prefill_tokens_per_s,
            free_kv_tokens=server.free_kv_tokens if server else 0,
            total_kv_tokens=server.total_kv_tokens if server else 0,
            codecs=self._server.offer.codecs if self._server else (),
            weights=self._weights,
            version=version("swarm-node"),
            queue_ms=round(load.queue_ms, 3) if load else 0.0,
            tokens_per_s=round(load.tokens_per_s, 1) if load else 0.0,
            sessions=server.sessions if server else 0,
            links=self._probe.links() if self._probe is not None else (),
            journal_bytes=server.journal.used if server else 0,
            total_journal_bytes=server.journal.budget if server else 0,
            row_check=self._row_check,
        )

    def statistics(self) -> NodeStatistics | None:
        """None until the node is online."""
        if self._server is None or self._engine is None:
            return None
        return NodeStatistics(self._server.statistics(), self._engine.load())

    async def start(self) -> None:
        """Listen, load, measure, announce. Raises SwarmError; call ``stop`` then too."""
        config = self.config
        threads = config.threads or default_threads()
        torch.set_num_threads(threads)  # for loading; the compute thread sets its own
        # The model first: a wrong path must not wait for the network.
        checkpoint = await asyncio.to_thread(
            open_checkpoint, config.model, blocks=config.blocks, progress=self._on_progress
        )
        self._exit.callback(checkpoint.close)
        self._model = checkpoint.ref
        self._span = _span_of(config.blocks, checkpoint)
        await self._join_network()
        if config.kernels != "torch":
            await self._compile_kernels()
        self._emit("loading")
        options = LoadOptions(
            device=config.device,
            dtype=config.dtype,
            quantize=config.quantize,
            kernels=config.kernels,
            deterministic=config.deterministic,
        )
        span_model = await asyncio.to_thread(
            load_span, checkpoint, self._span, options, self._on_progress, threads=threads
        )
        checkpoint.release()
        self._weights, self._kernels = span_model.weights, span_model.kernels
        context = span_model.config.max_position_embeddings
        pool = self._kv_pool(span_model)
        engine = self._engine = Engine(
            span_model,
            pool,
            threads=threads,
            settings=EngineSettings(
                max_batch_tokens=config.max_batch_tokens,
                prefill_target_ms=config.prefill_target_ms,
                prefix_cache=config.prefix_cache,
            ),
        )
        engine.start()
        self._exit.push_async_callback(engine.stop)
        if config.deterministic:
            self._row_check = await engine.run(lambda: check_rows(span_model, pool.kv_dtype))
        longest = min(context, engine.total_tokens)
        self._measured = await engine.run(lambda: measure_self(span_model, pool.kv_dtype, longest))
        self._server = NodeServer(
            engine,
            self._model,
            context_tokens=context,
            agent=f"swarm-node/{version('swarm-node')}",
            limits=Limits(
                max_sessions=config.max_sessions,
                max_sessions_per_peer=config.max_sessions_per_peer,
                max_connections_per_peer=config.max_connections_per_peer,
                max_step_tokens=config.max_step_tokens,
                kv_share_per_peer=config.max_kv_share_per_peer,
                idle_session_seconds=config.idle_session_seconds,
                idle_connection_seconds=config.idle_connection_seconds,
            ),
            max_frame=config.max_frame or DEFAULT_MAX_FRAME,
            transport=None if self._network is None else self._network.transport,
            journal_bytes=config.journal_mib * 1024 * 1024,
        )
        self._exit.push_async_callback(self._server.aclose)
        await self._go_online(self._server)

    async def drain(self) -> None:
        """Announce DRAINING, take no new sessions, wait for the open ones up to ``drain_seconds``."""
        if self._server is None or self._state is NodeState.DRAINING:
            return
        self._state = NodeState.DRAINING
        self._server.begin_drain()
        statistics = self._server.statistics()
        self._emit("draining", sessions=statistics.sessions, drain_seconds=self.config.drain_seconds)
        if self._announcer is not None:
            self._announcer.poke()
        if statistics.sessions:
            try:
                async with asyncio.timeout(self.config.drain_seconds):
                    await _first(self._server.wait_idle(), self._impatient.wait())
            except TimeoutError:
                log.warning("event=drain_timeout sessions=%d", self._server.statistics().sessions)

    async def stop(self) -> None:
        """Withdraw the announcement, close every stream, stop the engine, close the network. May be called
        again."""
        if self._stopped:
            return
        self._stopped = True
        if self._background is not None:
            self._background.cancel()
            await asyncio.gather(self._background, return_exceptions=True)
        try:
            if self._announcer is not None:
                await self._announcer.withdraw()
        finally:
            await self._exit.aclose()
        self._emit("stopped")

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
                await _first(self.start(), self._stop_requested.wait())
                if not self._stop_requested.is_set():
                    await _first(self._failed(), self._stop_requested.wait())
                await self.drain()
            except SwarmError as error:
                self._emit("error", message=error.message, hint=error.hint)
                raise
        finally:
            await self.stop()

    async def _failed(self) -> None:
        """Wait until something that must run for ever does not; raises its error."""
        if self._network is None or self._background is None:
            raise LocalProtocolError("the node was not started")
        # asyncio.wait leaves the background running when this wait is cancelled: draining needs it.
        await _first(self._network.failed(), asyncio.wait([self._background]))
        self._background.result()

    # Steps of start.

    async def _join_network(self) -> None:
        config = self.config
        if self._network is None:
            identity = Identity.load_or_create(config.identity) if config.identity else Identity.generate()
            self._network = await open_network(
                identity,
                host=config.host,
                port=config.port,
                announce_maddrs=config.announce_maddrs,
                initial_peers=config.initial_peers,
                relays=config.relays,
            )
        self._exit.push_async_callback(self._network.close)
        self._maddrs = await self._network.transport.maddrs()
        self._network.watch(self._on_network)
        self._emit("listening")

    async def _on_network(self, change: NetworkChange) -> None:
        if isinstance(change, NetworkRestored) and self._network is not None:
            self._maddrs = await self._network.transport.maddrs()  # the computer may have moved
            if self._announcer is not None:
                self._announcer.poke()
        event, details = network_event(change)
        self._emit(event, **details)

    async def _compile_kernels(self) -> None:
        loop = asyncio.get_running_loop()

        def on_compiling() -> None:
            loop.call_soon_threadsafe(self._emit, "compiling")

        await asyncio.to_thread(compile_kernels, self.config.device, on_compiling)

    def _kv_pool(self, model: SpanModel) -> KvPool:
        """Memory for the KV cache: as many whole pages as were asked for, or as free memory suggests."""
        config, blocks = model.config, len(model.span)
        kv_dtype = resolve_kv_dtype(
            self.config.kv_dtype, model.dtype, self.config.dtype == "float32", model.device
        )
        tokens = self.config.kv_cache_tokens
        if tokens is None:
            per_token = slot_bytes(config.n_kv_heads, config.head_dim, kv_dtype) * blocks // PAGE_TOKENS
            tokens = default_kv_tokens(
                available_memory(model.device), per_token, config.max_position_embeddings
            )
        slots = slots_for(tokens, blocks, PAGE_TOKENS)
        try:
            pool = KvPool(slots, config.n_kv_heads, config.head_dim, kv_dtype, model.device)
        except RuntimeError as error:  # torch's allocators raise it and its subclass OutOfMemoryError
            log.warning("event=kv_allocation_failed slots=%d error=%r", slots, str(error)[:200])
            raise UsageError(
                f"{tokens} tokens of KV cache as {kv_dtype} do not fit into the memory of {model.device}",
                hint="Choose a smaller --kv-cache-tokens, fewer --blocks or --kv-dtype int8.",
            ) from error
        self._kv_dtype = kv_dtype
        return pool

    async def _go_online(self, server: NodeServer) -> None:
        if self._network is None:
            raise LocalProtocolError("the node goes online before it has a network")
        await self._network.transport.serve(PROTOCOL_ID, server.handle)
        self._state = NodeState.ONLINE
        if (pool := server.next_hops.pool) is not None:
            self._probe = LinkProbe(self._network.directory, pool, self.info)
            server.next_hops.on_link = self._probe.observed
        self._announcer = Announcer(self._network.directory, self.info, self.config.announce_seconds)
        announced = await self._announcer.announce()
        self._background = asyncio.create_task(self._keep_up(server, self._announcer), name="node-background")
        statistics = server.statistics()
        self._emit(
            "online",
            announced=announced,
            n_blocks=0 if self._model is None else self._model.n_blocks,
            weights=self._weights,
            kernels=self._kernels,
            deterministic=self.config.deterministic,
            row_check=self._row_check,
            kv_dtype=self._kv_dtype,
            kv_cache_tokens=statistics.total_kv_tokens,
            journal_mib=self.config.journal_mib,
            decode_ms_per_block=round(self._measured.decode_ms_per_block, 4),
            prefill_tokens_per_s=round(self._measured.prefill_tokens_per_s, 1),
        )

    async def _keep_up(self, server: NodeServer, announcer: Announcer) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(announcer.run())
            tasks.create_task(_sweep(server))
            if self._probe is not None:
                tasks.create_task(self._probe.run())

    def _emit(self, event: str, **details: object) -> None:
        log.info(
            "event=%s peer=%s %s",
            event,
            self.peer_id,
            " ".join(f"{key}={value!r}" for key, value in details.items()),
        )
        self._on_event(
            NodeEvent(
                event,
                peer_id=self.peer_id,
                maddrs=self._maddrs,
                model="" if self._model is None else self._model.name,
                blocks="" if self._span is None else str(self._span),
                details=details,
            )
        )


async def run_node(
    config: NodeConfig,
    on_event: OnEvent,
    *,
    on_progress: OnProgress | None = None,
    network: Network | None = None,
) -> None:
    """Serve until cancelled; then stop at once. Use ``Node`` to drain first. Raises SwarmError."""
    await Node(config, on_event, on_progress=on_progress, network=network).run()


def _span_of(blocks: Span | None, checkpoint: Checkpoint) -> Span:
    n_blocks = checkpoint.config.n_blocks
    span = blocks or Span(0, n_blocks)
    if span.end > n_blocks:
        raise UsageError(
            f"blocks {span} are outside the model, which has {n_blocks} (0 to {n_blocks - 1})",
            hint=f"Choose --blocks within 0-{n_blocks - 1}.",
        )
    return span


async def _sweep(server: NodeServer) -> None:
    while True:
        await asyncio.sleep(SWEEP_S)
        server.sweep()


async def _first(*awaitables: Awaitable[object]) -> None:
    """Wait for the first to end, cancel the others; raises what the first raised."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
