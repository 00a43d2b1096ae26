"""How fast each way to multiply is on this CPU: a few products of a 768x768 matrix, under 0.3 s in all."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers.quantize import GROUP, Int4Groups, Int8Groups
from .linear import ActivationPrecision, native_dense, native_int4, native_int8

ROWS = (1, 8, 64)
"""The rows of one stream's token, of a batch of streams, and of a piece of a prompt."""
PRECISION_NAMES = {
    ActivationPrecision.EXACT: "exact",
    ActivationPrecision.CLOSE: "close",
    ActivationPrecision.FAST: "fast",
}
TORCH_WAYS = ("torch float32", "torch bfloat16", "torch int8", "torch int4")
NATIVE_WAYS = (
    *("native float32", "native float16", "native bfloat16"),
    *(f"native {kind} {precision}" for kind in ("int8", "int4") for precision in PRECISION_NAMES.values()),
)

_SIZE = 768
_REPEATS = 5
_SLOW = 2e-3
"""If a product takes longer than this many seconds, it is not measured with more rows: its time is assumed to
grow with them."""

Product = Callable[[Tensor], Tensor]


def measure(native: bool) -> dict[str, tuple[float, ...]]:
    """Way → seconds at each of ROWS, on one thread: a second one that waited for another process would be all
    that is measured. ``native``: the C kernels too (they must have loaded)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            products = _torch_products()
            if native:
                products |= _native_products()
            return {way: _times(product) for way, product in products.items()}
    finally:
        torch.set_num_threads(threads)


def _torch_products() -> dict[str, Product]:
    single = torch.randn(_SIZE, _SIZE)
    half = single.to(torch.bfloat16)
    eight = torch.ones(_SIZE, _SIZE, dtype=torch.int8)
    scale = torch.ones(_SIZE, dtype=torch.bfloat16)
    four = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.ones(_SIZE, _SIZE, dtype=torch.int32), 1)
    scales = torch.ones(_SIZE // GROUP, _SIZE, 2, dtype=torch.bfloat16)
    int4 = torch.ops.aten._weight_int4pack_mm_for_cpu
    products: tuple[Product, ...] = (
        lambda x: F.linear(x, single),
        lambda x: F.linear(x.bfloat16(), half),
        lambda x: torch._weight_int8pack_mm(x.bfloat16(), eight, scale),
        lambda x: int4(x.bfloat16(), four, GROUP, scales),
    )
    return dict(zip(TORCH_WAYS, products, strict=True))


def _native_products() -> dict[str, Product]:
    single = torch.randn(_SIZE, _SIZE)
    groups = _SIZE // GROUP
    eight = Int8Groups(torch.ones(_SIZE, _SIZE, dtype=torch.int8), torch.ones(_SIZE, groups))
    four = Int4Groups(
        torch.ones(_SIZE, _SIZE, dtype=torch.uint8), torch.ones(_SIZE, groups), torch.ones(_SIZE, groups)
    )
    products: tuple[Product, ...] = (
        *(native_dense([single.to(dtype)], None) for dtype in (torch.float32, torch.float16, torch.bfloat16)),
        *(native_int8([eight], None, precision) for precision in PRECISION_NAMES),
        *(native_int4([four], None, precision) for precision in PRECISION_NAMES),
    )
    return dict(zip(NATIVE_WAYS, products, strict=True))


def _times(product: Product) -> tuple[float, ...]:
    seconds: list[float] = []
    for i, rows in enumerate(ROWS):
        if seconds and seconds[-1] > _SLOW:
            seconds.append(seconds[-1] * rows / ROWS[i - 1])
            continue
        x = torch.randn(rows, _SIZE)
        seconds.append(_best(lambda x=x: product(x)))  # type: ignore[misc]
    return tuple(seconds)


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs: what other processes do to the rest is not the CPU's speed."""
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
