"""The blocks of a span on MLX, as the engine runs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ...swarm.codecs.codec import MAX_MAGNITUDE
from ...swarm.errors import LocalProtocolError, UnsupportedModelError, UsageError
from ...swarm.types import Span
from ..checkpoint.checkpoint import Checkpoint
from ..formats.blocks.block import needs_torch
from ..layers.kv_pool import BatchSlice, kv_shapes, resolve_kv_dtype
from ..layers.state_pool import largest_state
from ..models.block_loading import bytes_in_file, load_block
from ..models.load_plan import LoadOptions
from ..models.sideband import check_width, passed_on
from .block import MlxBlock
from .mixers.attention import PagedAttention
from .mixers.states import PagedStates
from .tensors.device import DTYPES, device_name, keep_freed, on_gpu, prepare, to_mlx
from .tensors.kv_pool import MlxKvPool, default_kv_dtype
from .tensors.rope import MlxRope, Positions
from .weights import MlxLoader, MlxPlan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..formats.blocks.rope import RopeConfig
    from ..formats.config import ModelConfig
    from ..models.weight_loader import Progress


class MlxSpan:
    """The ``SpanBackend`` of MLX. Rows come from and go to the CPU, whose memory the GPU shares."""

    def __init__(
        self,
        config: ModelConfig,
        span: Span,
        blocks: Sequence[MlxBlock],
        dtype: str,
        weight_bytes: int,
        weights: str,
    ) -> None:
        self.config = config
        self.span = span
        self.device = "mlx"
        self.limit = min(float(mx.finfo(DTYPES[dtype]).max), MAX_MAGNITUDE)
        self._dtype = dtype
        self.weight_bytes = weight_bytes
        self.weights = weights
        self.kernels = device_name()
        self._blocks = tuple(blocks)
        self._shapes = kv_shapes(config.blocks[span.start : span.end])

    any_thread = False

    @property
    def mixes(self) -> bool:
        return on_gpu()

    def kv_dtype(self, wanted: str, *, exact: bool) -> str:
        if wanted == "auto":
            return default_kv_dtype(DTYPES[self._dtype])
        return resolve_kv_dtype(wanted, self._dtype, exact)

    def new_pool(self, n_slots: int, kv_dtype: str, n_states: int = 0) -> MlxKvPool:
        # Each step makes states anew: the buffers of those before serve the next ones.
        keep_freed(n_states * largest_state(self.config.blocks[self.span.start : self.span.end]))
        return MlxKvPool(n_slots, self._shapes, kv_dtype, n_states)

    def forward(
        self,
        x: NDArray[np.float32],
        slices: Sequence[BatchSlice],
        pool: MlxKvPool,
        span: Span | None = None,
    ) -> NDArray[np.float32]:
        """See ``SpanBackend``. Evaluated once, so it is complete on return."""
        span = self.span if span is None else span
        if not self.span.covers(span):
            raise UsageError(f"blocks {span} are not within {self.span}")
        check_width(self.config, span, x)
        if sum(part.count for part in slices) != len(x):
            raise LocalProtocolError(f"slices of other rows than the batch's {len(x)}")
        attention = PagedAttention(pool, slices, span)
        states, order = PagedStates(pool, attention.slices), attention.order
        width = self.config.hidden_size
        rows = to_mlx(x if order is None else x[order]).astype(DTYPES[self._dtype])
        hidden, positions = rows[:, :width], Positions(attention.slices)
        for block in range(span.start, span.end):
            side = self.config.blocks[block].side
            beside = None if side is None else rows[:, width : width + side.values]
            width += 0 if side is None else side.values
            compute = self._blocks[block - self.span.start]
            hidden = compute(block, hidden, positions, attention, states, beside)
        result = hidden.astype(mx.float32)
        mx.eval(result, attention.pending(), states.pending())
        attention.commit()
        states.commit()
        out = np.array(result, copy=False)
        if order is not None:
            turned = np.empty_like(out)
            turned[order] = out
            out = turned
        return passed_on(self.config, span, x, out)

    def use_threads(self, threads: int) -> None:
        pass  # MLX has its own


def load_mlx_span(
    checkpoint: Checkpoint,
    span: Span,
    options: LoadOptions,
    progress: Progress | None = None,
    *,
    threads: int = 1,
) -> MlxSpan:
    """As ``loading.load_backend``. UsageError for options that MLX has nothing for."""
    config = checkpoint.config
    if any(map(needs_torch, config.blocks[span.start : span.end])):
        raise UnsupportedModelError(
            f"MLX does not compute {config.family}: several residual streams, a learned residual and a "
            "sparse gate are not supported there",
            hint="Use --device cpu.",
        )
    plan = MlxPlan.resolve(options, config.native_dtype)
    prepare()
    loader = MlxLoader(checkpoint, plan, bytes_in_file(checkpoint, span), progress, threads)
    ropes: dict[RopeConfig | None, MlxRope | None] = {None: None}
    blocks: list[MlxBlock] = []
    for block in range(span.start, span.end):
        settings = config.blocks[block]
        if (rope := settings.rope) is not None and rope not in ropes:
            ropes[rope] = MlxRope(rope)
        blocks.append(MlxBlock(settings, load_block(loader, config, block), ropes[rope], plan.dtype))
        checkpoint.release()
    return MlxSpan(config, span, blocks, plan.dtype, loader.nbytes, loader.summary())
