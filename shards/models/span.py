"""The blocks of a span, loaded and ready to run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...swarm.errors import UsageError
from ...swarm.types import Span
from ..checkpoint.checkpoint import Checkpoint, check_span
from ..formats.tensors import block_tensors
from ..layers.attention import PagedAttention
from ..layers.kv_pool import BatchSlice, KvPool, resolve_kv_dtype
from ..layers.rope import Rope
from .llama import LlamaBlock, RowwiseBlock, load_block
from .load_plan import LoadOptions, resolve
from .native_span import NativeSpan, unsupported
from .weight_loader import Progress, WeightLoader

if TYPE_CHECKING:
    from ..formats.config import ModelConfig

logger = logging.getLogger(__name__)


class SpanModel:
    """The ``SpanBackend`` of torch and of our own C kernels. Used by one thread at a time.

    ``kernels`` is such as "native close" or "torch (reason)". ``rowwise``: a row's result is the same bits in
    any batch and in chunks of any size.
    """

    def __init__(
        self,
        config: ModelConfig,
        span: Span,
        blocks: Sequence[LlamaBlock],
        device: torch.device,
        dtype: torch.dtype,
        weight_bytes: int,
        weights: str,
        native: NativeSpan | None = None,
        kernels: str = "torch",
        *,
        rowwise: bool = False,
    ) -> None:
        """``rowwise``: the blocks are RowwiseBlocks."""
        self.config = config
        self.span = span
        self.device = device
        self.dtype = dtype
        self.weight_bytes = weight_bytes
        self.weights = weights
        self.kernels = kernels
        self._blocks = tuple(blocks)
        self._native = native
        self.rowwise = rowwise or native is not None
        self._rope = Rope(config, device, dtype, rowwise=rowwise)

    @property
    def mixes(self) -> bool:
        """A few rows more fill a GPU better; a CPU computes them as fast by themselves."""
        return self.device.type != "cpu"

    def kv_dtype(self, wanted: str, *, exact: bool) -> str:
        return resolve_kv_dtype(wanted, self.dtype, exact, self.device)

    def new_pool(self, n_slots: int, kv_dtype: str) -> KvPool:
        return KvPool(n_slots, self.config.n_kv_heads, self.config.head_dim, kv_dtype, self.device)

    def use_threads(self, threads: int) -> None:
        if self._native is not None:
            self._native.use_threads(threads)

    def synchronize(self) -> None:
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()

    def forward(
        self, x: Tensor, slices: Sequence[BatchSlice], pool: KvPool, span: Span | None = None
    ) -> Tensor:
        """See ``SpanBackend``. What a page holds beyond a slice's end is never read."""
        span = self.span if span is None else span
        if not self.span.covers(span):
            raise UsageError(f"blocks {span} are not within {self.span}")
        if self._native is None:
            return self._plain_forward(x, slices, pool, span)
        x = x.to(self.device, self.dtype, copy=True, memory_format=torch.contiguous_format)
        self._native.forward(x, slices, pool, span, self._rope)
        return x

    @torch.inference_mode()
    def _plain_forward(self, x: Tensor, slices: Sequence[BatchSlice], pool: KvPool, span: Span) -> Tensor:
        cos, sin = self._rope.rows([(part.start, part.count) for part in slices])
        attend = PagedAttention(pool, slices, self.dtype, rowwise=self.rowwise)
        x = x.to(self.device, self.dtype, copy=True)  # the blocks work in place
        first = self.span.start
        for block in range(span.start, span.end):
            self._blocks[block - first](block, x, cos, sin, attend)
        return x


def load_span(
    checkpoint: Checkpoint,
    span: Span,
    options: LoadOptions,
    progress: Progress | None = None,
    *,
    threads: int = 1,
) -> SpanModel:
    """Read blocks ``span`` of the checkpoint for torch's devices, and nothing else of it: see
    ``loading.load_backend``. ``threads`` compute in the native kernels, the caller's included."""
    config = checkpoint.config
    check_span(span, config)
    torch.set_num_threads(threads)
    plan = resolve(options, config.native_dtype)
    blocks_tensors = [block_tensors(config, block) for block in range(span.start, span.end)]
    names = [name for tensors in blocks_tensors for name in tensors if checkpoint.has(name)]
    total = sum(checkpoint.tensor(name).nbytes for name in names)
    loader = WeightLoader(checkpoint, plan, total, progress)
    blocks: list[LlamaBlock] = []
    make = RowwiseBlock if options.deterministic else LlamaBlock
    with torch.inference_mode():
        for block in range(span.start, span.end):
            blocks.append(load_block(loader, config, block, make))
            checkpoint.release()
    native, kernels = None, "torch rowwise" if options.deterministic else "torch"
    if plan.precision is not None:
        reason = unsupported(config, blocks)
        if reason is None:
            native, kernels = (
                NativeSpan(config, span, blocks, threads),
                f"native {plan.precision.name.lower()}",
            )
        else:
            kernels += f" ({reason})"
            logger.info("event=plain_span span=%s reason=%r", span, reason)
    return SpanModel(
        config,
        span,
        blocks,
        plan.device,
        plan.dtype,
        loader.nbytes,
        loader.summary(),
        native,
        kernels,
        rowwise=options.deterministic,
    )
