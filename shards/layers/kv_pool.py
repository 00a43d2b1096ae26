"""Paged memory for keys and values: arrays only. ``node/`` keeps which slot belongs to which session, in
ints.

A slot is the memory of one page (``PAGE_TOKENS`` tokens) of one block: keys, then values, then for int8 their
scales, then what it has for an indexer, laid out as keys are. Keys are stored transposed, (key_dim,
PAGE_TOKENS) a head, so that a CPU vector holds one channel of many tokens and a score needs no sum across
lanes; values are (PAGE_TOKENS, value_dim). Blocks of different ``KvShape`` share a pool: each lays out its
own within a slot that holds the largest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from ...swarm.errors import UsageError
from ...swarm.protocol.field_types import PAGE_TOKENS
from ..formats.blocks.attention import KvShape
from ..formats.blocks.block import BlockConfig
from ..formats.floats import STORED
from .memory import zeros
from .state_pool import StatePool

if TYPE_CHECKING:
    from numpy.typing import NDArray

KV_DTYPES = ("float32", "bfloat16", "float16", "int8")
_STORED: dict[str, np.dtype[Any]] = {**STORED, "int8": np.dtype(np.int8)}


Array = TypeVar("Array")


@dataclass(frozen=True, slots=True)
class KvPart(Generic[Array]):
    """The slots of a pool as blocks of one ``KvShape`` see them. ``keys`` (n_slots, heads, key_dim,
    PAGE_TOKENS) and ``values`` (n_slots, heads, PAGE_TOKENS, value_dim), bits for bfloat16 in numpy; for int8
    their scales (n_slots, heads, PAGE_TOKENS) float32. Where values are shared they are a view of the keys.
    """

    keys: Array
    values: Array
    key_scales: Array | None
    value_scales: Array | None

    @classmethod
    def of(cls, slots: Any, shape: KvShape, stored: Any, scale: Any, first: int = 0) -> KvPart[Array]:
        """Views of ``slots`` (n_slots, slot_bytes), bytes: an array of numpy or torch. ``stored`` and
        ``scale``: the library's types of the values and their scales (None where there are none). ``first``:
        the byte of each slot where they begin."""
        heads, used = (len(slots), shape.heads), first

        def take(kind: Any, *dims: int) -> Any:
            nonlocal used
            first, used = used, used + math.prod(dims, start=shape.heads) * kind.itemsize
            return slots[:, first:used].view(kind).reshape(*heads, *dims)

        keys = take(stored, shape.key_dim, PAGE_TOKENS)
        if shape.shared:
            values = keys[:, :, : shape.value_dim].swapaxes(2, 3)
        else:
            values = take(stored, PAGE_TOKENS, shape.value_dim)
        key_scales = None if scale is None else take(scale, PAGE_TOKENS)
        value_scales = key_scales if shape.shared or scale is None else take(scale, PAGE_TOKENS)
        return cls(keys, values, key_scales, value_scales)


class KvPool:
    """``n_slots`` slots for blocks of ``shapes``, in the host's memory, which the system commits as they are
    first written: a large pool costs what is used of it. What a slot holds before it is written is undefined.

    ``data``: (n_slots, slot_bytes) bytes. ``states``: the memory of blocks that keep a state.
    """

    def __init__(
        self, n_slots: int, shapes: Iterable[KvShape], kv_dtype: str, states: StatePool | None = None
    ) -> None:
        """Raises UsageError for an unknown ``kv_dtype``, MemoryError where there is not enough."""
        self.shapes = frozenset(shapes)
        self.n_slots, self.kv_dtype = n_slots, kv_dtype
        self.states = states or StatePool(0, ())
        self.slot_bytes = max((slot_bytes(shape, kv_dtype) for shape in self.shapes), default=0)
        self.data: NDArray[np.uint8] = zeros((n_slots, self.slot_bytes), np.uint8)

    def part(self, shape: KvShape) -> KvPart[NDArray[Any]]:
        scale = np.dtype(np.float32) if self.kv_dtype == "int8" else None
        return KvPart.of(self.data, shape, _STORED[self.kv_dtype], scale)

    @property
    def n_states(self) -> int:
        return self.states.n_slots

    def copy_slots(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """See ``KvMemory``."""
        _copy(self.data, sources, targets)

    def copy_states(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """See ``KvMemory``."""
        _copy(self.states.data, sources, targets)


def _copy(data: NDArray[Any], sources: Sequence[int], targets: Sequence[int]) -> None:
    if len(sources) != len(targets):
        raise ValueError(f"{len(sources)} sources, {len(targets)} targets")
    data[np.asarray(targets, np.int64)] = data[np.asarray(sources, np.int64)]


def slot_bytes(shape: KvShape, kv_dtype: str) -> int:
    """Bytes of one slot: the keys and values of PAGE_TOKENS tokens in one block, scales included.

    Raises UsageError for an unknown ``kv_dtype``.
    """
    if kv_dtype not in KV_DTYPES:
        raise UsageError(f"unknown KV dtype {kv_dtype!r}", hint=f"Known: auto, {', '.join(KV_DTYPES)}.")
    behind = 0 if shape.index is None else slot_bytes(shape.index, kv_dtype)
    return index_start(shape, kv_dtype) + behind


def index_start(shape: KvShape, kv_dtype: str) -> int:
    """The byte of a slot where what is kept for an indexer begins."""
    scale = 4 if kv_dtype == "int8" else 0
    dims = (shape.key_dim,) if shape.shared else (shape.key_dim, shape.value_dim)
    return shape.heads * PAGE_TOKENS * sum(dim * _STORED[kv_dtype].itemsize + scale for dim in dims)


def kv_shapes(blocks: Iterable[BlockConfig]) -> frozenset[KvShape]:
    return frozenset(block.attention.kv for block in blocks if block.attention is not None)


def largest_slot(blocks: Iterable[BlockConfig], kv_dtype: str) -> int:
    """Bytes of a slot that any of ``blocks`` can use; 0 where none has attention."""
    return max((slot_bytes(shape, kv_dtype) for shape in kv_shapes(blocks)), default=0)


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
    ``first_block`` (absolute). It covers every position up to ``start + count``; pages that no token from
    ``start`` on can see in their block may be -1. ``long_context``: as ``long`` of ``Rope.slice_rows``.

    ``states``: as ``table``, of slots of a ``StatePool``, for the blocks that keep a state (-1 for the
    others); None: no block of the session's does. A page's slot is for the state after its last token. The
    rows begin from zeros at position 0, else from the state in the slot of the page that has position
    ``start - 1``, which must be that after it. Whenever the rows come to the end of a page, or their own,
    the state goes to the slot of the page that they are in, unless that is -1.

    ``saved``: (blocks of the session's span) of slots for the state before row ``again`` of the slice, which
    is in the middle of a page: the rows begin with that state where ``again`` is 0, otherwise it is written.
    """

    table: NDArray[np.int32]
    first_block: int
    row: int
    start: int
    count: int
    long_context: bool = False
    states: NDArray[np.int32] | None = None
    saved: NDArray[np.int32] | None = None
    again: int = 0

    def chunks(self) -> list[tuple[int, int]]:
        """The rows up to each place where a state is kept: the first, counted from ``row``, and how many."""
        found, row = [], 0
        while row < self.count:
            rows = min(self.count - row, PAGE_TOKENS - (self.start + row) % PAGE_TOKENS)
            if self.saved is not None and row < self.again:
                rows = min(rows, self.again - row)
            found.append((row, rows))
            row += rows
        return found
