"""What decoding is made of: one row times a matrix of each type, over more bytes than caches hold.

It could reach the bandwidth of memory, since each byte of the weights is read once. That is measured between
the runs, over as many bytes.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .figures import high

ROWS, COLS = 4096, 4096
HELD_BYTES = 256 << 20
"""So many bytes are gone through before a matrix comes again."""
TOGETHER = 4
"""Products that are timed as one."""
FLOAT8 = "F8_E4M3_128"
MADE = ("IQ3_S", "IQ2_S")
"""Types that become integers of eight bits."""
QTYPES = (
    *("Q8_0", "Q6_K", "Q5_1", "Q5_0", "Q5_K", "Q4_1", "Q4_0", "Q4_K", "MXFP4", "IQ4_NL", "IQ4_XS"),
    *("Q3_K", "Q2_K", FLOAT8, *MADE),
)
STACK = ("Q4_K", "Q4_K", "Q6_K", "Q6_K")
"""Types of a matrix's quarters, one below the other: ours alone have such."""


def sane_rows(row_bytes: int, rows: int = ROWS) -> np.ndarray:
    """uint8 (rows, row_bytes) whose bytes are ordinary scales wherever a type has them."""
    return np.random.default_rng(0).integers(0x20, 0x30, (rows, row_bytes), dtype=np.uint8)


def _decoded(qtype: str) -> Any:
    """Of a type that is not packed by moving the file's bytes; None in a checkout that has no such."""
    try:
        from swarm_node.shards.formats.qtypes import row_bytes
        from swarm_node.shards.formats.raw_tensor import RawTensor
        from swarm_node.shards.kernels.linear import ActivationPrecision, native_float8, native_int8
        from swarm_node.shards.layers.quantize import Float8Rows, file_int8_groups
    except ImportError:
        return None
    if qtype == FLOAT8:
        scale = np.random.default_rng(0).uniform(0.5, 2, (ROWS, COLS // 128)).astype(np.float32)
        return native_float8([Float8Rows(sane_rows(COLS), scale, 128)], None)
    raw = RawTensor("w", (ROWS, COLS), qtype, sane_rows(row_bytes(qtype, COLS)))
    return native_int8([file_int8_groups(raw)], None, ActivationPrecision.CLOSE)


def ours(*, threads: int, qtypes: Sequence[str], seconds: float) -> dict[str, dict[str, float]]:
    """Of each type, and of STACK where it is asked for as "stack"."""
    import torch

    from swarm_node.shards.formats.qtypes import row_bytes
    from swarm_node.shards.formats.raw_tensor import RawTensor
    from swarm_node.shards.kernels.library import ThreadPool, address, library
    from swarm_node.shards.kernels.linear import ActivationPrecision, NativeLinear, SnLinear, native_file

    torch.set_num_threads(threads)
    kernels, pool = library(), ThreadPool(threads)
    pointer, memory, number = ctypes.POINTER(SnLinear), ctypes.c_void_p, ctypes.c_int64
    kernels.sn_linear_prepare.argtypes = (pointer, memory, number, number, memory)
    kernels.sn_multiply.argtypes = (
        *(memory, pointer, memory, number, number, memory, number, ctypes.c_int32, memory),
    )
    x = np.random.default_rng(0).standard_normal((1, COLS), np.float32)
    y, scratch = np.empty((1, ROWS), np.float32), np.empty(16 * COLS, np.uint8)
    plain = torch.ones(HELD_BYTES // 4)

    def made(qtype: str) -> NativeLinear | None:
        if qtype == FLOAT8 or qtype in MADE:
            return _decoded(qtype)
        held = STACK if qtype == "stack" else (qtype,)
        rows = ROWS // len(held)
        raws = [RawTensor("w", (rows, COLS), each, sane_rows(row_bytes(each, COLS), rows)) for each in held]
        return native_file(raws, None, ActivationPrecision.CLOSE)

    def multiply(linears: Sequence[NativeLinear]) -> None:
        for linear in linears:
            struct = linear.struct
            kernels.sn_linear_prepare(struct, address(x), COLS, 1, address(scratch))
            kernels.sn_multiply(
                *(pool.handle, struct, address(x), COLS, 1, address(y), ROWS, 0, address(scratch)),
            )

    found = {}
    for qtype in qtypes:
        first = made(qtype)
        if first is None:  # an older checkout has no kernel for it
            continue
        count = HELD_BYTES // first.nbytes // TOGETHER * TOGETHER
        linears = [first, *(linear for _ in range(count - 1) if (linear := made(qtype)) is not None)]
        nbytes = TOGETHER * first.nbytes
        speeds: list[float] = []
        limits: list[float] = []
        began, run = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            at = run * TOGETHER % count
            speeds.append(nbytes / _seconds(partial(multiply, linears[at : at + TOGETHER])))
            start = at * first.nbytes // 4
            part = plain[start : start + nbytes // 4]
            limits.append(nbytes / _seconds(part.max if run % 2 else part.sum))
            run += 1
        found[qtype] = {
            "bits": 8 * first.nbytes / ROWS / COLS,
            "product_us": 1e6 * first.nbytes / high(speeds),
            "read_bytes_per_s": high(speeds),
            "share_of_best_bandwidth": high(speeds) / high(limits),
        }
    return found


def _seconds(run: Callable[[], Any]) -> float:
    before = time.perf_counter()
    run()
    return time.perf_counter() - before
