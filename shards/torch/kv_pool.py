"""``layers.kv_pool`` as tensors: on the CPU over the same memory, on other devices in theirs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...swarm.protocol.field_types import PAGE_TOKENS
from ..formats.block_config import KvShape
from ..layers.kv_pool import KvPool, slot_bytes

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}
_SMALLEST_LARGEST = 1e-30
"""An int8 scale is made of at least this magnitude, which keeps 1 / scale finite for rows of zeros."""


class TorchKvPool:
    """``n_slots`` slots, laid out as ``KvPool``'s. ``keys`` (n_slots, kv_heads, head_dim, PAGE_TOKENS) and
    ``values`` (n_slots, kv_heads, PAGE_TOKENS, head_dim) are views of ``data``.
    """

    def __init__(self, n_slots: int, shape: KvShape, kv_dtype: str, device: torch.device) -> None:
        """Raises UsageError for an unknown ``kv_dtype``, MemoryError where there is not enough."""
        head_dim = shape.key_dim
        self.n_slots, self.n_kv_heads, self.head_dim = n_slots, shape.heads, head_dim
        self.kv_dtype, self.device = kv_dtype, device
        self.slot_bytes = slot_bytes(shape, kv_dtype)
        self.scales: Tensor | None = None
        if device.type == "cpu":
            held = KvPool(n_slots, shape, kv_dtype)
            self.data = torch.from_numpy(held.data).view(_DTYPES[kv_dtype])
            self.scales = None if held.scales is None else torch.from_numpy(held.scales)
        else:
            self._allocate()
        self.keys = self.data[:, 0].unflatten(-1, (head_dim, PAGE_TOKENS))
        self.values = self.data[:, 1].unflatten(-1, (PAGE_TOKENS, head_dim))

    def _allocate(self) -> None:
        shape = (self.n_slots, 2, self.n_kv_heads, PAGE_TOKENS)
        try:
            self.data = torch.empty(
                (*shape[:3], PAGE_TOKENS * self.head_dim), dtype=_DTYPES[self.kv_dtype], device=self.device
            )
            if self.kv_dtype == "int8":
                self.scales = torch.empty(shape, dtype=torch.float32, device=self.device)
        except RuntimeError as error:  # and its subclass OutOfMemoryError
            raise MemoryError(str(error)) from None

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
