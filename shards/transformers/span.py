"""The blocks of a span by transformers' own layers, as the engine runs them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.cache_utils import DynamicCache

from ...swarm.errors import SwarmError, UnsupportedModelError
from ...swarm.protocol.field_types import PAGE_TOKENS
from ...swarm.types import Span
from ..checkpoint.checkpoint import Checkpoint
from ..formats.foreign_config import ForeignConfig
from ..formats.tensors import block_names
from ..formats.transformers.layered import LayeredModel, unusable
from ..formats.transformers.own_keys import numbers
from ..layers.kv_pool import BatchSlice
from ..models.load_plan import LoadPlan
from ..models.own_memory import OwnMemory
from ..torch.span import SpanOnTorch
from ..torch.tensors.device import Target, to_array
from ..torch.tensors.kv_pool import TorchKvPool
from .cache import paged_cache
from .weights import load_weights

if TYPE_CHECKING:
    from ..models.weight_loader import Progress

_TRIED = (3, 1, PAGE_TOKENS, 2)
"""The self test cuts its rows into chunks of these sizes."""
_LENGTH = re.compile(r"window|chunk|context|ctx|position|seq|length|local|block_size")
"""Keys of lengths from which on a model may compute something else."""
_SMALL = 256
"""The self test goes beyond lengths of at most so many tokens: real models' are too long for a test."""
_NEAR = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far results of the self test may differ, as a part of the largest value."""
_FLIPPED = 0.25
"""In 16 bits so many of its rows may differ by more: a router's choice may change with the last bits."""


@dataclass(eq=False, kw_only=True)
class ForeignSpan(SpanOnTorch):
    """The sessions of a batch are computed one after the other."""

    made: LayeredModel

    mixes = False

    def _compute(
        self,
        rows: torch.Tensor,
        slices: Sequence[BatchSlice],
        pool: TorchKvPool,
        span: Span,
        beside: Sequence[torch.Tensor] | None,
    ) -> None:
        for part in slices:
            cache = paged_cache(self.config, pool, part, span.start, span.end)
            own = slice(part.row, part.row + part.count)
            try:
                rows[own] = self.made.through(rows[None, own], cache, span.start, span.end)[0]
            except (SwarmError, MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                raise unusable(error) from error

    def _tried(self) -> Iterator[int]:
        """Sizes of the self test's chunks: some tokens more than each small length of the configuration."""
        document = json.loads(self.config.foreign.document) if self.config.foreign else {}
        lengths = [each for key, each in numbers(document) if _LENGTH.search(key) and each <= _SMALL]
        count = min(max([0, *lengths]) + sum(_TRIED), self.config.max_position_embeddings)
        for size in cycle(_TRIED):
            if count <= 0:
                return
            yield min(size, count)
            count -= size

    def check(self) -> None:
        """Raises UnsupportedModelError unless the blocks compute one by one, in chunks and beside another
        session, what transformers' own chain of them computes at once."""
        generator, sizes = np.random.default_rng(0), list(self._tried())
        count = sum(sizes)
        x = generator.standard_normal((count, self.config.hidden_size), np.float32)
        try:
            with torch.inference_mode():
                rows, cache = self.target.tensor(x)[None], DynamicCache(config=self.made.config)
                wanted = to_array(self.made.through(rows, cache, self.span.start, self.span.end)[0])
            memory, found, start = OwnMemory(self, self.plan.dtype, count, 2), np.empty_like(x), 0
            for size in sizes:
                both = np.concatenate((x[start : start + size], x[:size]))
                slices = [
                    memory.slice(start, size),
                    memory.slice(0, size, row=size, session=1),
                ]
                for block in range(self.span.start, self.span.end):
                    both = self.forward(both, slices, memory.pool, Span(block, block + 1))
                found[start : start + size] = both[:size]
                start += size
        except SwarmError:
            raise
        except Exception as error:  # noqa: BLE001  whatever transformers' code raises
            raise unusable(error) from None
        rows_off = np.sort(np.abs(found - wanted).max(-1)) / np.abs(wanted).max()
        off = rows_off[-1 if self.target.dtype is torch.float32 else -1 - int(_FLIPPED * count)]
        if not off <= _NEAR[self.target.dtype]:
            raise UnsupportedModelError(
                f"the blocks of {self.made.name} compute in parts another thing than at once: {off:.1%} off",
                hint="Such a model cannot be cut between machines.",
            )


def load_foreign_span(
    checkpoint: Checkpoint,
    foreign: ForeignConfig,
    span: Span,
    plan: LoadPlan,
    progress: Progress | None = None,
    *,
    threads: int = 1,
) -> ForeignSpan:
    """As ``loading.load_backend``. UnsupportedModelError where the model's layers do not compute in parts
    what they compute at once."""
    config, target = checkpoint.config, Target.of(plan)
    made = LayeredModel(foreign.document, target.dtype)
    blocks = range(span.start, span.end)
    names = [name for block in blocks for name in block_names(config, block)]
    label, front = f"blocks {span}", foreign.front if span.start == 0 else ()
    nbytes = load_weights(
        made, checkpoint, names, target.device, label, progress, layers=blocks, others=front
    )
    made.hollow_out()
    loaded = ForeignSpan(
        config=config,
        span=span,
        made=made,
        plan=plan,
        threads=threads,
        weights=plan.dtype,
        weight_bytes=nbytes,
        kernels="transformers",
    )
    loaded.check()
    return loaded
