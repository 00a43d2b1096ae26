"""The blocks of a span, loaded and ready to run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..swarm.errors import UsageError
from ..swarm.types import Span
from .autoselect import LoadOptions, resolve
from .checkpoint import Checkpoint, check_span
from .llama import Attend, LlamaBlock, load_block
from .manifest import block_tensors
from .rope import Rope
from .weights import Progress, WeightLoader

if TYPE_CHECKING:
    from .config import ModelConfig

__all__ = ["Attend", "Progress", "SpanModel", "load_span"]


class SpanModel:
    """Blocks ``span`` of a model. Used by one thread, under ``torch.inference_mode``.

    ``dtype``: what activations, keys and values have. ``weight_bytes``: memory the weights take.
    ``weights``: how they are held, for people.
    """

    __slots__ = ("_blocks", "_rope", "config", "device", "dtype", "span", "weight_bytes", "weights")

    def __init__(
        self,
        config: ModelConfig,
        span: Span,
        blocks: Sequence[LlamaBlock],
        device: torch.device,
        dtype: torch.dtype,
        weight_bytes: int,
        weights: str,
    ) -> None:
        self.config = config
        self.span = span
        self.device = device
        self.dtype = dtype
        self.weight_bytes = weight_bytes
        self.weights = weights
        self._blocks = tuple(blocks)
        self._rope = Rope(config, device, dtype)

    def rope(self, pieces: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """cos and sin for packed tokens. ``pieces``: (start position, tokens), in the order of the rows."""
        return self._rope.rows(pieces)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, span: Span | None = None
    ) -> Tensor:
        """``x`` (T, hidden), left as it is → (T, hidden), through ``span`` (absolute numbers; None: all)."""
        span = self.span if span is None else span
        if not self.span.covers(span):
            raise UsageError(f"blocks {span} are not within {self.span}")
        x = x.to(self.device, self.dtype, copy=True)  # the blocks work in place
        first = self.span.start
        for block in range(span.start, span.end):
            self._blocks[block - first](block, x, cos, sin, attend)
        return x


def load_span(
    checkpoint: Checkpoint, span: Span, options: LoadOptions, progress: Progress | None = None
) -> SpanModel:
    """Read blocks ``span`` of the checkpoint, and nothing else of it.

    ``progress(done_bytes, total_bytes, label)`` is called after each tensor, bytes being the file's.
    Raises UsageError for a span outside the model or a missing device, CheckpointError for a damaged file.
    """
    config = checkpoint.config
    check_span(span, config)
    plan = resolve(options, config.native_dtype)
    blocks_tensors = [block_tensors(config, block) for block in range(span.start, span.end)]
    names = [name for tensors in blocks_tensors for name in tensors if checkpoint.has(name)]
    total = sum(checkpoint.tensor(name).nbytes for name in names)
    loader = WeightLoader(checkpoint, plan, total, progress)
    blocks = []
    with torch.inference_mode():
        for block in range(span.start, span.end):
            blocks.append(load_block(loader, config, block))
            checkpoint.release()
    return SpanModel(config, span, blocks, plan.device, plan.dtype, loader.nbytes, loader.summary())
