"""How fast our kernels multiply on this CPU: a few products of a 768x768 matrix, under 0.1 s in all. Other
backends measure theirs by the same ``times``, to be compared with these.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..formats.floats import narrow
from ..layers.quantize import GROUP, Float8Rows, Int4Groups, Int8Groups
from .linear import ActivationPrecision, native_dense, native_float8, native_int4, native_int8

ROWS = (1, 8, 64)
"""The rows of one stream's token, of a batch of streams, and of a piece of a prompt."""
SIZE = 768
"""Rows and columns of the matrix."""
PRECISION_NAMES = {
    ActivationPrecision.EXACT: "exact",
    ActivationPrecision.CLOSE: "close",
    ActivationPrecision.FAST: "fast",
}
TORCH_WAYS = ("torch float32", "torch bfloat16", "torch int8", "torch int4")
NATIVE_WAYS = (
    *("native float32", "native float16", "native bfloat16", "native float8"),
    *(f"native {kind} {precision}" for kind in ("int8", "int4") for precision in PRECISION_NAMES.values()),
)

_REPEATS = 5
_SLOW = 2e-3
"""If a product takes longer than this many seconds, it is not measured with more rows: its time is assumed to
grow with them."""

Product = Callable[[np.ndarray], Any]
"""Of rows (n, SIZE) float32."""


def measure_native() -> dict[str, tuple[float, ...]]:
    """Way → seconds at each of ROWS, on one thread. The library must have loaded."""
    values = np.random.default_rng(0).standard_normal((SIZE, SIZE), np.float32)
    ones = np.ones((SIZE, SIZE), np.uint8)
    scale = np.ones((SIZE, SIZE // GROUP), np.float32)
    products: tuple[Product, ...] = (
        *(native_dense([narrow(values, dtype)], None) for dtype in ("float32", "float16", "bfloat16")),
        native_float8([Float8Rows(ones, scale[:, :1], SIZE)], None),
        *(native_int8([Int8Groups(ones.view(np.int8), scale)], None, each) for each in PRECISION_NAMES),
        *(native_int4([Int4Groups(ones, scale, scale)], None, each) for each in PRECISION_NAMES),
    )
    return {way: times(product) for way, product in zip(NATIVE_WAYS, products, strict=True)}


def times(product: Product) -> tuple[float, ...]:
    """Seconds at each of ROWS."""
    seconds: list[float] = []
    for i, rows in enumerate(ROWS):
        if seconds and seconds[-1] > _SLOW:
            seconds.append(seconds[-1] * rows / ROWS[i - 1])
            continue
        x = np.random.default_rng(0).standard_normal((rows, SIZE), np.float32)
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
