"""The blocks of a span on torch, as the engine runs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...swarm.codecs.activations import MAX_MAGNITUDE
from ...swarm.errors import UsageError
from ...swarm.types import Span
from ..checkpoint.checkpoint import Checkpoint
from ..layers.kv_pool import BatchSlice, resolve_kv_dtype
from ..models.block_weights import bytes_in_file, load_block
from ..models.llama_blocks import llama_blocks
from ..models.load_plan import LoadPlan
from .attention import PagedAttention
from .device import DTYPES, to_array
from .kv_pool import TorchKvPool
from .llama import LlamaBlock, RowwiseBlock
from .rope import TorchRope
from .weights import TorchLoader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..formats.config import ModelConfig
    from ..models.weight_loader import Progress


class TorchSpan:
    """The ``SpanBackend`` of torch. ``kernels`` is such as "torch (reason)"."""

    def __init__(
        self,
        config: ModelConfig,
        span: Span,
        blocks: Sequence[LlamaBlock],
        plan: LoadPlan,
        threads: int = 1,
        *,
        weights: str = "",
        weight_bytes: int = 0,
        kernels: str = "torch",
    ) -> None:
        """On the CPU torch uses ``threads`` in the thread that calls ``forward``. If the plan is
        ``deterministic``, the blocks are RowwiseBlocks: a row's result is the same bits in any batch and in
        chunks of any size."""
        self.config, self.span = config, span
        self.weights, self.weight_bytes, self.kernels = weights, weight_bytes, kernels
        self.device = plan.device
        self.limit = min(torch.finfo(DTYPES[plan.dtype]).max, MAX_MAGNITUDE)
        self._plan, self._threads = plan, threads
        self._place, self._dtype = torch.device(plan.device), DTYPES[plan.dtype]
        self._blocks = tuple(blocks)
        self._rowwise = plan.options.deterministic
        attention = llama_blocks(config, span).attention
        if attention.rope is None:
            raise ValueError("not a Llama block")
        self._kv = attention.kv
        self._rope = TorchRope(attention.rope, self._place, self._dtype, rowwise=self._rowwise)

    any_thread = False

    @property
    def mixes(self) -> bool:
        """A few rows more fill a GPU better; a CPU computes them as fast by themselves."""
        return self.device != "cpu"

    def kv_dtype(self, wanted: str, *, exact: bool) -> str:
        return resolve_kv_dtype(wanted, self._plan.dtype, exact, self.device)

    def new_pool(self, n_slots: int, kv_dtype: str) -> TorchKvPool:
        return TorchKvPool(n_slots, (self._kv,), kv_dtype, self._place)

    def use_threads(self, threads: int) -> None:
        """Not on torch, whose results may depend on them."""

    @torch.inference_mode()
    def forward(
        self,
        x: NDArray[np.float32],
        slices: Sequence[BatchSlice],
        pool: TorchKvPool,
        span: Span | None = None,
    ) -> NDArray[np.float32]:
        """See ``SpanBackend``. What a page holds beyond a slice's end is never read."""
        span = self.span if span is None else span
        if not self.span.covers(span):
            raise UsageError(f"blocks {span} are not within {self.span}")
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        cos, sin = self._rope.rows([(part.start, part.count) for part in slices])
        attend = PagedAttention(pool.part(self._kv), slices, self._dtype, rowwise=self._rowwise)
        rows = torch.from_numpy(np.array(x, np.float32)).to(
            self._place, self._dtype
        )  # the blocks work in place
        first = self.span.start
        for block in range(span.start, span.end):
            self._blocks[block - first](block, rows, cos, sin, attend)
        return to_array(rows)


def load_torch_span(
    checkpoint: Checkpoint,
    span: Span,
    plan: LoadPlan,
    progress: Progress | None = None,
    *,
    threads: int = 1,
    reason: str | None = None,
) -> TorchSpan:
    """As ``loading.load_backend``. ``reason``: why our kernels do not compute these blocks, where they can on
    this machine."""
    config = checkpoint.config
    loader = TorchLoader(checkpoint, plan, bytes_in_file(checkpoint, span), progress, threads)
    rowwise = plan.options.deterministic
    make = RowwiseBlock if rowwise else LlamaBlock
    blocks: list[LlamaBlock] = []
    with torch.inference_mode():
        for block in range(span.start, span.end):
            blocks.append(make(config.blocks[block], load_block(loader, config, block)))
            checkpoint.release()
    kernels = ("torch rowwise" if rowwise else "torch") + (f" ({reason})" if reason else "")
    return TorchSpan(
        config,
        span,
        blocks,
        plan,
        threads,
        weights=loader.summary(),
        weight_bytes=loader.nbytes,
        kernels=kernels,
    )
