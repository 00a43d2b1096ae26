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
from ..models.load_plan import LoadPlan
from .attention import PagedAttention
from .block import Block
from .device import Target, to_array
from .kv_pool import TorchKvPool
from .rope import Positions, TorchRope
from .weights import TorchLoader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..formats.config import ModelConfig
    from ..formats.rope_config import RopeConfig
    from ..models.weight_loader import Progress


class TorchSpan:
    """The ``SpanBackend`` of torch. ``kernels`` is such as "torch (reason)"."""

    def __init__(
        self,
        config: ModelConfig,
        span: Span,
        blocks: Sequence[Block],
        plan: LoadPlan,
        threads: int = 1,
        *,
        weights: str = "",
        weight_bytes: int = 0,
        kernels: str = "torch",
    ) -> None:
        """On the CPU torch uses ``threads`` in the thread that calls ``forward``."""
        target = Target.of(plan)
        self.config, self.span = config, span
        self.weights, self.weight_bytes, self.kernels = weights, weight_bytes, kernels
        self.device = plan.device
        self.limit = min(torch.finfo(target.dtype).max, MAX_MAGNITUDE)
        self._plan, self._threads = plan, threads
        self._target, self._blocks = target, tuple(blocks)

    any_thread = False

    @property
    def mixes(self) -> bool:
        """A few rows more fill a GPU better; a CPU computes them as fast by themselves."""
        return self.device != "cpu"

    def kv_dtype(self, wanted: str, *, exact: bool) -> str:
        return resolve_kv_dtype(wanted, self._plan.dtype, exact, self.device)

    def new_pool(self, n_slots: int, kv_dtype: str) -> TorchKvPool:
        shapes = {block.attention.kv for block in self.config.blocks[self.span.start : self.span.end]}
        return TorchKvPool(n_slots, shapes, kv_dtype, self._target.device)

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
        target = self._target
        positions = Positions(slices, target.device, target.dtype)
        attend = PagedAttention(pool, slices, target.dtype, rowwise=target.rowwise)
        rows = target.tensor(np.array(x, np.float32))  # a copy, in which the blocks work
        first = self.span.start
        for block in range(span.start, span.end):
            self._blocks[block - first](block, rows, positions, attend)
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
    target = loader.target
    ropes: dict[RopeConfig, TorchRope] = {}
    blocks: list[Block] = []
    with torch.inference_mode():
        for block in range(span.start, span.end):
            settings = config.blocks[block]
            rope = settings.attention.rope
            if rope is not None and rope not in ropes:
                ropes[rope] = TorchRope(rope, target.device, target.dtype, rowwise=target.rowwise)
            weights = load_block(loader, config, block)
            blocks.append(Block(settings, weights, None if rope is None else ropes[rope], target))
            checkpoint.release()
    kernels = ("torch rowwise" if target.rowwise else "torch") + (f" ({reason})" if reason else "")
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
