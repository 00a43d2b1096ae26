"""The node's engine around the toy model, in the event loop: pages, prefixes and batches are the node's
own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from swarm_node.node.engine.batch_runner import BatchReport, BatchRunner
from swarm_node.node.engine.batching.scheduler import Batch
from swarm_node.node.engine.engine import Engine, EngineSettings
from swarm_node.node.engine.jobs import StepJob, TokenSequence
from swarm_node.shards.formats.blocks.attention import AttentionConfig
from swarm_node.shards.formats.blocks.block import BlockConfig
from swarm_node.shards.formats.blocks.mlp import MlpConfig
from swarm_node.shards.formats.blocks.state import ShortConvConfig
from swarm_node.shards.layers.kv_pool import BatchSlice
from swarm_node.swarm.codecs.codec import MAX_MAGNITUDE
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from swarm_node.swarm.types import Span
from tests.doubles.toy_model import BOUNDARIES, CONTEXT, HIDDEN, N_BLOCKS, block_row

BLOCK = BlockConfig(AttentionConfig(1, 1, HIDDEN, 1.0, None), MlpConfig(HIDDEN))
CONFIG = SimpleNamespace(
    row_width=lambda _: HIDDEN,
    boundaries=BOUNDARIES,
    max_position_embeddings=CONTEXT,
    blocks=(BLOCK,) * N_BLOCKS,
)
HYBRID = SimpleNamespace(
    **{
        **vars(CONFIG),
        "blocks": (replace(BLOCK, attention=None, state=ShortConvConfig(HIDDEN, 2)), BLOCK) * (N_BLOCKS // 2),
    }
)
"""The same model, whose even blocks keep the sum of their inputs as a state, and not of each token."""
TOTAL_TOKENS = 64 * CONTEXT
"""Tokens of KV cache: more than any test has open at once."""


class ToyPool:
    """A slot holds, for each token of its page, the sum of the block's inputs up to it; one of a state, the
    sum up to one token."""

    def __init__(self, n_slots: int, n_states: int) -> None:
        self.n_slots = n_slots
        self.n_states = n_states
        self.states: dict[int, np.ndarray] = {}
        self.slots: dict[int, np.ndarray] = {}

    def sums(self, slot: int) -> np.ndarray:
        """(PAGE_TOKENS, HIDDEN)"""
        return self.slots.setdefault(slot, np.zeros((PAGE_TOKENS, HIDDEN), np.float32))

    def copy_slots(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        for source, target in zip(sources, targets, strict=True):
            self.slots[target] = self.sums(source).copy()

    def copy_states(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        for source, target in zip(sources, targets, strict=True):
            self.states[target] = self.states[source].copy()


@dataclass
class ToySpan:
    """A ``SpanBackend`` of the toy model's blocks. ``spoil`` may change the rows of a step, given its number,
    what came and the right rows."""

    span: Span
    spoil: Callable[[int, np.ndarray, np.ndarray], np.ndarray] = lambda step, came, rows: rows
    step: int = 0
    config: Any = field(default_factory=lambda: CONFIG)
    limit: float = MAX_MAGNITUDE
    mixes: bool = True
    any_thread: bool = False

    def forward(
        self, x: np.ndarray, slices: Sequence[BatchSlice], pool: ToyPool, span: Span | None = None
    ) -> np.ndarray:
        rows = [row for each in slices for row in self._rows(x, each, pool, span or self.span)]
        return self.spoil(self.step, x, np.stack(rows))

    def _rows(self, x: np.ndarray, part: BatchSlice, pool: ToyPool, span: Span) -> list[np.ndarray]:
        rows = list(x[part.row : part.row + part.count])
        for block in range(span.start, span.end):
            slots = part.table[block - part.first_block].tolist()
            states = saved = None
            if self.config.blocks[block].state is not None:
                states = part.states[block - part.first_block].tolist()
                saved = None if part.saved is None else int(part.saved[block - part.first_block])
            total = None
            if part.start:
                page, at = divmod(part.start - 1, PAGE_TOKENS)
                if states is None:
                    total = pool.sums(slots[page])[at]
                else:
                    total = pool.states[states[page] if saved is None or part.again else saved]
            for number, row in enumerate(rows):
                if saved is not None and number == part.again > 0:
                    pool.states[saved] = total
                position = part.start + number
                total, rows[number] = block_row(block, row, total, position)
                page, at = divmod(position, PAGE_TOKENS)
                if states is None:
                    pool.sums(slots[page])[at] = total
                elif (at + 1 == PAGE_TOKENS or number + 1 == part.count) and states[page] >= 0:
                    pool.states[states[page]] = total
        return rows

    def use_threads(self, threads: int) -> None:
        pass


class ToyRunner(BatchRunner):
    """Tells the model whose step it computes. ``before`` sees each step first, ``after`` its outcome."""

    model: ToySpan
    before: Callable[[StepJob], None]
    after: Callable[[BatchReport], None]

    def run(self, batch: Batch[TokenSequence]) -> BatchReport:
        for part in batch.slices:
            job = part.key.steps[0]
            self.model.step = job.step
            self.before(job)
        report = super().run(batch)
        self.after(report)
        return report


class ToyEngine(Engine):
    """Computes one step at a time, ``step_delay`` seconds each, in a task of the event loop."""

    def __init__(
        self,
        model: ToySpan,
        *,
        prefix_cache: bool,
        step_delay: Callable[[], float],
        before: Callable[[StepJob], None],
        after: Callable[[BatchReport], None],
    ) -> None:
        states = sum(
            model.config.blocks[block].state is not None for block in range(model.span.start, model.span.end)
        )
        pool = ToyPool(TOTAL_TOKENS // PAGE_TOKENS * len(model.span), 256 * states)
        settings = EngineSettings(
            max_batch_tokens=TOTAL_TOKENS,
            max_sessions_per_batch=1,
            prefill_target_ms=1e6,
            prefix_cache=prefix_cache,
        )
        super().__init__(model, pool, threads=1, settings=settings)  # type: ignore[type-var,arg-type]
        runner = ToyRunner(model, pool)  # type: ignore[type-var,arg-type]
        runner.model, runner.before, runner.after = model, before, after
        self._runner = runner
        self._step_delay = step_delay
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        pass

    async def stop(self) -> None:
        if self._worker is not None:
            self._worker.cancel()

    def submit(self, job: StepJob) -> None:
        super().submit(job)
        self._wake()

    def void(self, sequence: TokenSequence, first: int, last: int) -> None:
        super().void(sequence, first, last)
        self._wake()

    def close_sequence(self, sequence: TokenSequence, prefix: tuple[bytes, ...] = ()) -> None:
        super().close_sequence(sequence, prefix)
        self._wake()

    def forget_pages(self, kept: int) -> None:
        """Keep the first ``kept`` pages of what was named, in the order in which it was."""
        for page in list(self.memory.page_names._pages.values())[kept:]:
            self.memory.page_names.unregister(page)

    @property
    def known_pages(self) -> int:
        return len(self.memory.page_names)

    def _wake(self) -> None:
        if (self._worker is None or self._worker.done()) and not self._inbox.empty():
            self._worker = self._loop.create_task(self._work())

    async def _work(self) -> None:
        while self._takes_in():
            if (delay := self._step_delay()) > 0:
                await asyncio.sleep(delay)
            if self._takes_in():
                self._compute()
            await asyncio.sleep(0)

    def _takes_in(self) -> bool:
        """Whether anything is to be computed, after what was submitted or closed."""
        if not self._inbox.empty():
            self._take_in([])
        return bool(self._scheduler)

    def _post(self, callback: Callable[..., None], *args: object) -> None:
        callback(*args)
