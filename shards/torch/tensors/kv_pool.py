"""``layers.kv_pool`` as tensors: on the CPU over the same memory, on other devices in theirs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ...formats.blocks.attention import KvShape
from ...formats.blocks.state import StateShape
from ...layers.kv_pool import KvPart, KvPool, index_start, slot_bytes
from ...layers.state_pool import StatePool, slot_floats

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}
_SMALLEST_LARGEST = 1e-30
"""An int8 scale is made of at least this magnitude, which keeps 1 / scale finite for rows of zeros."""


class TorchKvPool:
    """``n_slots`` slots for blocks of ``shapes``, laid out as ``KvPool``'s. ``data``: (n_slots, slot_bytes)
    bytes; ``states``: (n_states, floats) float32."""

    def __init__(
        self,
        n_slots: int,
        shapes: Iterable[KvShape],
        kv_dtype: str,
        device: torch.device,
        n_states: int = 0,
        states: Iterable[StateShape] = (),
    ) -> None:
        """``n_states`` slots for ``states``. Raises UsageError for an unknown ``kv_dtype``, MemoryError where
        there is not enough."""
        shapes, states = frozenset(shapes), frozenset(states)
        self.n_slots, self.n_states, self.kv_dtype, self.device = n_slots, n_states, kv_dtype, device
        self.slot_bytes = max((slot_bytes(shape, kv_dtype) for shape in shapes), default=0)
        if device.type == "cpu":
            self.data = torch.from_numpy(KvPool(n_slots, shapes, kv_dtype).data)
            self.states = torch.from_numpy(StatePool(n_states, states).data)
        else:
            try:
                self.data = torch.empty((n_slots, self.slot_bytes), dtype=torch.uint8, device=device)
                self.states = torch.empty((n_states, slot_floats(states)), device=device)
            except RuntimeError as error:  # and its subclass OutOfMemoryError
                raise MemoryError(str(error)) from None
        scale = torch.float32 if kv_dtype == "int8" else None
        self._parts = {
            shape: TorchKvPart(shape, KvPart.of(self.data, shape, _DTYPES[kv_dtype], scale))
            for shape in shapes
        }
        self._indexes = {
            shape: TorchKvPart(
                shape.index,
                KvPart.of(self.data, shape.index, _DTYPES[kv_dtype], scale, index_start(shape, kv_dtype)),
            )
            for shape in shapes
            if shape.index is not None
        }

    def part(self, shape: KvShape) -> TorchKvPart:
        """The slots as blocks of ``shape``, one of the pool's, see them."""
        return self._parts[shape]

    def index(self, shape: KvShape) -> TorchKvPart:
        """What blocks of ``shape``, one of the pool's, keep for their indexer."""
        return self._indexes[shape]

    def copy_slots(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """See ``KvMemory``."""
        self._copy(self.data, sources, targets)

    def copy_states(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """See ``KvMemory``."""
        self._copy(self.states, sources, targets)

    def _copy(self, data: Tensor, sources: Sequence[int], targets: Sequence[int]) -> None:
        if len(sources) != len(targets):
            raise ValueError(f"{len(sources)} sources, {len(targets)} targets")
        read = torch.tensor(sources, dtype=torch.int64, device=self.device)
        written = torch.tensor(targets, dtype=torch.int64, device=self.device)
        data.index_copy_(0, written, data.index_select(0, read))


class TorchKvPart:
    """What blocks of one ``shape`` read and write of a pool, ``held``."""

    def __init__(self, shape: KvShape, held: KvPart[Tensor]) -> None:
        self.shape, self.held = shape, held

    @property
    def device(self) -> torch.device:
        return self.held.keys.device

    def store(self, slots: Tensor, offsets: Tensor, k: Tensor, v: Tensor) -> None:
        """Write keys ``k`` (T, heads, key_dim) and values ``v`` (T, heads, value_dim), which are not read
        where they are shared, at ``slots``, ``offsets`` (T), int64."""
        held = self.held
        held.keys[slots, :, :, offsets] = self._narrow(k, held.key_scales, slots, offsets)
        if not self.shape.shared:
            held.values[slots, :, offsets] = self._narrow(v, held.value_scales, slots, offsets)

    def pages(self, slots: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Copies of the keys (pages, heads, key_dim, PAGE_TOKENS) and values (pages, heads, PAGE_TOKENS,
        value_dim) in ``slots`` (pages), int64, in ``dtype``."""
        held = self.held
        values = held.values.index_select(0, slots).to(dtype)
        if held.value_scales is not None:
            values *= held.value_scales.index_select(0, slots).to(dtype)[..., None]
        return self.keys(slots, dtype), values

    def keys(self, slots: Tensor, dtype: torch.dtype) -> Tensor:
        """As ``pages``, without the values."""
        held = self.held
        keys = held.keys.index_select(0, slots).to(dtype)
        if held.key_scales is not None:
            keys *= held.key_scales.index_select(0, slots).to(dtype)[:, :, None]
        return keys

    def gather(self, slots: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys (heads, pages * PAGE_TOKENS, key_dim) and values (heads, pages * PAGE_TOKENS, value_dim) of
        the pages in ``slots`` (pages), int64, in ``dtype``."""
        keys, values = self.pages(slots, dtype)
        keys, values = keys.permute(1, 0, 3, 2), values.transpose(0, 1)
        return keys.reshape(self.shape.heads, -1, self.shape.key_dim), values.reshape(
            self.shape.heads, -1, self.shape.value_dim
        )

    def tokens(self, slots: Tensor, offsets: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys (heads, key_dim, n) and values (heads, n, value_dim) of the tokens at ``slots``, ``offsets``
        (n), int64, in ``dtype``."""
        held = self.held
        keys, values = held.keys[slots, :, :, offsets].to(dtype), held.values[slots, :, offsets].to(dtype)
        if held.key_scales is not None and held.value_scales is not None:
            keys *= held.key_scales[slots, :, offsets].to(dtype)[..., None]
            values *= held.value_scales[slots, :, offsets].to(dtype)[..., None]
        return keys.permute(1, 2, 0), values.transpose(0, 1)

    def _narrow(self, x: Tensor, scales: Tensor | None, slots: Tensor, offsets: Tensor) -> Tensor:
        """To the stored type, with the ``scales`` written; float16 saturates at its largest value instead of
        overflowing."""
        stored = self.held.keys.dtype
        if scales is not None:
            x, scales[slots, :, offsets] = quantize_int8(x)
        elif stored is torch.float16 and x.dtype is not torch.float16:
            x = x.clamp(-65504.0, 65504.0)
        return x.to(stored)


def quantize_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` (..., head_dim) → int8 of the same shape and float32 scales (...): q = round(x / scale), half to
    even, scale = the largest magnitude / 127. A row that is not finite gets a scale that is not finite."""
    x = x.float()
    scale = x.abs().amax(-1).clamp(min=_SMALLEST_LARGEST) / 127.0
    return (x * (1.0 / scale)[..., None]).round_().to(torch.int8), scale
