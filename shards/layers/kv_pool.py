"""Paged memory for keys and values: tensors only. ``node/`` keeps which slot belongs to which session, in
ints.

A slot is the memory of one page (``PAGE_TOKENS`` tokens) of one block: keys, then values. Keys are stored
transposed, (head_dim, PAGE_TOKENS) a head, so that a CPU vector holds one channel of many tokens and a score
needs no sum across lanes; values are (PAGE_TOKENS, head_dim).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...swarm.errors import UsageError
from ...swarm.protocol.field_types import PAGE_TOKENS

KV_DTYPES = ("float32", "bfloat16", "float16", "int8")

_TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}
_SMALLEST_LARGEST = 1e-30
"""An int8 scale is made of at least this magnitude, which keeps 1 / scale finite for rows of zeros."""


class KvPool:
    """``n_slots`` slots. On CPU the system commits memory as it is first written, so a large pool costs what
    is used of it. What a slot holds before it is written is undefined and may not even be finite.

    ``data``: (n_slots, 2, kv_heads, PAGE_TOKENS * head_dim); ``keys`` (n_slots, kv_heads, head_dim,
    PAGE_TOKENS) and ``values`` (n_slots, kv_heads, PAGE_TOKENS, head_dim) are views of it. ``scales``, for
    int8 only: (n_slots, 2, kv_heads, PAGE_TOKENS) float32, one a token and head.
    """

    def __init__(
        self, n_slots: int, n_kv_heads: int, head_dim: int, kv_dtype: str, device: torch.device
    ) -> None:
        self.n_slots, self.n_kv_heads, self.head_dim = n_slots, n_kv_heads, head_dim
        self.kv_dtype, self.device = kv_dtype, device
        self.slot_bytes = slot_bytes(n_kv_heads, head_dim, kv_dtype)
        self.data = torch.empty(
            (n_slots, 2, n_kv_heads, PAGE_TOKENS * head_dim), dtype=_TORCH_DTYPES[kv_dtype], device=device
        )
        self.keys = self.data[:, 0].unflatten(-1, (head_dim, PAGE_TOKENS))
        self.values = self.data[:, 1].unflatten(-1, (PAGE_TOKENS, head_dim))
        self.scales: Tensor | None = None
        if kv_dtype == "int8":
            self.scales = torch.empty(
                (n_slots, 2, n_kv_heads, PAGE_TOKENS), dtype=torch.float32, device=device
            )

    def copy_slots(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy each source slot to the target beside it. No slot may be both source and target, and no target
        may be named twice."""
        if len(sources) != len(targets):
            raise ValueError(f"{len(sources)} sources, {len(targets)} targets")
        read = torch.tensor(sources, dtype=torch.int64, device=self.device)
        written = torch.tensor(targets, dtype=torch.int64, device=self.device)
        for tensor in (self.data, self.scales):
            if tensor is not None:
                tensor.index_copy_(0, written, tensor.index_select(0, read))

    def store(self, slots: Tensor, offsets: Tensor, k: Tensor, v: Tensor) -> None:
        """Write keys and values ``k``, ``v`` (T, kv_heads, head_dim) at ``slots``, ``offsets`` (T), int64."""
        if self.scales is None:
            self.keys[slots, :, :, offsets] = self._narrow(k)
            self.values[slots, :, offsets] = self._narrow(v)
            return
        for part, x in enumerate((k, v)):
            q, scale = quantize_int8(x)
            if part == 0:
                self.keys[slots, :, :, offsets] = q
            else:
                self.values[slots, :, offsets] = q
            self.scales[slots, part, :, offsets] = scale

    def pages(self, slots: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Copies of the keys (pages, kv_heads, head_dim, PAGE_TOKENS) and values (pages, kv_heads,
        PAGE_TOKENS, head_dim) in ``slots`` (pages), int64, in ``dtype``."""
        keys = self.keys.index_select(0, slots).to(dtype)
        values = self.values.index_select(0, slots).to(dtype)
        if self.scales is not None:
            scales = self.scales.index_select(0, slots).to(dtype)  # (pages, 2, kv_heads, PAGE_TOKENS)
            keys *= scales[:, 0, :, None]
            values *= scales[:, 1, :, :, None]
        return keys, values

    def gather(self, slots: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of the pages in ``slots`` (pages), int64, as (kv_heads, pages * PAGE_TOKENS,
        head_dim) of ``dtype``."""
        keys, values = self.pages(slots, dtype)
        keys, values = keys.permute(1, 0, 3, 2), values.transpose(0, 1)
        return keys.reshape(self.n_kv_heads, -1, self.head_dim), values.reshape(
            self.n_kv_heads, -1, self.head_dim
        )

    def _narrow(self, x: Tensor) -> Tensor:
        """To the stored type; float16 saturates at its largest value instead of overflowing."""
        if self.data.dtype is torch.float16 and x.dtype is not torch.float16:
            x = x.clamp(-65504.0, 65504.0)
        return x.to(self.data.dtype)


def quantize_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` (..., head_dim) → int8 of the same shape and float32 scales (...): q = round(x / scale), half to
    even, scale = the largest magnitude / 127. A row that is not finite gets a scale that is not finite."""
    x = x.float()
    scale = x.abs().amax(-1).clamp(min=_SMALLEST_LARGEST) / 127.0
    return (x * (1.0 / scale)[..., None]).round_().to(torch.int8), scale


def slot_bytes(n_kv_heads: int, head_dim: int, kv_dtype: str) -> int:
    """Bytes of one slot: the keys and values of PAGE_TOKENS tokens in one block, scales included.

    Raises UsageError for an unknown ``kv_dtype``.
    """
    if kv_dtype not in KV_DTYPES:
        raise UsageError(f"unknown KV dtype {kv_dtype!r}", hint=f"Known: auto, {', '.join(KV_DTYPES)}.")
    per_head = head_dim * _TORCH_DTYPES[kv_dtype].itemsize + (4 if kv_dtype == "int8" else 0)
    return 2 * n_kv_heads * PAGE_TOKENS * per_head


def resolve_kv_dtype(
    name: str, model_dtype: torch.dtype, explicit_dtype: bool, device: torch.device | None = None
) -> str:
    """The KV dtype for ``--kv-dtype name``.

    "auto": float32 where the user asked for float32 (``explicit_dtype``), as that asks for exactness. Else
    float16 on CPU, which keeps three bits more than bfloat16 and converts as fast (values saturate at
    ±65504); on other devices the model's own type, since their attention kernels take one type for all.
    Raises UsageError for an unknown name.
    """
    if name != "auto":
        slot_bytes(1, 1, name)
        return name
    if explicit_dtype and model_dtype is torch.float32:
        return "float32"
    if device is None or device.type == "cpu":
        return "float16"
    return str(model_dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class BatchSlice:
    """One session's slice of a batch: rows ``row`` to ``row + count``, positions ``start`` to
    ``start + count``.

    ``table``: (blocks of the session's span, pages) of slots, int32, contiguous, on the CPU; its first row is
    block ``first_block`` (absolute). It covers every position up to ``start + count``.
    """

    table: Tensor
    first_block: int
    row: int
    start: int
    count: int
