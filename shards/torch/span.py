"""The blocks of a span on torch, as the engine runs them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...swarm.codecs.codec import MAX_MAGNITUDE
from ...swarm.errors import UsageError
from ...swarm.types import Span
from ..checkpoint.checkpoint import Checkpoint
from ..layers.kv_pool import BatchSlice, kv_shapes, resolve_kv_dtype
from ..layers.state_pool import state_shapes
from ..models.block_loading import bytes_in_file, load_block
from ..models.load_plan import LoadPlan
from ..models.sideband import passed_on, residual_of
from .block import Block
from .mixers.attention import PagedAttention
from .mixers.states import PagedStates
from .tensors.device import Target, to_array
from .tensors.kv_pool import TorchKvPool
from .tensors.rope import Positions, TorchRope
from .weights import TorchLoader

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..formats.blocks.rope import RopeConfig
    from ..formats.config import ModelConfig
    from ..models.weight_loader import Progress


@dataclass(eq=False, kw_only=True)
class SpanOnTorch(ABC):
    """A ``SpanBackend`` whose rows are torch's; a subclass computes them. On the CPU torch uses ``threads``
    in the thread that calls ``forward``."""

    config: ModelConfig
    span: Span
    plan: LoadPlan
    threads: int = 1
    weights: str = ""
    weight_bytes: int = 0
    kernels: str = "torch"

    any_thread = False

    def __post_init__(self) -> None:
        self.target, self.device = Target.of(self.plan), self.plan.device
        self.limit = min(torch.finfo(self.target.dtype).max, MAX_MAGNITUDE)

    def kv_dtype(self, wanted: str, *, exact: bool) -> str:
        return resolve_kv_dtype(wanted, self.plan.dtype, exact, self.device)

    def new_pool(self, n_slots: int, kv_dtype: str, n_states: int = 0) -> TorchKvPool:
        blocks = self.config.blocks[self.span.start : self.span.end]
        return TorchKvPool(
            *(n_slots, kv_shapes(blocks), kv_dtype, self.target.device), n_states, state_shapes(blocks)
        )

    def use_threads(self, threads: int) -> None:  # noqa: B027  it does nothing, here and in subclasses
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
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        rows = self.target.tensor(residual_of(self.config, span, x))  # in which the blocks work
        beside = None
        if (sideband := self.config.sideband) is not None:
            own = x[:, self.config.residual_width :][:, : len(span) * sideband.values]
            beside = self.target.tensor(own).split(sideband.values, 1)
        self._compute(rows, slices, pool, span, beside)
        return passed_on(self.config, span, x, to_array(rows))

    @abstractmethod
    def _compute(
        self,
        rows: torch.Tensor,
        slices: Sequence[BatchSlice],
        pool: TorchKvPool,
        span: Span,
        beside: Sequence[torch.Tensor] | None,
    ) -> None:
        """Blocks ``span`` of ``rows`` (tokens, hidden), in place. ``beside``: for each of them, what it reads
        beside these."""


@dataclass(eq=False, kw_only=True)
class TorchSpan(SpanOnTorch):
    """By our own blocks. ``kernels`` is such as "torch (reason)"."""

    blocks: Sequence[Block]

    @property
    def mixes(self) -> bool:
        """A few rows more fill a GPU better; a CPU computes them as fast by themselves."""
        return self.device != "cpu"

    def _compute(
        self,
        rows: torch.Tensor,
        slices: Sequence[BatchSlice],
        pool: TorchKvPool,
        span: Span,
        beside: Sequence[torch.Tensor] | None,
    ) -> None:
        target, first = self.target, self.span.start
        positions = Positions(slices, target.device, target.dtype)
        attend = PagedAttention(pool, slices, target.dtype, rowwise=target.rowwise)
        states = PagedStates(pool, slices, rowwise=target.rowwise)
        for block in range(span.start, span.end):
            side = None if beside is None else beside[block - span.start]
            self.blocks[block - first](block, rows, positions, attend, states, side)


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
            rope = settings.rope
            if rope is not None and rope not in ropes:
                ropes[rope] = TorchRope(rope, target.device, target.dtype, rowwise=target.rowwise)
            weights = load_block(loader, config, block)
            blocks.append(Block(settings, weights, None if rope is None else ropes[rope], target))
            checkpoint.release()
    kernels = ("torch rowwise" if target.rowwise else "torch") + (f" ({reason})" if reason else "")
    return TorchSpan(
        config=config,
        span=span,
        blocks=blocks,
        plan=plan,
        threads=threads,
        weights=loader.summary(),
        weight_bytes=loader.nbytes,
        kernels=kernels,
    )
