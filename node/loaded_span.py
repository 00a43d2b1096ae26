"""One span as a node serves it: weights, KV cache, engine, server, and what was measured of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

from ..dht.records.node_records import NodeRecords
from ..shards.certificates.finding import find_certificate
from ..shards.certificates.reading import row_reader
from ..shards.checkpoint.checkpoint import Checkpoint
from ..shards.kernels import library, table
from ..shards.loading import load_backend
from ..shards.models.backend import KvMemory, SpanBackend
from ..shards.models.determinism_check import check_determinism
from ..shards.models.load_plan import LoadOptions
from ..swarm.codecs import native
from ..swarm.fidelity.row_reader import RowReader
from ..swarm.placement.types import gigabytes
from ..swarm.protocol.wire import DEFAULT_MAX_FRAME
from ..swarm.runtime.c_build import NativeUnavailableError
from ..swarm.runtime.tasks import first
from ..swarm.transport.interface import Transport
from ..swarm.types import ModelRef, NodeInfo, Span
from .config import NodeConfig
from .engine.engine import Engine, EngineLoad, EngineSettings
from .engine.memory.span_memory import SpanMemory
from .engine.self_bench import SelfMeasurement, measure_decode, measure_self
from .figures.work import WorkDone
from .limits.quotas import Limits
from .presence.presence import AGENT
from .resources import MemoryShortError, available_memory, default_kv_bytes, usable_memory
from .sessions.next_hops import OnLink
from .sessions.server import NodeServer, ServerStatistics

logger = logging.getLogger(__name__)

SWEEP_S = 5.0
"""Seconds between looks for idle sessions and connections."""

MUCH_SLOWER = 1.2
"""A change of speed by a smaller factor is noise, and would change no plan."""

_FEWER = "Choose a smaller --kv-cache-tokens, fewer --blocks or --kv-dtype int8."

OnProgress = Callable[[int, int, str], None]
"""``on_progress(done_bytes, total_bytes, label)`` while weights load; called in a worker thread."""


@dataclass(frozen=True, slots=True)
class NodeStatistics:
    server: ServerStatistics
    engine: EngineLoad


class LoadedSpan:
    """Made by ``load``; ``aclose`` ends its streams and gives the memory back."""

    def __init__(self, model: ModelRef, span: Span, config: NodeConfig, work: WorkDone | None = None) -> None:
        """Use ``load``."""
        self._work = work or WorkDone()
        self.model = model
        self.span = span
        self.weights = self.kernels = self.kv_dtype = self.row_check = ""
        self.weight_bytes = 0
        self.measured = SelfMeasurement(0.0, 0.0)
        self.device = config.device
        self._config = config
        self._exit = AsyncExitStack()
        self._engine: Engine | None = None
        self._server: NodeServer | None = None
        self.reader: RowReader | None = None
        """Of the rows that enter at the span's first block; None until it is loaded."""
        self._model: SpanBackend[Any] | None = None

    @classmethod
    async def load(
        cls,
        config: NodeConfig,
        checkpoint: Checkpoint,
        span: Span,
        *,
        threads: int,
        transport: Transport | None = None,
        on_link: OnLink | None = None,
        on_progress: OnProgress | None = None,
        work: WorkDone | None = None,
    ) -> LoadedSpan:
        """Read the weights, take memory for the KV cache, measure. Nothing is announced or served yet.
        ``work`` counts what the span does.

        Raises SwarmError; UsageError where memory is short. Nothing stays behind then.
        """
        loaded = cls(checkpoint.ref, span, config.for_model(checkpoint.config), work)
        try:
            await loaded._load(checkpoint, threads, transport, on_link, on_progress)
        except BaseException:
            await loaded.aclose()
            raise
        return loaded

    @property
    def server(self) -> NodeServer:
        if self._server is None:
            raise RuntimeError("the span is not loaded, or closed")
        return self._server

    def statistics(self) -> NodeStatistics | None:
        """None once closed."""
        if self._server is None or self._engine is None:
            return None
        return NodeStatistics(self._server.statistics(), self._engine.load())

    def announced(self, info: NodeInfo) -> NodeInfo:
        """``info`` with what is known of this span: speeds, load, memory."""
        statistics = self.statistics()
        if statistics is None:
            return info
        server, load = statistics.server, statistics.engine
        return replace(
            info,
            device=self.device,
            decode_ms_per_block=self.measured.decode_ms_per_block,
            prefill_tokens_per_s=self.measured.prefill_tokens_per_s,
            context_ms_per_block=self.measured.context_ms_per_block,
            free_kv_tokens=server.free_kv_tokens,
            total_kv_tokens=server.total_kv_tokens,
            free_states=server.free_state_sessions,
            total_states=server.state_sessions,
            codecs=self.server.terms.codecs,
            # What computes is announced where it is not one of ours: it costs much, and has other bounds.
            weights=", ".join([self.weights, *[self.kernels] * (self.kernels == "transformers")]),
            queue_ms=round(load.queue_ms, 3),
            tokens_per_s=round(load.tokens_per_s, 1),
            sessions=server.sessions,
            journal_bytes=server.journal.used,
            total_journal_bytes=server.journal.budget,
            row_check=self.row_check,
            coarse=self.coarse,
        )

    def details(self) -> dict[str, object]:
        """For the ``online`` event."""
        server = self.server.statistics()
        return {
            "n_blocks": self.model.n_blocks,
            "weights": self.weights,
            "kernels": self.kernels,
            "deterministic": self._config.deterministic,
            "row_check": self.row_check,
            "kv_dtype": self.kv_dtype,
            "kv_cache_tokens": server.total_kv_tokens,
            "state_sessions": server.state_sessions,
            "journal_mib": self._config.journal_mib,
            "decode_ms_per_block": round(self.measured.decode_ms_per_block, 4),
            "prefill_tokens_per_s": round(self.measured.prefill_tokens_per_s, 1),
            "context_ms_per_block": round(self.measured.context_ms_per_block, 4),
        }

    async def remeasure(self) -> None:
        """Measure decoding again, for some milliseconds and only while no session is open: other work of the
        machine may have made it slower."""
        model, engine = self._model, self._engine
        if model is None or engine is None or self.server.statistics().sessions:
            return
        now = await engine.run(lambda: measure_decode(model, self.kv_dtype))
        before = self.measured.decode_ms_per_block
        if not 1 / MUCH_SLOWER < now / before < MUCH_SLOWER:
            logger.info("event=speed_changed before_ms=%.4f now_ms=%.4f", before, now)
            self.measured = self.measured.half_way_to(now)

    async def drained(self, impatient: asyncio.Event) -> None:
        """Take no new sessions, and wait for the open ones: ``drain_seconds``, or until ``impatient``."""
        self.server.sessions.begin_drain()
        if self.server.statistics().sessions:
            try:
                async with asyncio.timeout(self._config.drain_seconds):
                    await first(self.server.sessions.wait_idle(), impatient.wait())
            except TimeoutError:
                logger.warning("event=drain_timeout sessions=%d", self.server.statistics().sessions)

    @property
    def coarse(self) -> tuple[str, ...]:
        """Kinds of codecs that lose too much of the rows that come here."""
        return () if self.reader is None else self.reader.coarse

    @property
    def row_errors(self) -> dict[str, float]:
        """See ``RowReader.errors``."""
        errors = {} if self.reader is None else self.reader.errors
        return {kind: round(error, 5) for kind, error in errors.items()}

    def sweep(self) -> None:
        """Close idle sessions and connections, and judge the rows that came. Call it every SWEEP_S
        seconds."""
        self.server.sweep()
        if self.reader is not None:
            self.reader.look()

    async def aclose(self) -> None:
        """Close every stream, stop the engine, let go of weights and cache. Idempotent."""
        await self._exit.aclose()
        self._server = self._engine = self._model = None

    async def _load(
        self,
        checkpoint: Checkpoint,
        threads: int,
        transport: Transport | None,
        on_link: OnLink | None,
        on_progress: OnProgress | None,
    ) -> None:
        config = self._config
        try:
            model = await asyncio.to_thread(
                load_backend,
                checkpoint,
                self.span,
                load_options(config),
                on_progress,
                threads=threads,
                memory=usable_memory(config.device, config.memory),
            )
        except (MemoryError, RuntimeError) as error:
            if not is_memory_error(error):
                raise
            raise MemoryShortError(
                f"blocks {self.span} of {self.model.name} do not fit into the memory of {config.device}",
                hint="Choose fewer --blocks, or --quantize int4.",
            ) from error
        reader = self.reader = await asyncio.to_thread(_row_reader, checkpoint, self.span)
        checkpoint.release()
        self._model = model
        self.weights, self.kernels, self.weight_bytes = model.weights, model.kernels, model.weight_bytes
        context = model.config.max_position_embeddings
        pool = self._kv_pool(model)
        engine = self._engine = Engine(
            model,
            pool,
            threads=threads,
            may_narrow=config.threads is None,
            settings=EngineSettings(
                max_batch_tokens=config.max_batch_tokens,
                prefill_target_ms=config.prefill_target_ms,
                prefix_cache=config.prefix_cache,
            ),
            sampler=reader.sampler,
            work=self._work,
        )
        engine.start()
        self._exit.push_async_callback(engine.stop)
        if config.deterministic:
            self.row_check = await engine.run(lambda: check_determinism(model, pool.kv_dtype))
        longest = min(context, engine.total_tokens)
        self.measured = await engine.run(lambda: measure_self(model, pool.kv_dtype, longest))
        self._server = NodeServer(
            engine,
            self.model,
            context_tokens=context,
            agent=AGENT,
            limits=Limits(
                max_sessions=config.max_sessions,
                max_sessions_per_peer=config.max_sessions_per_peer,
                max_connections_per_peer=config.max_connections_per_peer,
                max_step_tokens=config.max_step_tokens,
                kv_share_per_peer=config.max_kv_share_per_peer,
                idle_session_seconds=config.idle_session_seconds,
                idle_connection_seconds=config.idle_connection_seconds,
                line_bytes_per_s=config.bandwidth.narrowest,
            ),
            max_frame=config.max_frame or DEFAULT_MAX_FRAME,
            transport=transport,
            records=NodeRecords(self.model, config.membership),
            on_link=on_link,
            journal_bytes=config.journal_mib * 1024 * 1024,
        )
        self._server.sessions.offer_scales(reader.table_for)
        self._exit.push_async_callback(self._server.aclose)

    def _kv_pool(self, model: SpanBackend[Any]) -> KvMemory:
        """Memory for pages and states: as much as was asked for in tokens, or as free memory suggests."""
        config = model.config
        blocks, context = config.blocks[model.span.start : model.span.end], config.max_position_embeddings
        self.kv_dtype = kv_dtype = kv_dtype_of(self._config, model)
        memory = SpanMemory.of(blocks, self._config.max_batch_tokens, kv_dtype)
        available, limit = available_memory(self._config.device), self._config.memory
        if limit is not None:
            available = min(available, max(0, limit - model.weight_bytes))
        if self._config.kv_cache_tokens is not None:
            size = memory.for_tokens(self._config.kv_cache_tokens, context)
        else:
            whole = memory.bytes_of(memory.usual(context))
            size = memory.within(default_kv_bytes(available, whole, is_budget=limit is not None), context)
        if size.states and memory.bytes_of(size) > available:
            raise MemoryShortError(
                f"{size.states} states of {gigabytes(memory.state_bytes)} and {size.slots} pages of KV cache "
                f"take {gigabytes(memory.bytes_of(size))}, and {gigabytes(available)} are free on "
                f"{model.device}",
                hint=_FEWER,
            )
        try:
            return cast(KvMemory, model.new_pool(size.slots, kv_dtype, size.states))
        except MemoryError as error:
            logger.warning("event=kv_allocation_failed slots=%d states=%d error=%r", *size, str(error)[:200])
            raise MemoryShortError(
                f"{memory.layout.tokens_in(*size, context)} tokens of KV cache as {kv_dtype} do not fit into "
                f"the memory of {model.device}",
                hint=_FEWER,
            ) from error


def _row_reader(checkpoint: Checkpoint, span: Span) -> RowReader:
    """Of the rows that enter at the span's first block."""
    certificate = find_certificate(checkpoint.ref, checkpoint.config.boundaries.widths)
    return row_reader(checkpoint, certificate, span.start, span.end)


def kv_dtype_of(config: NodeConfig, model: SpanBackend[Any]) -> str:
    return model.kv_dtype(config.kv_dtype, exact=config.dtype == "float32")


def is_memory_error(error: Exception) -> bool:
    """Whether an allocator of Python, numpy or torch said no: torch's raise RuntimeError, which says so."""
    return isinstance(error, MemoryError) or "memory" in str(error).lower()


def load_options(config: NodeConfig) -> LoadOptions:
    return LoadOptions(
        device=config.device,
        dtype=config.dtype,
        quantize=config.quantize,
        kernels=config.kernels,
        deterministic=config.deterministic,
    )


def compile_kernels(device: str, on_compiling: Callable[[], None]) -> None:
    """Compile the native kernels that this machine has not compiled yet. That blocks for some seconds, so
    call it in a worker thread.

    ``on_compiling`` is called, in the same thread, before anything is compiled, or measured to choose among
    kernels. The wire codec is for every ``device``, the blocks' kernels are for the CPU. Where nothing can be
    compiled, the plain paths compute, and the build has logged why.
    """
    blocks = device == "cpu"
    if not native.is_ready() or (blocks and not table.is_ready()):
        on_compiling()
    native.warm_up()
    if blocks:
        try:
            library.library()
        except NativeUnavailableError:
            pass  # torch then computes
