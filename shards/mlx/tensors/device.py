"""MLX's device, its memory, and arrays from and to numpy.

In MLX a stream belongs to the thread that made it, and an array that was not evaluated belongs to a stream:
an array that one thread hands to another must be evaluated first. Evaluated arrays may go to any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import psutil

from ...formats.floats import narrow

Function = Callable[[mx.array], mx.array]

DTYPES: dict[str, mx.Dtype] = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
_WRITABLE = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.uint16, "uint32": mx.uint32}
"""Types as numpy can write them: it has no bfloat16."""
GPU_SHARE = 0.75
"""The part of unified memory that Metal lets the GPU use by default. It counts where Metal does not say."""
KEPT_BYTES = 256 << 20
"""MLX may keep this many bytes of freed buffers for its next arrays. By default it keeps as many as it once
used, and other programs lack them."""


def on_gpu() -> bool:
    return mx.default_device() == mx.gpu


def prepare() -> None:
    """Settings of the process: call before weights are loaded."""
    mx.set_cache_limit(KEPT_BYTES)


def keep_freed(nbytes: int) -> None:
    """Let MLX keep ``nbytes`` of freed buffers beside ``KEPT_BYTES``, unless it may keep more already."""
    before = mx.set_cache_limit(KEPT_BYTES + nbytes)
    if before > KEPT_BYTES + nbytes:
        mx.set_cache_limit(before)


def memory_left() -> int | None:
    """Bytes that this process may still take: what the system has free and what Metal allows the GPU to work
    with; the smaller of the two counts. None on a CPU, which has no memory but the host's."""
    if not on_gpu():
        return None
    free = int(psutil.virtual_memory().available) + mx.get_cache_memory()
    info = mx.device_info()
    allowed = int(info.get("max_recommended_working_set_size", 0)) or int(
        GPU_SHARE * int(info.get("memory_size", psutil.virtual_memory().total))
    )
    return max(0, min(free, allowed - mx.get_active_memory()))


def device_name() -> str:
    """For people: "mlx Apple M3 Max", "mlx cpu"."""
    return f"mlx {mx.device_info().get('device_name', 'gpu')}" if on_gpu() else "mlx cpu"


@cache
def fused(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """One kernel in place of those of ``function``, whose operations are all element by element. On a CPU
    the function as it is: compiling there takes a C++ compiler, and a second."""
    return mx.compile(function, shapeless=True) if on_gpu() else function


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """As ``fused``, for functions that know the shapes of their arguments: those are compiled anew for each,
    so there must be few. It is kept as long as the process lives."""
    return mx.compile(function) if on_gpu() else function


def to_mlx(x: np.ndarray, dtype: str = "float32") -> mx.array:
    """A copy of ``x``, of type ``dtype`` as ``floats.STORED`` has it, of its shape and type."""
    return mx.array(x).view(DTYPES[dtype])


def evaluated(x: np.ndarray, dtype: str) -> mx.array:
    """``x``, float32, rounded to ``dtype`` and ready for other threads."""
    array = to_mlx(narrow(x, dtype), dtype)
    mx.eval(array)
    return array


def stacked(parts: Iterable[np.ndarray], rows: int, dtype: str) -> mx.array:
    """``parts`` (some, cols), of ``dtype`` as ``floats.STORED`` has it or of uint32, one below the other: an
    array of ``rows``. Each part is let go before the next is asked for: there are never two copies of all."""
    at = 0
    for part in parts:
        if not at:
            array = mx.zeros((rows, part.shape[1]), _WRITABLE[dtype])
            mx.eval(array)
            cells = np.array(array, copy=False)
        cells[at : at + len(part)] = part
        at += len(part)
    array = array.view(DTYPES.get(dtype, array.dtype))
    mx.eval(array)
    return array


def optional(x: np.ndarray | None, dtype: str) -> mx.array | None:
    return None if x is None else evaluated(x, dtype)


def index(values: Sequence[int] | np.ndarray) -> mx.array:
    """Whole numbers as MLX's kernels take indices."""
    return mx.array(np.asarray(values, dtype=np.uint32))
