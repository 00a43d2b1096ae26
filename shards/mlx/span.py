"""The blocks of a span on MLX, as the engine runs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlx.core as mx
import torch
from torch import Tensor

from ...swarm.errors import LocalProtocolError, UsageError
from ...swarm.types import Span
from ..checkpoint.checkpoint import Checkpoint, check_span
from ..formats.tensors import block_tensors
from ..layers.kv_pool import BatchSlice, resolve_kv_dtype
from ..models.load_plan import LoadOptions
from .attention import PagedAttention
from .device import DTYPES, device_name, on_gpu, prepare, to_mlx, to_torch
from .llama import MlxBlock, load_block
from .pool import MlxKvPool, default_kv_dtype
from .rope import MlxRope
from .weights import MlxLoader, MlxPlan

if TYPE_CHECKING:
    from ..formats.config import ModelConfig
    from ..models.weight_loader import Progress


class MlxSpan:
    """The ``SpanBackend`` of MLX. Rows come from and go to the CPU, whose memory the GPU shares."""

    def __init__(
        self,
        config: ModelConfig,
        span: Span,
        blocks: Sequence[MlxBlock],
        dtype: torch.dtype,
        weight_bytes: int,
        weights: str,
    ) -> None:
        self.config = config
        self.span = span
        self.device = torch.device("cpu")
        self.dtype = dtype
        self.weight_bytes = weight_bytes
        self.weights = weights
        self.kernels = device_name()
        self._blocks = tuple(blocks)
        self._rope = MlxRope(config)
        self._scale = config.head_dim**-0.5 * self._rope.attention_factor

    @property
    def mixes(self) -> bool:
        return on_gpu()

    def kv_dtype(self, wanted: str, *, exact: bool) -> str:
        if wanted == "auto":
            return default_kv_dtype(DTYPES[self.dtype])
        return resolve_kv_dtype(wanted, self.dtype, exact)

    def new_pool(self, n_slots: int, kv_dtype: str) -> MlxKvPool:
        return MlxKvPool(n_slots, self.config.n_kv_heads, self.config.head_dim, kv_dtype)

    def forward(
        self, x: Tensor, slices: Sequence[BatchSlice], pool: MlxKvPool, span: Span | None = None
    ) -> Tensor:
        """See ``SpanBackend``; the result is float32. Evaluated once, so it is complete on return."""
        span = self.span if span is None else span
        if not self.span.covers(span):
            raise UsageError(f"blocks {span} are not within {self.span}")
        if sum(part.count for part in slices) != len(x):
            raise LocalProtocolError(f"slices of other rows than the batch's {len(x)}")
        attention = PagedAttention(self.config, pool, slices, span, self._scale)
        order = attention.order
        hidden = to_mlx((x if order is None else x[order]).to(self.dtype))
        rotation = self._rope.plan(attention.slices)
        for block in range(span.start, span.end):
            hidden = self._blocks[block - self.span.start](block, hidden, rotation, attention)
        result = hidden.astype(mx.float32)
        mx.eval(result, attention.pending())
        attention.commit()
        out = to_torch(result)
        if order is None:
            return out
        turned = torch.empty_like(out)
        turned[order] = out
        return turned

    def use_threads(self, threads: int) -> None:
        pass  # MLX has its own

    def synchronize(self) -> None:
        """``forward`` has done it."""


def load_mlx_span(
    checkpoint: Checkpoint, span: Span, options: LoadOptions, progress: Progress | None = None
) -> MlxSpan:
    """As ``loading.load_backend``. UsageError for options that MLX has nothing for."""
    config = checkpoint.config
    check_span(span, config)
    plan = MlxPlan.resolve(options, config.native_dtype)
    prepare()
    names = [
        name
        for block in range(span.start, span.end)
        for name in block_tensors(config, block)
        if checkpoint.has(name)
    ]
    total = sum(checkpoint.tensor(name).nbytes for name in names)
    loader = MlxLoader(checkpoint, plan, total, progress)
    blocks: list[MlxBlock] = []
    for block in range(span.start, span.end):
        blocks.append(load_block(loader, config, block))
        checkpoint.release()
    return MlxSpan(config, span, blocks, plan.dtype, loader.nbytes, loader.summary())
