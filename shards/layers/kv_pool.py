"""Paged memory for keys and values: arrays only. ``node/`` keeps which slot belongs to which session, in
ints.

A slot is the memory of one page (``PAGE_TOKENS`` tokens) of one block: keys, then values. Keys are stored
transposed, (head_dim, PAGE_TOKENS) a head, so that a CPU vector holds one channel of many tokens and a score
needs no sum across lanes; values are (PAGE_TOKENS, head_dim).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...swarm.errors import UsageError
from ...swarm.protocol.field_types import PAGE_TOKENS
from ..formats.block_config import BlockConfig, KvShape
from ..formats.floats import STORED
from .memory import zeros

if TYPE_CHECKING:
    from numpy.typing import NDArray

KV_DTYPES = ("float32", "bfloat16", "float16", "int8")
_STORED: dict[str, np.dtype[Any]] = {**STORED, "int8": np.dtype(np.int8)}


class KvPool:
    """``n_slots`` slots in the host's memory, which the system commits as they are first written: a large
    pool costs what is used of it. What a slot holds before it is written is undefined.

    ``data``: (n_slots, 2, kv_heads, PAGE_TOKENS * head_dim), keys (head_dim, PAGE_TOKENS) and values
    (PAGE_TOKENS, head_dim) a head; bits for bfloat16. ``scales``, for int8 only: (n_slots, 2, kv_heads,
    PAGE_TOKENS) float32, one a token and head.
    """

    def __init__(self, n_slots: int, shape: KvShape, kv_dtype: str) -> None:
        """Raises UsageError for an unknown ``kv_dtype``, MemoryError where there is not enough."""
        n_kv_heads, head_dim = shape.heads, shape.key_dim
        self.slot_bytes = slot_bytes(shape, kv_dtype)
        self.n_slots, self.n_kv_heads, self.head_dim = n_slots, n_kv_heads, head_dim
        self.kv_dtype = kv_dtype
        self.data = zeros((n_slots, 2, n_kv_heads, PAGE_TOKENS * head_dim), _STORED[kv_dtype])
        self.scales: NDArray[np.float32] | None = None
        if kv_dtype == "int8":
            self.scales = zeros((n_slots, 2, n_kv_heads, PAGE_TOKENS), np.float32)

    def copy_slots(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy each source slot to the target beside it. No slot may be both source and target, and no target
        may be named twice."""
        if len(sources) != len(targets):
            raise ValueError(f"{len(sources)} sources, {len(targets)} targets")
        read, written = np.asarray(sources, np.int64), np.asarray(targets, np.int64)
        for array in (self.data, self.scales):
            if array is not None:
                array[written] = array[read]


def slot_bytes(shape: KvShape, kv_dtype: str) -> int:
    """Bytes of one slot: the keys and values of PAGE_TOKENS tokens in one block, scales included.

    Raises UsageError for an unknown ``kv_dtype``.
    """
    if kv_dtype not in KV_DTYPES:
        raise UsageError(f"unknown KV dtype {kv_dtype!r}", hint=f"Known: auto, {', '.join(KV_DTYPES)}.")
    scale = 4 if kv_dtype == "int8" else 0
    dims = (shape.key_dim,) if shape.shared else (shape.key_dim, shape.value_dim)
    return shape.heads * PAGE_TOKENS * sum(dim * _STORED[kv_dtype].itemsize + scale for dim in dims)


def largest_slot(blocks: Iterable[BlockConfig], kv_dtype: str) -> int:
    """Bytes of a slot that any of ``blocks`` can use."""
    return max(slot_bytes(shape, kv_dtype) for shape in {block.attention.kv for block in blocks})


def resolve_kv_dtype(name: str, model_dtype: str, explicit_dtype: bool, device: str = "cpu") -> str:
    """The KV dtype for ``--kv-dtype name``. ``model_dtype``: what activations have.

    "auto": float32 where the user asked for float32 (``explicit_dtype``), as that asks for exactness. Else
    float16 on CPU, which keeps three bits more than bfloat16 and converts as fast (values saturate at
    ±65504); on other devices the model's own type, since their attention kernels take one type for all.
    Raises UsageError for an unknown name.
    """
    if name != "auto":
        slot_bytes(KvShape(1, 1, 1), name)
        return name
    if explicit_dtype and model_dtype == "float32":
        return "float32"
    return "float16" if device == "cpu" else model_dtype


@dataclass(frozen=True, slots=True)
class BatchSlice:
    """One session's slice of a batch: rows ``row`` to ``row + count``, positions ``start`` to
    ``start + count``.

    ``table``: (blocks of the session's span, pages) of slots, int32, C-contiguous; its first row is block
    ``first_block`` (absolute). It covers every position up to ``start + count``.
    """

    table: NDArray[np.int32]
    first_block: int
    row: int
    start: int
    count: int
